"""icecore.cli: options -> config -> one library call -> output. Heavy rooms are imported only by their commands."""

from .app import main

__all__ = ["main"]
