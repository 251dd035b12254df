"""Stage 1: images -> store. Everything that holds a vision tower."""
