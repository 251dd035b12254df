"""The questions about stored images: reading them, dividing them into splits, and exchanging them between the stages."""
