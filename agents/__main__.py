"""``python -m agents`` is the command line ``sliproad``."""

from agents.cli import main

main()
