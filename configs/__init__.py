"""One YAML per experiment, and the one loader that turns YAML + flags into a typed config."""
