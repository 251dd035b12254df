"""A trained pruner as something to share: what its training saw, its card, and its way to a hub and back."""
