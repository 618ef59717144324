"""``python -m dimec``: the command line."""

from dimec.cli import main

main()
