"""Opening a run: the store and the model, checked against each other, and batches of features."""
