"""Run the command line `python -m store`."""

from configs.cli import main
from store.cli import group

if __name__ == "__main__":
    main(group)
