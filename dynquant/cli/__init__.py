"""The command line: thin commands over the pipeline's functions."""

from dynquant.cli.app import app, main

__all__ = ["app", "main"]
