"""`python -m lissom.cli` is `lissom`."""

from lissom.cli import main

main()
