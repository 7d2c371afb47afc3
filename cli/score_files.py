"""Image files to a bundle's numbers: stored features where a store has them, the frozen network for the rest.

This is where extraction and training meet, which never import each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from icecore.store import SourceImage, StoreError

if TYPE_CHECKING:
    from icecore.extract import Backbone
    from icecore.extract.known import Stretch
    from icecore.store.by_content import StoredFeatures
    from icecore.train import Bundle

__all__ = ["Scored", "Scorer"]

BLOCK = 256
"""Rows scored at a time; bounds what is held in memory."""
MOST = 4096
"""Images told at once, failed ones and such as need no scoring too."""
_Place = tuple[int, int]


class Scored(NamedTuple):
    """One image with what the bundle gave for it, or why there is nothing."""

    image: SourceImage
    """with the size and times of the file as it was read"""
    content: bytes | None
    """sha256 of the file; None where it was not read"""
    outputs: np.ndarray | None
    """(k,) float64: probabilities of classes or labels, or the one number of a regression; None where it failed"""
    kind: str = ""
    """kind of failure, as ``ImageError`` has it"""
    reason: str = ""
    """its reason"""


@dataclass
class Scorer:
    """Scores image files by a bundle."""

    bundle: Bundle
    """the model"""
    stored: StoredFeatures | None = None
    """features that need not be computed"""
    weights: str | None = None
    """the backbone's weights, where they are no longer at the recorded place"""
    device: str = "auto"
    """as ``extract_images`` takes it"""
    batch_size: int | None = None
    """as ``extract_images`` takes it"""
    threads: int | None = None
    """as ``extract_images`` takes it"""
    recall: Callable[[bytes], np.ndarray | None] | None = None
    """gives the numbers of a content that was scored before; called from all threads"""
    observe: Callable[[np.ndarray, np.ndarray], None] | None = None
    """is told features (n, D) and numbers (n, k) of the images that were extracted or stored"""
    counts: Counter[str] = field(default_factory=Counter)
    """images by where their numbers came from: extracted, stored, recalled; or failed"""

    def score_unread(self, images: Iterable[SourceImage]) -> Iterator[Scored]:
        """Score those images whose files are as they were when they were extracted, by size and times; pass others by.

        Yields
        ------
        Scored
            One for each that is known so, without its content.
        """
        stored, rest = self.stored, iter(images)
        while stored is not None and len(stored) and (chunk := list(islice(rest, BLOCK))):
            found = zip(chunk, stored.find_unread(chunk), strict=True)
            known = [(image, place) for image, place in found if place is not None]
            if known:
                outputs = self._outputs(stored.read([place for _, place in known]))
                self.counts["stored"] += len(known)
                yield from (Scored(image, None, row) for (image, _), row in zip(known, outputs, strict=True))

    def score(self, images: Iterable[SourceImage], count: int) -> Generator[Scored]:
        """Read and score images.

        Parameters
        ----------
        images
            What to score; consumed as it goes.
        count
            Their number.

        Yields
        ------
        Scored
            One an image, in their order. Its numbers are the same bits whatever was scored beside it. Close the
            generator to stop early.

        Raises
        ------
        WeightsError, ContractMismatchError
            When the weights cannot be found, or are not those of the contract.
        DeviceError, SourceLostError
            As ``extract_images``.
        """
        block = _Block()
        with closing(self._stretches(iter(images), count)) as stretches:
            for stretch in stretches:
                self._add(stretch, block)
                if len(block.waiting) >= BLOCK or len(block.done) >= MOST:
                    yield from self._finish(block)
                    block = _Block()
        yield from self._finish(block)

    def _stretches(self, images: Iterator[SourceImage], count: int) -> Generator[Stretch]:
        """Read images without the network as long as each is known, and with it from the first one on that is not."""
        from icecore.extract.known import read_known
        from icecore.extract.pipeline import default_threads

        is_known = self._is_known if self.stored or self.recall else None
        if is_known is None:
            rest = list(islice(images, 1))
        else:
            threads = default_threads() if self.threads is None else self.threads
            rest = yield from read_known(images, is_known, threads=threads)
        if not rest:
            return
        from icecore.extract import stream_features

        yield from stream_features(
            self._backbone(),
            self.bundle.columns,
            chain(rest, images),
            count=count,
            is_known=is_known,
            device=self.device,
            precision=self.bundle.contract.precision,
            batch_size=self.batch_size,
            threads=self.threads,
        )

    def _backbone(self) -> Backbone:
        from icecore.extract import WeightsError, backbone_for

        try:
            return backbone_for(self.bundle.contract, weights=self.weights, source=self.bundle.card["source"])
        except WeightsError as exc:
            if self.weights is not None:
                raise
            cure = (
                "this is where the bundle says its backbone's weights are; if they moved, name the place with --weights"
            )
            raise WeightsError(f"{exc}\n{cure}") from exc

    def _is_known(self, content: bytes) -> bool:
        if self.recall is not None and self.recall(content) is not None:
            return True
        return self.stored is not None and self.stored.has(content)

    def _add(self, stretch: Stretch, block: _Block) -> None:
        from icecore.extract.pipeline import Failed, Row

        rows: dict[bytes, int] = {}
        for outcome in stretch.outcomes:
            if isinstance(outcome, Failed):
                self.counts["failed"] += 1
                block.done.append(Scored(outcome.image, None, None, outcome.error.kind, outcome.error.reason))
                continue
            image, content = outcome
            if isinstance(outcome, Row):
                rows[content] = block.forwarded
                block.forwarded += 1
            if content in rows:
                self.counts["extracted"] += 1
                block.wait(Scored(image, content, None), rows[content])
            elif self.recall is not None and (outputs := self.recall(content)) is not None:
                self.counts["recalled"] += 1
                block.done.append(Scored(image, content, outputs))
            else:
                self.counts["stored"] += 1
                block.wait(Scored(image, content, None), self._place(content))
        block.parts.append(stretch.X)

    def _place(self, content: bytes) -> _Place:
        place = None if self.stored is None else self.stored.find([content])[0]
        if place is None:
            raise StoreError("features that were stored a moment ago are no more: gc has run meanwhile; predict again")
        return place

    def _finish(self, block: _Block) -> Iterator[Scored]:
        """Score what waits, and give all images of the block in their order."""
        if block.waiting:
            places = [source for _, source in block.waiting if isinstance(source, tuple)]
            X = np.vstack([part for part in block.parts if len(part)] or [np.empty((0, self.bundle.width), np.float32)])
            if places and self.stored is not None:
                X = np.vstack([X, self.stored.read(places)])
            outputs = self._outputs(X)
            row = block.forwarded
            for at, source in block.waiting:
                if isinstance(source, tuple):
                    source, row = row, row + 1
                block.done[at] = block.done[at]._replace(outputs=outputs[source])
        yield from block.done

    def _outputs(self, X: np.ndarray) -> np.ndarray:
        """Give the bundle's numbers, (n, k) float64."""
        outputs = self.bundle.outputs(X)
        if self.observe is not None:
            self.observe(X, outputs)
        return outputs.reshape(len(X), -1)


class _Block:
    """Images that wait to be scored together."""

    def __init__(self) -> None:
        self.done: list[Scored] = []
        """one an image, in their order"""
        self.waiting: list[tuple[int, int | _Place]] = []
        """those without numbers yet, by position, each with its row among the forwarded ones, or its stored place"""
        self.parts: list[np.ndarray] = []
        """features of those that were forwarded"""
        self.forwarded = 0
        """rows in ``parts``"""

    def wait(self, image: Scored, source: int | _Place) -> None:
        """Add an image whose numbers follow."""
        self.waiting.append((len(self.done), source))
        self.done.append(image)
