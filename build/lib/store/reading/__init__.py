"""Reading features from a store."""
