"""Train a pruner through the frozen language model (`train`)."""
