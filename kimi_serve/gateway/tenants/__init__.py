"""Who may ask, and how much: keys, their stores, their limits. Knows no HTTP."""
