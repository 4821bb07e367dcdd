"""Batches of requests: kept until every line is answered once, whatever happens to the process meanwhile."""
