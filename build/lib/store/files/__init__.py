"""Reading and moving files safely, whatever lies on the disk in their place."""
