"""Stage 1: images -> store. Only this package loads and calls vision towers."""
