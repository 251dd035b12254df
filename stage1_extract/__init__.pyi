from .api import run_extraction as run_extraction
