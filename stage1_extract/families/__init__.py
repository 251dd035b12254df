"""Families of vision-language models, one file per family; see stage1_extract/encoding/family.py for the interface."""
