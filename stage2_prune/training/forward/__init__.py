"""How what a pruner leaves of images passes the language model in a training step, before the model or inside it."""
