"""The cached features: schema, plan, writer, reader, commit log; `python -m store` looks inside."""
