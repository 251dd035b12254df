"""One YAML per experiment, the loader that turns YAML and flags into a typed config, and what every command line shares."""
