"""Compute once what the unpruned language model answers, for all trainings (`teach`)."""
