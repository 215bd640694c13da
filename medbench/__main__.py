"""``python -m medbench``."""

from medbench.cli import main

if __name__ == "__main__":
    main()
