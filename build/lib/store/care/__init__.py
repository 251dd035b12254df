"""Looking after a store: verify, repair, inspect, status, derive, drop."""
