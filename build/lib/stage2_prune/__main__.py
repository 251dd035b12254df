"""`python -m stage2_prune`."""

from configs.cli import main
from stage2_prune.cli import group

if __name__ == "__main__":
    main(group)
