"""Kinds of vision tower, one file each; see stage1_extract/encoding/tower.py for the interface."""
