"""Read a trained pruner: what it scores highly, what it keeps that another method drops, and where it gains and loses."""
