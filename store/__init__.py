"""The cached features: schema, plan, writer, reader, commit log; `python -m store` looks inside."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
