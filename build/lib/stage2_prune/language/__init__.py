"""The language half of a model: prompts, generation, scoring, the layer loop, and what tokens cost in it."""
