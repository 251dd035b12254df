"""`python -m stage1_extract`."""

from configs.cli import main
from stage1_extract.cli import group

if __name__ == "__main__":
    main(group)
