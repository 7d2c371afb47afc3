"""The batch size of a machine is found once, by passes that cost little, and remembered; what is asked for is taken."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import Backbone, ExtractReport, Preprocess, features_of, load_backbone
from icecore.extract import batch_sizes as room
from icecore.extract.batch_sizes import BatchSize, best_of, images_of_search, settle_batch_size, sizes_folder
from icecore.extract.events import Event
from icecore.extract.layers import columns_for
from icecore.extract.machine import check_machine
from icecore.extract.trunk import Trunk, compiled_key
from icecore.store import Column

SMALL = Preprocess(resize=32, crop=32)
CPU = torch.device("cpu")
MANY = 10**6
EIGHT = {1: 9.0, 2: 8.0, 4: 6.0, 8: 5.1, 16: 5.0}
"""Seconds an image of a network that likes large batches: 8 is within 3 % of the best."""

Extract = Callable[..., ExtractReport]
Settle = Callable[..., BatchSize]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of each test's own, not there yet."""
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def make(own_net: str) -> Callable[..., tuple[Backbone, tuple[Column, ...]]]:
    def make(
        *, layers: tuple[str, ...] = ("block1", "block2"), pooling: str = "avg", crop: int = 32, **options: Any
    ) -> tuple[Backbone, tuple[Column, ...]]:
        backbone = load_backbone(own_net, preprocess=Preprocess(resize=64, crop=crop), **options)
        return backbone, columns_for(backbone.layers, list(layers), [pooling])

    return make


@pytest.fixture
def settle(make: Callable[..., Any]) -> Settle:
    """Settle for the small network, by times that are given."""

    def settle(images: int = MANY, times: Mapping[int, float | None] | None = None, **options: Any) -> BatchSize:
        backbone, columns = make()
        measure = never if times is None else times.__getitem__
        return settle_batch_size(backbone, columns, CPU, "fp32", images, measure=measure, **options)

    return settle


def never(size: int) -> float:
    raise AssertionError("searched")


def files(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.is_file()] if cache.exists() else []


@pytest.mark.parametrize(
    ("times", "best"),
    [
        (EIGHT, 8),
        ({1: 1.0, 2: 1.0, 4: 1.0}, 1),
        ({1: 1.031, 2: 1.029, 4: 1.0, 8: 1.5}, 2),
        ({1: 3.0, 2: 2.0, 4: 1.0}, 4),
        ({32: 0.5}, 32),
    ],
)
def test_the_smallest_within_three_percent_of_the_best_is_taken(times: Mapping[int, float], best: int) -> None:
    assert best_of(times) == best


def test_what_was_found_is_told_once_and_then_remembered_whatever_the_number_of_images(settle: Settle) -> None:
    images = 50 * images_of_search(CPU, room.default_lanes())
    found = settle(images, EIGHT)
    assert found.size == 8
    assert found.why == f"found on this machine: 8 ({images // 50:,} images, 2.0% of the run's, were spent)"
    assert [settle(1), settle(MANY)] == [BatchSize(8, ""), BatchSize(8, "")]


