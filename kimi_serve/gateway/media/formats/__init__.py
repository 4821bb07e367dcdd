"""One reader per picture format: the size that the engine's Pillow will see. Knows headers; decodes no pixel."""
