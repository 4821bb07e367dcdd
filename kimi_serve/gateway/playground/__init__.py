"""A page to try the server with: files for a browser, which asks the public routes as any client does."""
