"""The command line: parsing and printing only."""

from captioner.cli.main import main

__all__ = ["main"]
