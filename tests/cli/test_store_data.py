"""``icecore store status | errors | du``: how a store stands, for people and for schedulers."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.store import FeatureStore

Icecore = Callable[..., Any]


def walked(folder: Path) -> int:
    return sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(folder) for name in names)


@pytest.fixture
def broken(icecore: Icecore, trained: Any) -> Any:
    """Two images that are none: one of them of a name that is no UTF-8 and has a line end and a comma."""
    os.write(fd := os.open(bytes(trained.photos) + b"/val/red/a,\xff\n.png", os.O_CREAT | os.O_WRONLY), b"text")
    os.close(fd)
    (trained.photos / "val" / "red" / "empty.png").write_bytes(b"")
    assert icecore("extract", trained.config).code == 5
    return trained


def test_status_of_a_store_tells_how_each_set_stands(icecore: Icecore, broken: Any) -> None:
    done = icecore("store", "status", broken.store)
    assert (done.code, done.told) == (0, "")
    facts = icecore("store", "status", broken.store, "--json").outcome
    assert f"{broken.store}: digest {facts['digest'][:16]}, catalog format 2\n" in done.text
    assert "photos: failed 2 decode; `icecore store errors` lists them" in done.text
    (photos,) = facts["sets"]
    assert (photos["set"], photos["images"], photos["failed"], photos["version"]) == ("photos", 18, {"decode": 2}, 2)
    assert photos["columns"] == {"features.3:avg": 18}
    assert (facts["locked"], facts["writer"], facts["leftovers"], photos["pending"]) == (False, None, 0, None)


def test_status_tells_a_scheduler_whether_anything_has_changed(icecore: Icecore, trained: Any) -> None:
    def digest() -> str:
        return str(icecore("store", "status", trained.store, "photos", "--json").outcome["digest"])

    first = digest()
    assert icecore("extract", trained.config).code == 0
    assert digest() == first
    next(trained.photos.rglob("*.png")).unlink()
    assert icecore("extract", trained.config).code == 0
    assert digest() != first


def test_status_tells_who_writes(icecore: Icecore, trained: Any) -> None:
    with FeatureStore.open(trained.store) as store:
        photos = store["photos"]
        with store.writer("photos", photos.contract, photos.columns, command="nightly"):
            done = icecore("store", "status", trained.store)
            facts = icecore("store", "status", trained.store, "--json").outcome
    assert f"being written by pid {os.getpid()} on " in done.text
    assert (facts["locked"], facts["writer"]["command"]) == (True, "nightly")


def test_errors_lists_failures_by_kind_and_as_csv(icecore: Icecore, broken: Any, tmp_path: Path) -> None:
    done = icecore("store", "errors", broken.store, "photos", "--csv", tmp_path / "errors.csv")
    assert (done.code, done.told) == (0, "")
    assert done.out.startswith(b"2 images failed: 2 decode\n\nset     image")
    assert rb"val/red/a,\xff\n.png" not in done.out, "bytes of names are given as they are"
    assert b"val/red/a,\xff\\n.png  decode" in done.out
    with (tmp_path / "errors.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["set"], row["id"], row["kind"]) for row in rows] == [
        ("photos", "val/red/a,\udcff\n.png", "decode"),
        ("photos", "val/red/empty.png", "decode"),
    ]
    facts = icecore("store", "errors", broken.store, "--json").outcome
    assert (facts["counts"], [row["id"] for row in facts["failures"]]) == ({"decode": 2}, [row["id"] for row in rows])
    assert {"reason", "attempts", "first_at", "last_at"} <= facts["failures"][0].keys()


def test_errors_of_one_kind_are_listed_alone(icecore: Icecore, broken: Any) -> None:
    done = icecore("store", "errors", broken.store, "--kind", "read")
    assert (done.code, done.text) == (0, f"{broken.store}: no failures\n")
    done = icecore("store", "errors", broken.store, "--kind", "decoding")
    assert done.code == 2
    assert "'decode'" in done.told


def test_du_adds_up_to_what_is_on_disk(icecore: Icecore, trained: Any) -> None:
    facts = icecore("store", "du", trained.store, "--json").outcome
    assert facts["total"] == walked(trained.store)
    (photos,) = facts["generations"]
    assert (photos["set"], photos["state"], photos["segments"], photos["old"]) == ("photos", "read", 1, 0)
    assert photos["columns"] == {"features.3:avg": 18 * 128 * 2}
    assert facts["models"] > 1000
    done = icecore("store", "du", trained.store)
    assert (done.code, done.told) == (0, "")
    assert [line.split()[0] for line in done.text.splitlines()[2:]] == [
        "photos", "features.3:avg", "(ids,", "catalog", "models", "total",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["status", "errors"])
def test_a_set_that_is_not_there_is_a_wrong_argument(icecore: Icecore, trained: Any, command: str) -> None:
    done = icecore("store", command, trained.store, "phtos")
    assert done.code == 2
    assert "no feature set 'phtos'; it has photos; did you mean 'photos'?" in done.told


@pytest.mark.parametrize("command", ["status", "errors", "du"])
def test_a_folder_without_a_store_ends_with_3(icecore: Icecore, tmp_path: Path, command: str) -> None:
    done = icecore("store", command, tmp_path)
    assert (done.code, done.out) == (3, b"")
    assert list(tmp_path.iterdir()) == []
