"""One YAML per experiment, the loader that turns YAML and flags into a typed config, and what every command line shares."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
