"""Files of a store that are moved: aside to ``quarantine/``, or back to their place. Nothing is ever deleted here."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from .durable import fsync_folder, make_folder

__all__ = ["QUARANTINE", "Moved", "Movements"]

QUARANTINE = "quarantine"
"""Folder, in the store, of what a repair has moved aside; may be deleted once nothing in it is missed."""


@dataclass(frozen=True)
class Moved:
    """A file that was moved, or would be."""

    path: str
    """where it was, relative to the store"""
    to: str
    """where it is now"""
    what: str
    """why"""


class Movements:
    """Moves files, and keeps count; on a dry run it only counts."""

    def __init__(self, folder: Path, *, dry_run: bool) -> None:
        self.done: list[Moved] = []
        self.folder, self.dry_run = folder, dry_run

    def aside(self, relative: str, what: str) -> None:
        """Move a file to the quarantine, under its own name or one derived from it; nothing where none is there."""
        if os.path.lexists(self.folder / relative):
            self._move(relative, self._free_name(Path(relative)), what)

    def back(self, relative: str, home: str) -> None:
        """Move a file to the place that it says is its own."""
        self.aside(home, "is not the file that belongs there")
        self._move(relative, home, "put back in its place")

    def _move(self, relative: str, to: str, what: str) -> None:
        self.done.append(Moved(relative, to, what))
        if self.dry_run:
            return
        source, target = self.folder / relative, self.folder / to
        make_folder(target.parent)
        shutil.move(source, target)  # a folder of the store may be a link to another disk
        fsync_folder(target.parent)
        fsync_folder(source.parent)

    def _free_name(self, path: Path) -> str:
        taken = {moved.to for moved in self.done}
        number = 0
        while True:
            name = f"{QUARANTINE}/{path.name}" + (f".{number}" if number else "")
            if name not in taken and not os.path.lexists(self.folder / name):
                return name
            number += 1
