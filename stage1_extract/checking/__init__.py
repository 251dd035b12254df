"""Compare a store with the images and the model that it was made of."""
