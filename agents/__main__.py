"""``python -m agents`` is the command line ``sliproad``."""

from agents.cli import main

if __name__ == "__main__":
    main()
