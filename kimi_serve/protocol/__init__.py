"""The wire: errors, request fields that the gateway acts on, SSE frames. Knows no socket, no model."""
