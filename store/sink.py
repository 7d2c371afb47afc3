"""Write an HDF5 file so that neither a disk nor a Ctrl-C comes between HDF5 and its end.

HDF5 does not survive a file that it cannot close: on a full disk h5py 3.16 ends in a segmentation fault. So HDF5 writes
through a file that takes everything in silence once a write has failed, and the error is raised when the HDF5 file
is closed and gone.
"""

from __future__ import annotations

from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import h5py

from .undisturbed import undisturbed

__all__ = ["write_hdf5"]

T = TypeVar("T")


def write_hdf5(path: Path, build: Callable[[h5py.File], T], **options: Any) -> T:
    """Write an HDF5 file, in place of one that exists.

    Parameters
    ----------
    path
        Where it goes. After an error the file is there, and worth nothing.
    build
        Fills the open file; called in a thread of its own.
    options
        As ``h5py.File`` takes them.

    Returns
    -------
    object
        What ``build`` gives.

    Raises
    ------
    OSError
        The first thing that the system refused, or what ``build`` raises.
    """
    sink = _Sink(path)

    def write() -> T:
        with h5py.File(sink, "w", **options) as file:
            return build(file)

    error: Exception | None = None
    try:
        result = undisturbed(write, sink.give_up)
    except Exception as exc:  # noqa: BLE001 - raised below, if nothing came before it
        error = exc
    finally:
        sink.close()
    for first in (sink.error, error):
        if first is not None:
            raise first
    return result


class _Sink:
    """A binary file as h5py's ``fileobj`` driver wants it; never refuses a write."""

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "w+")
        self._at = self._end = 0
        self._drops = False
        self.error: BaseException | None = None
        """what the system refused first"""

    def read(self, size: int) -> bytes:
        raise NotImplementedError  # h5py looks whether it is there and takes readinto

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._at)
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset if whence == 0 else self._end + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        self._try(self._write, data)
        self._end = max(self._end, self._at + len(data))
        return len(data)

    def truncate(self, size: int) -> int:
        self._try(self._file.truncate, size)
        self._end = size
        return size

    def flush(self) -> None:
        """Do nothing: nothing is buffered here."""

    def give_up(self) -> None:
        """Drop whatever else is written."""
        self._drops = True

    def close(self) -> None:
        self._file.close()

    def _write(self, data: Any) -> None:
        self._file.seek(self._at)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])

    def _try(self, ask: Callable[[Any], object], what: Any) -> None:
        if self._drops:
            return
        try:
            ask(what)
        except BaseException as exc:  # noqa: BLE001 - raised when HDF5 has done
            self.error = exc.with_traceback(None)  # whose frames would hold HDF5's memory
            self._drops = True
