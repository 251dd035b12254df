"""One file per family of vision-language models."""
