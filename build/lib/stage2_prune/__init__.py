"""Stage 2, store -> pruner -> language model -> answer: everything that holds a language model."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
