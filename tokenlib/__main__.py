"""`python -m tokenlib` is the command `tokenlib`."""

from tokenlib.cli import main

main(prog_name="tokenlib")
