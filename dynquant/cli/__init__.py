"""The command line: thin commands over the pipeline's functions."""

from dynquant.cli.ending import main

__all__ = ["main"]
