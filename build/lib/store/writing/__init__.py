"""Creating a store, and committing shards to it."""
