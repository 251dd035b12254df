"""Processes that commands start: a module of this project, and workers."""
