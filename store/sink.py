"""The file below an HDF5 file that is being written: it keeps its first error to itself until HDF5 has done.

HDF5 does not survive a disk that refuses its last writes: h5py 3.16 ends in a segmentation fault where a file cannot
be closed because the disk is full. So HDF5 writes through this file, which takes everything in silence once a write
has failed, and the error is raised when the HDF5 file is closed and gone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py

__all__ = ["writing_hdf5"]


@contextmanager
def writing_hdf5(path: Path, **options: Any) -> Iterator[h5py.File]:
    """Open a new HDF5 file for writing, in place of one that exists.

    Parameters
    ----------
    path
        Where it goes. After an error the file is there, and worth nothing.
    options
        As ``h5py.File`` takes them.

    Raises
    ------
    OSError
        At the end of the block: the first thing that the system refused.
    """
    sink = _Sink(path)
    try:
        with h5py.File(sink, "w", **options) as file:
            yield file
    except SystemError as exc:  # how h5py tells a Ctrl-C that met it on its way here
        raise (exc.__cause__ or exc) from None
    finally:
        sink.close()


class _Sink:
    """A binary file as h5py's ``fileobj`` driver wants it."""

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "w+")
        self._at = self._end = 0
        self._error: BaseException | None = None

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
        if self._error is None:
            try:
                self._file.seek(self._at)
                done = 0
                while done < len(data):
                    done += self._file.write(data[done:])
            except BaseException as exc:  # noqa: BLE001 - kept, and raised by close
                self._error = exc.with_traceback(None)  # whose frames would hold HDF5's memory
        self._end = max(self._end, self._at + len(data))
        return len(data)

    def truncate(self, size: int) -> int:
        self._end = size
        if self._error is None:
            try:
                self._file.truncate(size)
            except BaseException as exc:  # noqa: BLE001 - likewise
                self._error = exc.with_traceback(None)
        return size

    def flush(self) -> None:
        """Do nothing: nothing is buffered here."""

    def close(self) -> None:
        self._file.close()
        if self._error is not None:
            raise self._error
