"""A sweep: every method that a store can serve, at every budget, and what else a config crosses."""
