"""The parts of a checkpoint that both stages read: its config, its weights and its text side."""
