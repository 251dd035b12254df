"""Networks that trained pruners share; each reads the arrays of one image, without a batch axis."""
