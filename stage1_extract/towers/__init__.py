"""Kinds of vision tower, one file each; see stage1_extract/tower.py for the interface."""