@pytest.mark.slow
def test_another_process_remembers_it_too(settle: Settle, tmp_path: Path) -> None:
    settle(MANY, EIGHT)
    code = (
        "import torch\n"
        "torch.set_num_threads(1)\n"
        "from icecore.extract import Preprocess, load_backbone\n"
        "from icecore.extract.batch_sizes import settle_batch_size\n"
        "from icecore.extract.layers import columns_for\n"
        "backbone = load_backbone('ownnets:net', preprocess=Preprocess(resize=64, crop=32))\n"
        "columns = columns_for(backbone.layers, ['block2'], ['max'])\n"
        "print(settle_batch_size(backbone, columns, torch.device('cpu'), 'fp32', 3).size)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "own")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "8\n"


def test_where_the_search_would_cost_more_than_two_percent_the_default_is_taken_and_nothing_kept(
    settle: Settle, cache: Path
) -> None:
    enough = 50 * images_of_search(CPU, room.default_lanes())
    assert settle(enough - 1) == BatchSize(4, "")
    assert files(cache) == []
    assert settle(enough, EIGHT).size == 8
    assert (images_of_search(CPU, 2), images_of_search(torch.device("cuda"), 1)) == (206, 3296)


@pytest.mark.parametrize(
    "damaged",
    [b"", b"\xff", b"null", b"{}", b'{"format": 2, "batch_size": 2}', b'{"format": 1, "batch_size": 0}',
     b'{"format": 1, "batch_size": true}', b'{"format": 1, "batch_size": "8"}'],
)  # fmt: skip
def test_a_file_that_says_nothing_is_told_and_searched_anew(
    damaged: bytes, settle: Settle, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settle(MANY, EIGHT)
    (file,) = files(cache)
    sound = file.read_bytes()
    file.write_bytes(damaged)
    assert settle(3) == BatchSize(4, "")
    assert f"{file}: cannot be read" in caplog.text
    assert file.read_bytes() == damaged
    assert settle(MANY, EIGHT).why.startswith("found on this machine: 8 ")
    assert file.read_bytes() == sound


def test_where_nothing_can_be_kept_nothing_is_searched_and_the_run_goes_on(
    settle: Settle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "file" / "cache"))
    assert settle(MANY) == BatchSize(4, "")
    assert "batch sizes cannot be remembered" in caplog.text
    assert "set ICECORE_CACHE to a folder of your own" in caplog.text


def test_a_disk_that_is_full_after_the_search_leaves_the_default(
    settle: Settle, small_disk: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk = small_disk(64)
    (disk.path / "batch-sizes").mkdir()
    disk.leave(0)
    monkeypatch.setenv("ICECORE_CACHE", str(disk.path))
    assert settle(MANY, EIGHT) == BatchSize(4, "")
    assert "No space left on device" in caplog.text
    assert list((disk.path / "batch-sizes").iterdir()) == []


@pytest.mark.parametrize("how", ["told", "raised"])
def test_a_lack_of_memory_ends_the_search_at_the_largest_that_fits(how: str, make: Callable[..., Any]) -> None:
    asked: list[int] = []

    def measure(size: int) -> float | None:
        asked.append(size)
        if size < 4:
            return 1 / size
        if how == "raised":
            raise torch.OutOfMemoryError("out of memory")
        return None

    assert settle_batch_size(*make(), CPU, "fp32", MANY, measure=measure).size == 2
    assert asked == [1, 2, 4]


def test_where_not_even_the_smallest_fits_the_default_is_taken_and_another_error_is_told(
    settle: Settle, make: Callable[..., Any], cache: Path
) -> None:
    assert settle(MANY, {1: None}) == BatchSize(4, "")
    assert files(cache) == []

    def broken(size: int) -> float:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        settle_batch_size(*make(), CPU, "fp32", MANY, measure=broken)


def test_what_another_process_has_kept_meanwhile_is_taken(settle: Settle, make: Callable[..., Any]) -> None:
    def measure(size: int) -> float:
        settle(MANY, EIGHT) if size == 1 else None
        return 1.0

    assert settle_batch_size(*make(), CPU, "fp32", MANY, measure=measure).size == 8


def test_the_name_changes_with_all_that_may_change_the_answer_and_with_nothing_else(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(precision: str = "fp32", device: torch.device = CPU, compilation: Any = "auto", **options: Any) -> str:
        return room._key(*make(**options), device, precision, compilation)

    plain = key()
    assert key(pooling="max") == key(layers=("block2",)) == key(compilation="never") == plain
    others = [
        key("bf16"),
        key(layers=("block1",)),
        key(crop=64),
        key(arguments={"width": 16}),
        key(views=["flip"]),
    ]
    for name, value in (("default_lanes", lambda: 7), ("cpu_name", lambda: "another processor")):
        with monkeypatch.context() as patch:
            patch.setattr(room, name, value)
            others.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9.9")
        others.append(key())
    for name, memory in (("H100", 80), ("H200", 80), ("H100", 40)):
        with monkeypatch.context() as patch:
            about = SimpleNamespace(name=name, total_memory=memory)
            patch.setattr(torch.cuda, "get_device_properties", lambda device, about=about: about)
            others.append(key(device=torch.device("cuda", 0)))
    about = SimpleNamespace(name="H100", total_memory=80)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: about)
    others.append(key(device=torch.device("cuda", 0), compilation="never"))  # no CUDA graph
    assert len({plain, *others}) == 1 + len(others)


def test_where_the_default_is_compiled_already_no_other_size_is_searched(
    settle: Settle, monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]
) -> None:
    backbone, columns = make()
    kept = compiled_key(backbone, columns, "fp32", 4)
    monkeypatch.setattr(room, "is_kept", lambda key: key == kept)
    assert settle(MANY) == BatchSize(4, "")
    assert settle(MANY, EIGHT, compilation="never").size == 8
    assert settle(MANY).size == 8, "remembered goes before it"


@pytest.mark.parametrize("views", [[], ["flip", "five-crop"]])
def test_a_search_forwards_as_many_images_as_it_says_and_tries_each_size(
    views: list[str], make: Callable[..., Any], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    start = Trunk.start
    monkeypatch.setattr(Trunk, "start", lambda self, pixels: seen.append(pixels.shape) or start(self, pixels))
    found = settle_batch_size(*make(views=views), CPU, "fp32", MANY, compilation="never")
    spent = images_of_search(CPU, room.default_lanes())
    assert sum(shape[0] for shape in seen) == spent
    assert found.why == f"found on this machine: {found.size} ({spent} images, 0.0% of the run's, were spent)"
    (file,) = files(cache)
    told = json.loads(file.read_bytes())
    assert told["batch_size"] == found.size
    assert list(map(int, told["seconds_an_image"])) == [1, 2, 4, 8, 16]
    assert all(0 < seconds < 1 for seconds in told["seconds_an_image"].values())


def test_passes_that_were_made_smaller_do_not_count(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trunk, "pass_size", property(lambda self: min(self.batch_size, 2)))
    assert settle_batch_size(*make(), CPU, "fp32", MANY).size <= 2


def test_a_run_takes_what_is_remembered_and_what_is_asked_for_goes_before_it(
    extract: Extract, forwards: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(room, "SHARE", 1e9)
    monkeypatch.setattr(room, "_noise", lambda *_: EIGHT.__getitem__)
    events: list[Event] = []
    first = extract(batch_size=None, events=events.append)
    assert (first.batch_size, first.batch_size_why.partition(" (")[0]) == (8, "found on this machine: 8")
    assert forwards == [8]
    told = {event.kind: event.facts for event in events}
    assert told["planned"]["batch_size"] == told["finished"]["batch_size"] == 8
    assert told["finished"]["batch_size_why"] == first.batch_size_why
    monkeypatch.setattr(room, "_noise", lambda *_: never)
    for number, (asked, expected) in enumerate([(3, 3), (None, 8)]):
        (tmp_path / "store").rename(tmp_path / f"store {number}")
        again = extract(batch_size=asked)
        assert (again.batch_size, again.batch_size_why, max(forwards[1:])) == (expected, "", expected)
    assert extract(batch_size=None).forwarded == 0
    assert extract(batch_size=None, dry_run=True).batch_size is None


def test_predict_takes_what_is_remembered(
    extract: Extract, photos: Path, own_net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = load_backbone(own_net, preprocess=SMALL)
    columns = columns_for(backbone.layers, ["block2"], ["avg"])
    settle_batch_size(backbone, columns, CPU, "fp32", MANY, measure=EIGHT.__getitem__)
    sizes: list[int] = []
    init = Trunk.__init__

    def noting(self: Trunk, *args: Any, **options: Any) -> None:
        sizes.append(options["batch_size"])
        init(self, *args, **options)

    monkeypatch.setattr(Trunk, "__init__", noting)
    asked = sorted(photos.rglob("*.png"))
    for count, batch_size, expected in ((9, None, 8), (5, None, 5), (9, 2, 2)):
        found = list(features_of(backbone, columns, asked[:count], device="cpu", batch_size=batch_size))
        assert (len(found), sizes.pop()) == (count, expected)
        assert all(isinstance(features[columns[0]], np.ndarray) for _, features in found)  # type: ignore[index]


def test_doctor_counts_what_is_remembered(settle: Settle) -> None:
    def told() -> Any:
        return next(check for check in check_machine() if check.name == "batch sizes")

    assert told().facts == {"remembered": 0}
    settle(MANY, EIGHT)
    assert told().facts == {"remembered": 1}
    assert told().found == f"1 found here before, in {sizes_folder()}"


def test_what_is_chosen_is_logged(settle: Settle, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "icecore.extract.batch_sizes")
    settle(MANY, EIGHT)
    settle(1)
    searched, remembered = (record.getMessage() for record in caplog.records)
    assert searched.startswith("batch size found on this machine: 8 (")
    assert searched.endswith("{1: 9000.0, 2: 8000.0, 4: 6000.0, 8: 5100.0, 16: 5000.0}")
    assert remembered.startswith(f"batches of 8 images, remembered in {sizes_folder()}")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_a_gpu_a_real_search_gives_a_size_that_it_tried(make: Callable[..., Any], cache: Path) -> None:
    found = settle_batch_size(*make(), torch.device("cuda", 0), "fp32", MANY)
    assert found.size in room.SIZES["cuda"]
    assert len(files(cache)) == 1
