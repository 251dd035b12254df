"""Parsing of configs: text becomes checked values, and wrong values become sentences."""
