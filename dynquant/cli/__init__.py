"""The command line: thin commands over `convert`, the queue and the watcher."""

from dynquant.cli.ending import main

__all__ = ["main"]
