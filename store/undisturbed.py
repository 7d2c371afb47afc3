"""Do something with HDF5 where no Ctrl-C reaches it: in a thread, for Python handles signals in the main one only.

HDF5 calls back into Python when it lists attributes and when it writes through a file object. An interrupt there
becomes a ``SystemError``, or is swallowed.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["undisturbed"]

T = TypeVar("T")


def undisturbed(do: Callable[[], T], give_up: Callable[[], object] | None = None) -> T:
    """Call ``do`` in a thread of its own and wait for it.

    Parameters
    ----------
    do
        What is done.
    give_up
        Called when whoever waits is interrupted, so that ``do`` ends soon.

    Returns
    -------
    object
        What ``do`` gives.

    Raises
    ------
    BaseException
        What ``do`` raises; or what interrupted the waiting, when ``do`` has ended or will never begin.
    """
    work = _Work(do)
    try:
        _thread.start_new_thread(work.run, ())
        work.waiting.acquire()
    except BaseException:
        if give_up is not None:
            give_up()
        work.stop()
        raise
    if work.error is not None:
        raise work.error
    return work.result[0]


class _Work(Generic[T]):
    """What the thread does. Of locks and flags only, as ``threading`` has joins that a Ctrl-C leaves in disorder."""

    def __init__(self, do: Callable[[], T]) -> None:
        self.do = do
        self.error: BaseException | None = None
        self.result: list[T] = []
        self.ended = False
        self.waiting = _thread.allocate_lock()
        self.waiting.acquire()
        self._token = [True]  # whoever takes it decides whether there will be work

    def run(self) -> None:
        try:
            self._token.pop()
            self.result.append(self.do())
        except BaseException as exc:  # noqa: BLE001 - raised by whoever waits
            self.error = exc
        finally:
            self.ended = True
            self.waiting.release()

    def stop(self) -> None:
        """Keep the thread from beginning, or wait for its end."""
        try:
            self._token.pop()
        except IndexError:
            while not self.ended:
                time.sleep(0.001)
