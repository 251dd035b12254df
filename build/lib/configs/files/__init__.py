"""How configs and results are written to files: whole, sealed, and with paths that are valid on any machine."""
