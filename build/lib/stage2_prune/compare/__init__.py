"""Saved results against each other, with paired statistics (`compare`)."""
