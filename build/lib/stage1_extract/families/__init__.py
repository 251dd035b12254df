"""Families of vision-language models, one file each; see stage1_extract/encoding/family.py for the interface."""
