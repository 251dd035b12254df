"""The sections of a config: every field with its type, its unit and its default."""
