"""From images to arrays: the interfaces of a model family and a vision tower, and the only call of the tower."""
