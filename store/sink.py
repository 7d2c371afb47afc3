"""Write an HDF5 file so that neither a disk nor a Ctrl-C comes between HDF5 and its end.

HDF5 does not survive a file that it cannot close: on a full disk h5py 3.16 ends in a segmentation fault. So HDF5 writes
through a file that takes everything in silence once a write has failed, and the error is raised when the HDF5 file
is closed and gone. It runs in a thread, for Python handles signals in the main one only, wherever that may be.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from typing import Any, Generic, TypeVar

import h5py

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
    work = _Work(_Sink(path), build, options)
    try:
        _thread.start_new_thread(work.run, ())
        work.waiting.acquire()
    except BaseException:
        work.stop()
        raise
    finally:
        work.sink.close()
    for error in (work.sink.error, work.error):
        if error is not None:
            raise error
    return work.result[0]


class _Work(Generic[T]):
    """What the thread does. Of locks and flags only, as ``threading`` has joins that a Ctrl-C leaves in disorder."""

    def __init__(self, sink: _Sink, build: Callable[[h5py.File], T], options: dict[str, Any]) -> None:
        self.sink, self.build, self.options = sink, build, options
        self.error: BaseException | None = None
        self.result: list[T] = []
        self.ended = False
        self.waiting = _thread.allocate_lock()
        self.waiting.acquire()
        self._token = [True]  # whoever takes it decides whether there will be work

    def run(self) -> None:
        try:
            self._token.pop()
            with h5py.File(self.sink, "w", **self.options) as file:
                self.result.append(self.build(file))
        except BaseException as exc:  # noqa: BLE001 - raised by whoever waits
            self.error = exc
        finally:
            self.ended = True
            self.waiting.release()

    def stop(self) -> None:
        """Keep the thread from beginning, or wait for its end, with nothing more to write."""
        self.sink.give_up()
        try:
            self._token.pop()
        except IndexError:
            while not self.ended:
                time.sleep(0.001)


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
