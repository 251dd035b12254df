"""Kinds of vision tower, one file per kind; see stage1_extract/encoding/tower.py for the interface."""
