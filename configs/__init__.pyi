from .find_config import load_experiment as load_experiment
