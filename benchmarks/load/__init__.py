"""Load on a running server: scenarios as data, an open loop of requests, reports. Knows HTTP; never who answers."""
