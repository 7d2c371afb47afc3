"""``icecore store log | tag | revert | diff | drop | gc`` as a user meets them, on a store with a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Icecore = Callable[..., Any]


@pytest.fixture
def two(icecore: Icecore, trained: Any) -> Any:
    """Version 1 has the bundle; version 2 has one image more, one less, and one changed."""
    photos = sorted((trained.photos / "train" / "red").iterdir())
    photos[0].with_name("zzz.png").write_bytes(photos[0].read_bytes() + b"\0")
    photos[1].write_bytes(photos[1].read_bytes() + b"\0")
    photos[2].unlink()
    assert icecore("extract", trained.config).code == 0
    return trained


def segments(project: Any) -> list[Path]:
    return sorted((project.store / "segments").rglob("*.h5"))


def test_log_shows_a_line_a_run_the_newest_first(icecore: Icecore, two: Any) -> None:
    done = icecore("store", "log", two.store)
    assert (done.code, done.told) == (0, "")
    title, header, _, newest, oldest = done.text.splitlines()
    assert title == "photos"
    assert header.split()[:7] == ["version", "when", "what", "added", "changed", "removed", "failed"]
    assert newest.split()[2:7] == ["sync", "1", "1", "1", "0"]
    assert newest.endswith(f"icecore extract {two.config}")
    assert "  now  " in newest
    assert oldest.split()[0] == "1"
    assert f"yes       default/{two.bundle.name}" in oldest
    facts = icecore("store", "log", two.store, "photos", "--limit", "1", "--json").outcome["sets"]
    assert [(one["set"], [v["number"] for v in one["versions"]]) for one in facts] == [
        ("photos", list(range(int(newest.split()[0].split("-")[-1]), 1, -1)))
    ]
    assert facts[0]["versions"][0]["readable"] is True


def test_a_tag_is_given_listed_moved_and_taken_away(icecore: Icecore, two: Any) -> None:
    assert icecore("store", "tag", two.store, "photos").text == "photos: no tags yet\n"
    done = icecore("store", "tag", two.store, "photos", "good", "--version", "1")
    assert (done.code, done.text) == (0, "photos: version 1 is tagged good\n")
    taken = icecore("store", "tag", two.store, "photos", "good")
    assert (taken.code, taken.out) == (1, b"")
    assert "tag 'good' stands at version 1; move it there with --move" in taken.told
    assert icecore("store", "tag", two.store, "photos", "good", "--move", "--json").outcome["tags"]["good"] > 1
    assert icecore("store", "tag", two.store, "photos").text.splitlines()[2].split()[0] == "good"
    assert "taken away" in icecore("store", "tag", two.store, "photos", "good", "--delete").text
    gone = icecore("store", "tag", two.store, "photos", "good", "--delete")
    assert gone.code == 2
    assert "set 'photos' has no tag 'good'; it has none" in gone.told
    assert icecore("store", "tag", two.store, "photos", "--move").code == 2
    assert "begin with a letter" in icecore("store", "tag", two.store, "photos", "7").told


def test_revert_shows_the_old_state_until_the_next_extract(icecore: Icecore, two: Any) -> None:
    would = icecore("store", "revert", two.store, "photos", "1", "--dry-run")
    assert would.text == "photos: readers would see version 1 again: 1 images added, 1 removed, 1 changed\n"
    done = icecore("store", "revert", two.store, "photos", "1", "--json")
    assert (done.code, done.outcome["to"], done.outcome["removed"]) == (0, 1, 1)
    assert icecore("store", "show", two.store, "photos", "--json").outcome["version"] == done.outcome["version"]
    again = icecore("store", "revert", two.store, "photos", "1")
    assert again.text == "photos: readers see version 1 already\n"
    assert "revert to 1" in icecore("store", "log", two.store).text
    extracted = icecore("extract", two.config, "--json").outcome
    assert extracted["forwarded"] == 0
    same = icecore("store", "diff", two.store, "photos", f"photos@{done.outcome['version'] - 1}")
    assert same.text.splitlines()[2] == "the same"


def test_diff_tells_contract_columns_and_images(icecore: Icecore, two: Any) -> None:
    done = icecore("store", "diff", two.store, "photos@1", "photos", "--ids")
    assert done.text.splitlines()[2:] == [
        "the same contract",
        "images, from a to b: 1 images added, 1 removed, 1 changed",
        "  + train/red/zzz.png",
        "  - train/red/2.png",
        "  ~ train/red/1.png",
    ]
    assert icecore("extract", two.config, "--set", "preprocess.crop=56").code == 0
    found = icecore("store", "diff", two.store, two.bundle, "photos", "--json").outcome
    assert (
        found["contract"] == [{"field": "preprocess[1:center_crop].size", "a": [64, 64], "b": [56, 56]}]
        or len(found["contract"]) == 1
    )
    assert (found["images"], found["same"]) == (None, False)


def test_gc_keeps_what_the_bundle_was_trained_on(icecore: Icecore, two: Any) -> None:
    """The real card of a real bundle."""
    before = segments(two)
    would = icecore("store", "gc", two.store, "--dry-run")
    assert would.code == 0
    assert "version 1 stays: bundle default/" in would.text
    assert icecore("store", "gc", two.store).code == 0
    assert segments(two) == before, "the old version and the new one need every row"
    assert icecore("predict", two.bundle, two.photos / "val").code == 0
    two.bundle.rename(two.folder / "moved-out")
    done = icecore("store", "gc", two.store, "--json")
    (photos,) = done.outcome["sets"]
    assert photos["collected"][-1] == 1
    assert (photos["segments"], photos["rewritten"], photos["rows"]) == (0, 1, 2)
    assert icecore("store", "verify", two.store).code == 0
    refused = icecore("store", "revert", two.store, "photos", "1")
    assert refused.code == 2
    assert "version 1 was collected by gc at" in refused.told
    assert "collected" in icecore("store", "log", two.store).text


def test_gc_refuses_with_1_when_a_card_is_broken(icecore: Icecore, two: Any) -> None:
    (two.bundle / "card.json").write_text("{}")
    done = icecore("store", "gc", two.store)
    assert (done.code, done.out) == (1, b"")
    assert "nothing was collected: restore the bundle, or move it out of the store" in done.told


def test_gc_of_a_damaged_store_does_the_rest_and_ends_with_3(icecore: Icecore, two: Any) -> None:
    two.bundle.rename(two.folder / "moved-out")
    big = max(segments(two), key=lambda path: path.stat().st_size)
    data = bytearray(big.read_bytes())
    data[-10] ^= 1
    big.write_bytes(data)
    done = icecore("store", "gc", two.store, "--json")
    assert done.code == 3
    assert str(big) in done.told
    assert done.outcome["sets"][0]["rewritten"] == 0


def test_drop_takes_away_a_generation_that_was_given_up(icecore: Icecore, two: Any) -> None:
    in_use = icecore("store", "show", two.store, "photos", "--json").outcome["generation"]
    refused = icecore("store", "drop", two.store, in_use)
    assert (refused.code, refused.out) == (1, b"")
    assert "is what readers of 'photos' see" in refused.told
    assert icecore("extract", two.config, "--set", "preprocess.crop=56").code == 0
    two.bundle.rename(two.folder / "moved-out")
    assert "version 1" in icecore("store", "drop", two.store, in_use).told
    assert icecore("store", "revert", two.store, "photos", "1").code == 0
    given_up = next(folder.name for folder in (two.store / "segments/photos").iterdir() if folder.name != in_use)
    icecore("store", "gc", two.store)
    would = icecore("store", "drop", two.store, given_up[:6], "--dry-run")
    assert f"photos: generation {given_up} would be dropped: 1 segment, 18 rows, " in would.text
    done = icecore("store", "drop", two.store, given_up[:6])
    assert done.text == would.text.replace("would be dropped", "dropped")
    assert not (two.store / "segments/photos" / given_up).exists()
    assert icecore("store", "verify", two.store).code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["log", "STORE", "phtos"], "no feature set 'phtos'; it has photos; did you mean 'photos'?"),
        (["tag", "STORE", "photos", "v1", "--version", "99"], "set 'photos' has no version 99; its latest is 1"),
        (["revert", "STORE", "photos", "9" * 20], f"set 'photos' has no version {'9' * 20}; its latest is 1"),
        (["revert", "STORE", "photos", "v2"], "set 'photos' has no tag 'v2'; it has none"),
        (["diff", "STORE", "photos", "phtos@1"], "no feature set 'phtos'"),
        (["drop", "STORE", "abcdef"], "no generation 'abcdef' (6 or more hex digits of its name); it has"),
        (["gc", "STORE", "--keep-versions", "0"], "0 is not in the range x>=1"),
    ],
)
def test_what_is_not_there_ends_with_2_and_says_what_is(
    icecore: Icecore, trained: Any, words: list[str], told: str
) -> None:
    done = icecore("store", *(trained.store if word == "STORE" else word for word in words))
    assert (done.code, done.out) == (2, b"")
    assert told in done.told


@pytest.mark.parametrize(
    "words", [["log"], ["tag", "photos", "v1"], ["revert", "photos", "1"], ["diff", "a", "b"], ["drop", "a"], ["gc"]]
)
def test_a_folder_without_a_store_is_left_as_it_was(icecore: Icecore, tmp_path: Path, words: list[str]) -> None:
    done = icecore("store", words[0], tmp_path, *words[1:])
    assert (done.code, done.out) == (3, b"")
    assert list(tmp_path.iterdir()) == []
