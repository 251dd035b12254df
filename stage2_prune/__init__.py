"""Stage 2, store -> pruner -> language model -> answer: everything that holds a language model."""
