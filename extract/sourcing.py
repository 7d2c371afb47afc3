"""Where a run takes its images from: a folder, a manifest or a scan made before; and when it must not be believed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from icecore.store import Plan, Scan, scan_source

from .errors import RemovalRefusedError

__all__ = ["place_of", "refuse_removal", "scan_of"]


def scan_of(source: Path | str | Scan, extensions: Sequence[str] | None) -> Scan:
    """Give the scan of a path; one that was made before is taken as it is.

    Raises
    ------
    SourceError
        As ``scan_source``.
    ValueError
        When ``extensions`` come with a scan, which has its own.
    """
    if isinstance(source, (str, Path)):
        return scan_source(source, extensions=extensions)
    if extensions is not None:
        raise ValueError(f"the scan of {source.manifest or source.root} has extensions of its own; found {extensions}")
    return source


def place_of(scan: Scan) -> dict[str, str | None]:
    """Give what is recorded of a source: ``folder``, and ``manifest`` where there is one; absolute paths."""
    folder: dict[str, str | None] = {"folder": str(scan.root.absolute())}
    return folder if scan.manifest is None else {**folder, "manifest": str(scan.manifest.absolute())}


def refuse_removal(set_name: str, scan: Scan, plan: Plan, max_removed: float) -> None:
    """Refuse a plan that would remove too much.

    Raises
    ------
    RemovalRefusedError
        When a larger share of the set than ``max_removed``, 0 to 1, has vanished.
    """
    if plan.vanished > max_removed * plan.total:
        where = f"under {scan.root.absolute()}" if scan.manifest is None else f"in {scan.manifest}"
        raise RemovalRefusedError(set_name, where, gone=plan.vanished, total=plan.total, limit=max_removed)
