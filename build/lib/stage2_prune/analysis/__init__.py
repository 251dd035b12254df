"""What pruners keep of an image: measured (`analyse`) and drawn (`show`), from the store alone."""
