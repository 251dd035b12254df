"""The commit log of a store, and who works on it."""
