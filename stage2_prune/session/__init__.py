"""Open what a run works on: the store and the model, checked against each other, and batches of features."""
