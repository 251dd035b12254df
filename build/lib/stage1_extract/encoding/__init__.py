"""From pixel values to arrays: what a model family and a vision tower are, and the one call of the tower."""
