"""Pictures made to fit: what their `detail` allows, what a request's `fit` asks for, and what the answer says of it."""
