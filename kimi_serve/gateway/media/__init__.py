"""Pictures on their way to an engine: fetched, unwrapped, measured. Knows headers and addresses; decodes no pixel."""
