"""Comparing a store with the images and the model that it came from."""
