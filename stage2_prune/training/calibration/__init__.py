"""Fit numbers, not weights, to a model: how many tokens a method drops where."""
