"""Files that a config or a result lies in: written whole, sealed, with paths that hold on any machine."""
