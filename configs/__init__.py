"""One YAML per experiment, and the one loader that turns YAML + flags into a typed config."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
