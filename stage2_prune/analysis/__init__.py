"""Measure (`analyse`) and draw (`show`) what pruners keep of an image, from the store alone."""
