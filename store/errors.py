"""What can go wrong in a store, each with the facts as fields."""

from __future__ import annotations

import difflib
import errno
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contract import Difference

__all__ = [
    "AmbiguousLayerError",
    "ClosedArrayError",
    "ContractMismatchError",
    "DiskError",
    "ExportError",
    "ExportExistsError",
    "FormatError",
    "GenerationNotFoundError",
    "IncompleteColumnError",
    "LayerNotFoundError",
    "LockedError",
    "MissingExtraError",
    "NarrowingError",
    "RefusedError",
    "RunNotFoundError",
    "SetNotFoundError",
    "SourceError",
    "StoreDamagedError",
    "StoreError",
    "StoreNotFoundError",
    "UnknownImageError",
    "UnknownLabelError",
    "VersionNotFoundError",
    "suggest",
]


class StoreError(Exception):
    """Anything that a store refuses or finds wrong."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at this path."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path}: no feature store here (no catalog.sqlite); `icecore extract` makes one")

    def __str__(self) -> str:
        return str(self.args[0])


class StoreDamagedError(StoreError, OSError):
    """A file of the store is missing, cut short or changed."""


class DiskError(StoreError, OSError):
    """The disk or the system refuses: full, over quota, read-only, failing. What was committed is kept.

    Parameters
    ----------
    path
        File or folder that was being used.
    number
        ``errno``; decides the cure and whether the refusal may pass by itself.
    reason
        What the system or SQLite says; the words for ``number`` by default.
    """

    def __init__(self, path: object, number: int | None, reason: str = "") -> None:
        self.path = path
        self.transient = number in _TRANSIENT
        """whether the same run may succeed later without anybody changing anything"""
        cure = _CURES.get(number, "see what is wrong with the disk, and run again")
        told = reason or (os.strerror(number) if number else "refused")
        super().__init__(number, f"{path}: {told}; {cure}: everything that was committed is kept")

    def __str__(self) -> str:
        return str(self.args[1])


_PASSING = (
    "ENOSPC EDQUOT EIO EREMOTEIO EBUSY EAGAIN EINTR EMFILE ENFILE ENOMEM ESTALE ETIMEDOUT ENETDOWN ENETUNREACH "
    "EHOSTDOWN EHOSTUNREACH ECONNRESET"
)
_TRANSIENT = frozenset(getattr(errno, name) for name in _PASSING.split() if hasattr(errno, name))
_CURES: dict[int | None, str] = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "free some space or have the quota raised, and run again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f) and run again",
    errno.EROFS: "mount it for writing, or write to another place",
    errno.EACCES: "let this user write there, or write to another place",
    errno.EPERM: "let this user write there, or write to another place",
    errno.EBUSY: "close the other program that has the catalog open for writing, and run again",
    errno.EMFILE: "raise the limit on open files (ulimit -n) and run again",
}


class FormatError(StoreError, ValueError):
    """A file was written in a format version that this release does not read, or is no icecore file."""


class SourceError(StoreError, ValueError):
    """The image source cannot be used as it is."""


class ExportError(StoreError, ValueError):
    """Features cannot be exported as asked."""


class ExportExistsError(ExportError, FileExistsError):
    """A file to export to is there already, and was not to be replaced."""

    def __init__(self, path: object) -> None:
        super().__init__(f"{path}: exists already; choose another name, or replace it with overwrite=True (--force)")

    def __str__(self) -> str:
        return str(self.args[0])


class MissingExtraError(StoreError, ImportError):
    """A library of an optional extra is not installed."""

    def __init__(self, purpose: str, library: str, extra: str) -> None:
        self.library, self.extra = library, extra
        super().__init__(f"{purpose} needs {library}: pip install 'icecore[{extra}]'")


class SetNotFoundError(StoreError, LookupError):
    """The store has no feature set of this name."""

    def __init__(self, store: object, name: str, known: Sequence[str]) -> None:
        self.name, self.known = name, tuple(known)
        has = f"it has {', '.join(known)}" if known else "it has none yet; `icecore extract` makes one"
        super().__init__(f"{store}: no feature set {name!r}; {has}{suggest(name, known)}")


class LayerNotFoundError(StoreError, LookupError):
    """The feature set has no column of this name."""

    def __init__(self, set_name: str, layer: str, known: Sequence[str]) -> None:
        self.layer, self.known = layer, tuple(known)
        super().__init__(
            f"set {set_name!r} has no layer {layer!r}; it has {', '.join(known) or 'none'}{suggest(layer, known)}"
        )


class AmbiguousLayerError(StoreError, LookupError):
    """The layer is stored under several poolings or dtypes, so its bare name is not enough."""

    def __init__(self, set_name: str, layer: str, columns: Sequence[str]) -> None:
        self.layer, self.columns = layer, tuple(columns)
        super().__init__(
            f"set {set_name!r} holds layer {layer!r} as {', '.join(columns)}: name one of them, or a list to join them"
        )


class IncompleteColumnError(StoreError, ValueError):
    """Some images of the set have no value in the column asked for."""

    def __init__(self, set_name: str, column: str, present: int, total: int) -> None:
        self.column, self.present, self.total = column, present, total
        super().__init__(
            f"set {set_name!r}: {column} covers {present:,} of {total:,} images; "
            f"run `icecore extract` with this layer again, or read with missing='drop'"
        )


class UnknownImageError(StoreError, LookupError):
    """No features are here under these image ids."""

    def __init__(self, unknown: Sequence[str], total: int, near: Iterable[str] = ()) -> None:
        self.ids, self.total = tuple(unknown), total
        names = ", ".join(map(repr, self.ids[:3]))
        more = f" and {len(self.ids) - 3:,} more" if len(self.ids) > 3 else ""
        super().__init__(f"no image {names}{more} among the {total:,} here{suggest(self.ids[0], near)}")


class UnknownLabelError(StoreError, LookupError):
    """Some images have no label."""

    def __init__(self, unlabelled: Sequence[str], total: int) -> None:
        self.ids, self.total = tuple(unlabelled), total
        names = ", ".join(map(repr, self.ids[:3]))
        super().__init__(f"{len(self.ids):,} of {total:,} images have no label: {names}{', ...' * (len(self.ids) > 3)}")


class NarrowingError(StoreError, OverflowError):
    """A stored value is too large for the dtype asked for."""

    def __init__(self, column: str, dtype: str) -> None:
        self.column, self.dtype = column, dtype
        super().__init__(f"{column}: a value is too large for {dtype}; read it as float32")


class ClosedArrayError(StoreError, ValueError):
    """The feature array was closed."""

    def __init__(self) -> None:
        super().__init__("this feature array is closed; ask the feature set for it again")


class VersionNotFoundError(StoreError, LookupError):
    """The set has no such version or tag, or it was collected."""


class RunNotFoundError(StoreError, LookupError):
    """The store has no record of a run of this name, or of several whose names begin or end so."""

    def __init__(self, store: object, run: str, found: Sequence[str], known: Sequence[str]) -> None:
        self.run, self.found = run, tuple(found)
        told = f"{len(found)} runs are called so" if found else f"no run is called so{suggest(run, known)}"
        super().__init__(f"{store}: {run!r}: {told}; `icecore runs ls {store}` lists them")


class GenerationNotFoundError(StoreError, LookupError):
    """The store has no generation whose uuid begins so, or several."""


class RefusedError(StoreError, ValueError):
    """What is asked would lose or hide something that somebody relies on."""


class ContractMismatchError(StoreError, ValueError):
    """Two contracts differ, so their features must not meet."""

    def __init__(self, what: str, differences: Iterable[Difference], cure: str = "") -> None:
        self.differences = tuple(differences)
        lines = [f"  {d.field}: {d.ours!r} here, {d.theirs!r} there" for d in self.differences]
        super().__init__("\n".join([f"{what}: the contracts differ", *lines, *([cure] if cure else [])]))


@dataclass(frozen=True)
class Holder:
    """Who holds the writer's lock."""

    pid: int
    """process id"""
    host: str
    """host name"""
    command: str
    """what it runs"""
    since: str
    """when it took the lock, ISO 8601, UTC"""


class LockedError(StoreError, BlockingIOError):
    """Another run is writing to this store, or retraining this model."""

    def __init__(self, path: object, holder: Holder | None, doing: str = "written") -> None:
        self.holder = holder
        who = (
            f"pid {holder.pid} on {holder.host} ({holder.command}) since {holder.since}"
            if holder
            else "another process"
        )
        super().__init__(f"{path}: being {doing} by {who}; wait for it to end, or stop it")

    def __str__(self) -> str:
        return str(self.args[0])


def suggest(name: str, known: Iterable[str]) -> str:
    """Give '; did you mean ...?' for a name close to a known one, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
