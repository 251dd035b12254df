"""Reading and watching files on a disk where anything may lie."""
