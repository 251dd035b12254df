"""The feature store: what it is made of, how it is written, read, checked and copied. `python -m store` inspects one."""
