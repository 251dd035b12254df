"""Copies of a store in other formats, and stores made from them."""
