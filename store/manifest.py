"""An image source that is a list: a CSV or Parquet file that names image files, wherever they are.

Columns, by name; others (label, split, group ...) are left to whom they concern:

``path``
    The image file: absolute, or relative to ``root``, parts joined by ``/``. Nothing is trimmed or normalised.
``id``, optional
    What the image is called in the set: 1 to 4,096 bytes without NUL, each once. Where the column is missing, the
    path as written is the id; it must then be relative and have no part ``..``.

A CSV file is UTF-8 (a byte order mark is allowed), separated by commas, with a header, quoted as RFC 4180 says; empty
lines are passed over. In a Parquet file the columns are strings, or binary where names are not UTF-8.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import SourceError
from .folder import FolderScan, scan_folder
from .long_paths import stat_path
from .manifest_rows import Row, open_table, place_of
from .scan import IMAGE_EXTENSIONS, NOT_THERE, Found, Scan, SourceImage, decode_id, id_fault

__all__ = ["ManifestScan", "scan_manifest", "scan_source"]

MOST_FAULTS = 10
"""Faults that one error names; the rest is counted."""


class ManifestScan(Scan):
    """The images that a manifest lists, to be walked once or more; made by ``scan_manifest``.

    The list was read when this was made, and is kept sorted in a nameless file on disk; iterating looks at each file
    where it lies. One that is not there is told with its reason, not left out. It raises SourceError at the end when
    none at all was there: that is a disk that is not mounted, or a wrong root.
    """

    ids_are_paths = False

    def __init__(self, path: Path, root: Path, extensions: tuple[str, ...], entries: _Entries) -> None:
        self.root, self.manifest, self.extensions, self.ignored = root, path, extensions, entries.ignored
        self.started_ns = time.time_ns()
        self._entries, self._base = entries, os.fsencode(root)

    def __len__(self) -> int:
        return self._entries.count

    def __iter__(self) -> Iterator[Found]:
        self.started_ns = time.time_ns()
        there, first = 0, ""
        for key, path in self._entries:
            found = _look_at(key, os.path.join(self._base, path))  # noqa: PTH118  (bytes, not a Path)
            if found[1:4] != NOT_THERE:
                there += 1
            elif not first:
                first = f"{os.fsdecode(path)!r} ({found[4]})"
            yield found
        if not there:
            raise SourceError(
                f"{self.manifest}: none of the {len(self):,} files that it lists is there under {self.root}, such as "
                f"{first}; mount their disk, or name the folder that the paths start from; nothing was changed"
            )

    def image(self, key: bytes, size: int, mtime_ns: int, ctime_ns: int) -> SourceImage:
        """Give what was found as an image of this manifest."""
        path = self.root / os.fsdecode(self._entries.path_of(key))
        return SourceImage(decode_id(key), path, size, mtime_ns, ctime_ns)


def scan_manifest(
    path: Path | str, *, root: Path | str | None = None, extensions: Iterable[str] | None = None
) -> ManifestScan:
    """Give the images that a CSV or Parquet file lists; the module says which columns it has.

    Parameters
    ----------
    path
        File that ends in ``.csv`` or ``.parquet``; read here, once, in constant memory.
    root
        Folder that relative paths start from; by default the manifest's own.
    extensions
        Take only files with these endings; by default all that are listed.

    Raises
    ------
    SourceError
        When the file is missing, damaged or lists nothing, or rows cannot be used: empty, given twice, not UTF-8, an
        id that is too long or holds NUL. All are named, with the line (CSV) or row (Parquet), up to ten.
    MissingExtraError
        When it is a Parquet file and pyarrow is not installed.
    """
    path = Path(path)
    if root is not None and not Path(root).is_dir():
        raise SourceError(f"{root}: no such image folder; the paths of {path} start there")
    endings = () if extensions is None else tuple(sorted(extension.lower() for extension in extensions))
    return ManifestScan(path, path.parent if root is None else Path(root), endings, _Entries(path, endings))


def scan_source(
    source: Path | str, *, root: Path | str | None = None, extensions: Iterable[str] | None = None
) -> FolderScan | ManifestScan:
    """Give the images of a folder, or of a manifest: what ends in ``.csv`` or ``.parquet`` and is no folder.

    Parameters
    ----------
    source
        As ``scan_folder`` or ``scan_manifest`` takes it.
    root
        Folder that a manifest's relative paths start from.
    extensions
        File name endings; by default those of images in a folder, and all in a manifest.

    Raises
    ------
    SourceError
        As ``scan_folder`` and ``scan_manifest``; also when a folder is given together with ``root``.
    """
    path = Path(source)
    if path.suffix.lower() in {".csv", ".parquet"} and not path.is_dir():
        return scan_manifest(path, root=root, extensions=extensions)
    if root is not None:
        raise SourceError(f"{path}: a root ({root}) belongs to a manifest, and this is a folder")
    return scan_folder(path, extensions=IMAGE_EXTENSIONS if extensions is None else extensions)


class _Entries:
    """The rows of a manifest, in the order of their ids; SQLite deletes the nameless database with its connection."""

    def __init__(self, path: Path, endings: tuple[str, ...]) -> None:
        self.path, self.ignored = path, 0
        self._endings = tuple(os.fsencode(ending) for ending in endings)
        self._faults: list[str] = []
        self._more = 0
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        try:
            self._read()
        except sqlite3.OperationalError as exc:
            raise SourceError(
                f"{path}: cannot be sorted in the temporary folder ({exc}); let SQLITE_TMPDIR name one with room"
            ) from exc
        self.count = int(self._db.execute("SELECT count(*) FROM entries").fetchone()[0])
        if not self.count:
            raise SourceError(f"{path}: lists no images ({self.ignored:,} other files)")

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Give id and path, by the bytes of the ids."""
        return self._db.execute("SELECT id, coalesce(path, id) FROM entries ORDER BY id")

    def path_of(self, key: bytes) -> bytes:
        """Give the path of an id."""
        if not self._has_ids:
            return key
        found: bytes = self._db.execute("SELECT path FROM entries WHERE id = ?", (key,)).fetchone()[0]
        return found

    def _read(self) -> None:
        self._db.execute("PRAGMA journal_mode = OFF")  # what is cut off is thrown away
        self._db.execute("CREATE TABLE given (number INTEGER, id BLOB, path BLOB)")
        self._db.execute("CREATE TABLE entries (id BLOB PRIMARY KEY, path BLOB) WITHOUT ROWID")
        self._db.execute("BEGIN")
        with open_table(self.path) as table:
            self._has_ids = table.has_ids
            self._db.executemany("INSERT INTO given VALUES (?, ?, ?)", self._usable(table.rows))
        self._refuse_faults()
        try:
            self._db.execute("INSERT INTO entries SELECT id, path FROM given ORDER BY id")
        except sqlite3.IntegrityError:
            self._note_doubles()
            self._refuse_faults()
            raise
        self._db.execute("DROP TABLE given")
        self._db.execute("COMMIT")

    def _usable(self, rows: Iterator[Row]) -> Iterator[tuple[int, bytes, bytes | None]]:
        for row in rows:
            if fault := row.fault or self._fault(row):
                self._note(row.number, fault)
            elif self._endings and not row.path.lower().endswith(self._endings):
                self.ignored += 1
            else:
                yield row.number, *((row.id, row.path) if self._has_ids else (row.path, None))

    def _fault(self, row: Row) -> str:
        """Say why a row cannot be used; an empty string when it can."""
        if not row.path:
            return "empty path"
        if b"\0" in row.path:
            return f"path {decode_id(row.path[:60])!r}: a NUL byte is not allowed"
        if self._has_ids:
            return id_fault(row.id)
        if os.path.isabs(row.path) or b".." in row.path.split(b"/"):  # noqa: PTH117  (bytes, not a Path)
            shown = decode_id(row.path[:60])
            return f"path {shown!r} is absolute or has a part '..', so it cannot be the image's id; add a column 'id'"
        return id_fault(row.path)

    def _note(self, number: int, fault: str) -> None:
        if len(self._faults) < MOST_FAULTS:
            self._faults.append(f"{place_of(self.path, number)}: {fault}")
        else:
            self._more += 1

    def _note_doubles(self) -> None:
        doubles = self._db.execute(
            "SELECT id, min(number), max(number), count(*) FROM given GROUP BY id HAVING count(*) > 1 ORDER BY 2"
        )
        where = "line" if self.path.suffix.lower() == ".csv" else "row"
        for key, first, last, times in doubles:
            self._note(last, f"id {decode_id(key[:60])!r} is given {times} times, first in {where} {first}")

    def _refuse_faults(self) -> None:
        if self._faults:
            more = [f"... and {self._more:,} rows more"] if self._more else []
            raise SourceError("\n".join([*self._faults, *more]))

    def __del__(self) -> None:
        self._db.close()


def _look_at(key: bytes, path: bytes) -> Found:
    try:
        found = stat_path(path)
    except (FileNotFoundError, NotADirectoryError):
        return key, *NOT_THERE, "no such file"
    except OSError as exc:
        return key, *NOT_THERE, f"{exc.strerror}"
    trouble = "" if stat.S_ISREG(found.st_mode) else "not a regular file"
    return key, found.st_size, found.st_mtime_ns, found.st_ctime_ns, trouble
