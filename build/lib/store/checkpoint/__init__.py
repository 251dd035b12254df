"""What both stages read of a checkpoint: its config, its weights, its tokenizer."""
