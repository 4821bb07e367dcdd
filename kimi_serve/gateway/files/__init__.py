"""Files that clients leave here: kept once however often they come, and another tenant's are not there."""
