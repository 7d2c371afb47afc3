"""Give a new segment its name on disk: announced in the catalog, written, synced, renamed; its transaction follows."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from . import catalog
from .catalog import Generation
from .commit import WrittenSegment
from .contract import Column
from .disk_errors import disk_errors
from .durable import make_folder, publish
from .segment import SegmentHeader, file_checksum, write_segment

__all__ = ["publish_segment"]


def publish_segment(
    folder: Path,
    db: sqlite3.Connection,
    set_name: str,
    generation: Generation,
    ids: Sequence[bytes],
    contents: Sequence[bytes],
    features: Mapping[Column, np.ndarray | Iterable[np.ndarray]],
    *,
    source: Mapping[str, Any],
    versions: Mapping[str, str],
    created: str | None = None,
) -> WrittenSegment:
    """Write a segment of a generation to disk under its final name.

    The name is entered in ``intents`` first, so that the next writer sweeps the file where the transaction that
    enters it never comes; where it fails, nothing is left behind at once.

    Parameters
    ----------
    folder, db
        The store, and its catalog open for writing, outside a transaction.
    set_name, generation
        Where the rows belong.
    ids, contents
        Image id and sha256 digest of each row.
    features
        ``(n, D)`` of each column in its stored dtype: whole, or in blocks of rows.
    source, versions
        Recorded with the segment.
    created
        When its rows were computed, ISO 8601, UTC; now by default. The names of images in a later segment count more
        when a lost catalog is rebuilt.

    Raises
    ------
    DiskError
        When the disk is full, or refuses otherwise.
    """
    name = uuid.uuid4().hex
    relative = f"segments/{set_name}/{generation.uuid}/{name}.h5"
    with catalog.transaction(db):
        db.execute("INSERT INTO intents VALUES (?, ?)", (name, relative))
    header = SegmentHeader(
        uuid=name,
        set_name=set_name,
        generation=generation.uuid,
        contract=generation.contract,
        columns=tuple(sorted(features, key=lambda column: column.name)),
        rows=len(ids),
        created=created or catalog.now("microseconds"),
        versions=versions,
        source=source,
    )
    digests = np.frombuffer(b"".join(contents), dtype=np.uint8).reshape(-1, 32)
    final = folder / relative
    with disk_errors(final):
        offsets, checksum, size = _write(final, header, ids, digests, features)
    return WrittenSegment(name, relative, size, checksum, offsets, contents)


def _write(
    final: Path,
    header: SegmentHeader,
    ids: Sequence[bytes],
    digests: np.ndarray,
    features: Mapping[Column, np.ndarray | Iterable[np.ndarray]],
) -> tuple[dict[Column, int], str, int]:
    """Write a segment and give it its name, or leave nothing; give its offsets, checksum and size."""
    temporary = final.with_suffix(".h5.tmp")
    try:
        make_folder(final.parent)
        offsets = write_segment(temporary, header, ids, digests, features)
        checksum, size = file_checksum(temporary), temporary.stat().st_size
        publish(temporary, final)
    except BaseException:
        for unfinished in (temporary, final):  # a full disk must not stay full of what nobody will read
            with suppress(OSError):
                unfinished.unlink()
        raise
    return offsets, checksum, size
