"""From the text of a config to checked values, and from wrong values to sentences."""
