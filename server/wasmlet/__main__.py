"""`python -m wasmlet`."""

from wasmlet.cli import main

main()
