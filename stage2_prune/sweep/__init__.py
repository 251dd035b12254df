"""Sweep over every method that a store can serve, at every budget, and over what else a config crosses (`sweep`)."""
