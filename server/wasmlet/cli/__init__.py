"""The command `wasmlet`: options in, a running provider out."""

from wasmlet.cli.main import main

__all__ = ["main"]
