"""Ways to run the workers of an extraction; a run with one worker needs none of them."""
