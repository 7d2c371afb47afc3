"""Several batches under way: order, duplicates of what is under way, and what a lost source leaves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.extract import Backbone, Preprocess, load_backbone
from icecore.extract.errors import SourceLostError
from icecore.extract.layers import columns_for
from icecore.extract.line import Line
from icecore.extract.pipeline import Batch, Linked, Row
from icecore.extract.trunk import Trunk
from icecore.store import Column, SourceImage

SIDE = 16


class Begun:
    """A trunk whose passes end when they are told to; what each gives is the first pixel of its images."""

    at_once = 2
    seconds = 0.0

    def __init__(self) -> None:
        self.started: list[int] = []
        self.taken: list[int] = []
        self.closed = False

    def start(self, pixels: np.ndarray) -> Callable[[], Any]:
        number = int(pixels[0, 0, 0, 0])
        self.started.append(number)

        def wait() -> Any:
            self.taken.append(number)
            return {"first": pixels[:, 0, 0, 0]}

        return wait

    def close(self) -> None:
        self.closed = True


def batch(*numbers: int, links: int = 0) -> Batch:
    def image(number: int) -> SourceImage:
        return SourceImage(str(number), Path("x"), 1, 1, 1)

    outcomes = [Row(image(n), bytes([n])) for n in numbers]
    linked = [Linked(image(100 + n), bytes([200])) for n in range(links)]
    pixels = np.array(numbers, np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 2), np.uint8)
    return Batch((*outcomes, *linked), pixels)


def test_batches_come_back_in_order_with_their_own_features_and_so_many_are_under_way() -> None:
    trunk = Begun()
    line = Line(lambda: trunk)  # type: ignore[arg-type, return-value]
    seen = []
    for number, (given, features) in enumerate(line.through(batch(n) for n in range(6))):
        assert len(trunk.started) <= number + 1 + Begun.at_once
        assert len(trunk.started) >= min(6, number + Begun.at_once)
        seen.append((given.outcomes[0].image.id, features["first"].tolist()))  # type: ignore[index, union-attr]
    assert seen == [(str(n), [n]) for n in range(6)]
    assert line.contents == set()


def test_a_content_is_under_way_until_what_follows_its_batch_is_asked_for() -> None:
    line = Line(lambda: Begun())  # type: ignore[arg-type, return-value]
    stream = line.through(iter([batch(1), batch(2)]))
    next(stream)
    assert {b"\x01", b"\x02"} == line.contents  # the first one is being recorded
    next(stream)
    assert line.contents == {b"\x02"}
    assert list(stream) == []
    assert line.contents == set()


def test_batches_without_rows_do_not_pile_up_behind_a_pass() -> None:
    asked = 0

    def batches() -> Iterator[Batch]:
        nonlocal asked
        yield batch(1)
        for _ in range(50):
            asked += 1
            yield batch(links=3)

    for number, _ in enumerate(Line(lambda: Begun()).through(batches())):  # type: ignore[arg-type, return-value]
        assert asked <= number + 1 + Begun.at_once


def test_without_rows_there_is_no_network() -> None:
    def refuse() -> Trunk:
        raise AssertionError("made for nothing")

    line = Line(refuse)
    assert [len(b.outcomes) for b, _ in line.through(iter([batch(links=2), batch(links=1)]))] == [2, 1]
    line.close()
    assert line.seconds == 0.0


def test_what_is_under_way_is_given_before_a_lost_source_is_told() -> None:
    def batches() -> Iterator[Batch]:
        yield batch(1)
        yield batch(2)
        raise SourceLostError("3", "gone", failures=50)

    trunk = Begun()
    line = Line(lambda: trunk)  # type: ignore[arg-type, return-value]
    given = []
    with pytest.raises(SourceLostError):
        for one, _ in line.through(batches()):
            given.append(one.outcomes[0].image.id)
    assert given == ["1", "2"]
    line.close()
    assert trunk.closed


@pytest.fixture
def made(own_net: str) -> tuple[Backbone, tuple[Column, ...]]:
    backbone = load_backbone(own_net, preprocess=Preprocess(resize=SIDE, crop=SIDE))
    return backbone, columns_for(backbone.layers, ["block1", "block2"], ["avg", "max"], dtype="float32")


def pixels(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 3, SIDE, SIDE), dtype=np.uint8)


def test_passes_begun_together_are_those_begun_one_by_one(made: tuple[Backbone, tuple[Column, ...]]) -> None:
    backbone, columns = made
    trunk = Trunk(backbone, columns, device="cpu", batch_size=4)
    waits = [trunk.start(pixels(1 + n % 4, n)) for n in range(20)]
    for n, wait in reversed(list(enumerate(waits))):
        found, alone = wait(), trunk.forward(pixels(1 + n % 4, n))
        for column in columns:
            np.testing.assert_array_equal(found[column], alone[column])
    assert trunk.seconds > 0
    trunk.close()


def test_features_are_the_same_bits_whatever_the_number_of_lanes(
    made: tuple[Backbone, tuple[Column, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, columns = made
    found = []
    for lanes in (1, 2, 5):
        monkeypatch.setattr("icecore.extract.trunk.default_lanes", lambda lanes=lanes: lanes)
        trunk = Trunk(backbone, columns, device="cpu", batch_size=4)
        found.append([wait() for wait in [trunk.start(pixels(4, n)) for n in range(6)]])
        trunk.close()
    for several in found[1:]:
        for one, other in zip(found[0], several, strict=True):
            for column in columns:
                np.testing.assert_array_equal(one[column], other[column])


def test_an_error_of_a_pass_is_raised_to_who_waits_for_it(made: tuple[Backbone, tuple[Column, ...]]) -> None:
    backbone, columns = made
    trunk = Trunk(backbone, columns, device="cpu", batch_size=4)
    trunk._runner.forward = lambda batch: (batch[99],)  # type: ignore[union-attr]
    wait = trunk.start(pixels(2))
    with pytest.raises(IndexError, match="99"):
        wait()
    trunk.close()


def test_a_closed_trunk_leaves_no_thread_and_torch_its_own_number_of_them(
    made: tuple[Backbone, tuple[Column, ...]],
) -> None:
    import torch

    before = torch.get_num_threads()
    trunk = Trunk(*made, device="cpu", batch_size=4)
    trunk.forward(pixels(3))
    trunk.close()
    assert torch.get_num_threads() == before
    counted: list[int] = []
    later = threading.Thread(target=lambda: counted.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert counted == [before]
    assert not [t for t in threading.enumerate() if t.name.startswith("icecore-forward")]


def test_two_trunks_at_a_time_leave_torch_its_threads_whatever_the_order_of_closing(
    made: tuple[Backbone, tuple[Column, ...]],
) -> None:
    import torch

    before = torch.get_num_threads()
    first = Trunk(*made, device="cpu", batch_size=4)
    first.forward(pixels(2))
    opened: list[Trunk] = []
    maker = threading.Thread(target=lambda: opened.append(Trunk(*made, device="cpu", batch_size=4)))
    maker.start()
    maker.join()
    opened[0].forward(pixels(2))
    first.close()
    opened[0].close()
    counted: list[int] = []
    later = threading.Thread(target=lambda: counted.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (torch.get_num_threads(), counted) == (before, [before])


def test_rows_do_not_hold_the_layer_that_they_were_cut_from() -> None:
    import torch
    from icecore.extract.lanes import Lanes

    lanes = Lanes(lambda batch: (batch.float().flatten(1)[:, :5],), size=2, count=1)
    (rows,) = lanes.start(pixels(2))()
    lanes.close()
    assert rows.base is None or rows.base.nbytes == rows.nbytes
    assert torch.get_num_threads() >= 1
