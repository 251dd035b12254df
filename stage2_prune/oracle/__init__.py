"""Search for the patches that the language model answers best from, as a lower bound of what any selection can reach."""
