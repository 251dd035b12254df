"""What selection methods share: top-k, similarity, windows, suppression and the like."""
