"""What a pruner is, what it is given, and what it returns."""
