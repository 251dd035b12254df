"""The harder benchmark: many objects of several sizes, distractors, textures, digits and words, and two tiny LLaVAs."""
