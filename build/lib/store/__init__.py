"""The feature store: what it is made of, how it is written, read, checked and copied. `python -m store` inspects one."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
