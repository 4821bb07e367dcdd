"""What clients see while parts of a whole stack are killed, stopped, slowed, cut off and restarted."""
