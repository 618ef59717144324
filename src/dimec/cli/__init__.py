"""The command line: thin commands over `dimec.api`."""

from dimec.cli.app import main

__all__ = ["main"]
