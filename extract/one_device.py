"""Images through the network on one device, in this process."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing

from icecore.store import Column, SourceImage

from .line import Features, Line
from .loaders import Loader, open_loader
from .pipeline import Batch, read_batches
from .trunk import Trunk
from .views import crops_for
from .work import State, Work

__all__ = ["OneDevice"]


class OneDevice:
    """Reads images and forwards them. Close it, whatever has happened, after the iterator of ``through``.

    Parameters
    ----------
    work
        What to compute with; its columns are not looked at.
    columns
        What to compute.
    is_known
        Says whether a sha256 digest has these already; called from all threads.
    guard
        Called before the first pass; raises where it must not begin.
    images
        Number of images that wait.
    """

    def __init__(
        self,
        work: Work,
        columns: Sequence[Column],
        *,
        is_known: Callable[[bytes], bool],
        guard: Callable[[], None],
        images: int,
    ) -> None:
        self._work, self._columns, self._images = work, columns, images
        self._is_known, self._guard = is_known, guard
        self._line = Line(self._trunk)
        self._engine, self._why = "", ""
        self._loader: Loader | None = None

    @property
    def state(self) -> State:
        """What the device has done so far."""
        decoded = tuple(self._loader.counts.items()) if self._loader is not None else ()
        return State(self._line.seconds, self._engine, self._why, self._line.pass_size, decoded)

    def through(self, images: Iterable[SourceImage]) -> Generator[tuple[Batch, Features]]:
        """Give the images in batches with their features; record each before asking for the next.

        Raises
        ------
        SourceLostError
            As ``read_batches``, after the batches before it were given.
        """
        work, line = self._work, self._line
        preprocess, crops = work.backbone.preprocess, crops_for(work.backbone.views, self._columns)
        self._loader = open_loader(preprocess, device=work.device, max_pixels=work.max_pixels, crops=crops)
        batches = read_batches(
            images,
            preprocess=preprocess,
            batch_size=work.batch_size,
            threads=work.threads,
            is_known=lambda content: content in line.contents or self._is_known(content),
            max_pixels=work.max_pixels,
            crops=crops,
            load_pixels=self._loader.load,
        )
        with closing(self._loader), closing(batches):
            yield from line.through(batches)

    def close(self) -> None:
        """Wait for the passes that were begun and let go of the network."""
        self._line.close()

    def _trunk(self) -> Trunk:
        self._guard()
        trunk = Trunk(
            self._work.backbone,
            self._columns,
            device=self._work.device,
            precision=self._work.precision,
            batch_size=self._work.batch_size,
            compilation=self._work.compilation,
            images=self._images,
        )
        self._engine, self._why = trunk.engine, trunk.why
        return trunk
