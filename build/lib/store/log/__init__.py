"""The commit log of a store, and the leases of the processes that work on it."""
