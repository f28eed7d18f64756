"""`python -m dynquant`."""

from dynquant.cli import main

main()
