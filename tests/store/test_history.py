"""The log of a set, its tags, and the way back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from icecore.store import (
    Column,
    Contract,
    FeatureSet,
    FeatureStore,
    FormatError,
    GenerationNotFoundError,
    Pooling,
    RefusedError,
    SetNotFoundError,
    SourceImage,
    VersionNotFoundError,
    verify_store,
)

Fill = Callable[..., FeatureStore]
Make = Callable[..., SourceImage]
Expected = Callable[[dict[str, str], Column], np.ndarray]
Bundle = Callable[..., Path]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(10)}
CHANGED = {**FILES, "003.jpg": "another", "new.jpg": "new"}


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@pytest.fixture
def photos(fill: Fill) -> FeatureSet:
    """Version 1 is FILES, version 2 CHANGED."""
    fill(FILES)
    return fill(CHANGED)["photos"]


def opened(photos: FeatureSet) -> FeatureStore:
    return FeatureStore.open(photos.folder)


def cut_off(store: FeatureStore, contract: Contract, columns: tuple[Column, ...], image: SourceImage) -> None:
    """Commit one image more, and die."""
    with pytest.raises(RuntimeError), store.writer("photos", contract, columns) as w:
        w.append([image], [digest(image.id)], {c: np.ones((1, c.width)) for c in columns})
        w.commit()
        raise RuntimeError


def test_the_log_tells_every_commit_the_newest_first(
    photos: FeatureSet, contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    with opened(photos).writer("photos", contract, columns, command="night job") as w:
        w.remove(["000.jpg"])
        w.commit()
        w.fail(image("bad.jpg"), "decode", "truncated")
    log = photos.log()
    assert [(v.number, v.kind, v.added, v.changed, v.removed, v.failed) for v in log] == [
        (4, "sync", 0, 0, 0, 1),
        (3, "sync", 0, 0, 1, 0),
        (2, "sync", 1, 1, 0, 0),
        (1, "sync", 10, 0, 0, 0),
    ]
    assert [v.command for v in log] == ["night job", "night job", "test", "test"]
    assert log[0].run == log[1].run != log[2].run
    assert {v.generation for v in log} == {photos.generation}
    assert [v.as_of for v in log] == [4, 3, 2, 1]
    assert all(v.readable for v in log)


def test_the_log_says_where_readers_stayed(
    photos: FeatureSet, other_contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    cut_off(opened(photos), other_contract, columns, image("x.jpg"))
    last = photos.log()[0]
    assert (last.number, last.as_of, last.readable) == (3, None, False)
    assert last.generation != photos.generation
    assert photos.version == 2


def test_the_log_names_tags_and_bundles(photos: FeatureSet, bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    photos.tag("v1", 1)
    photos.tag("baseline", 1)
    bundle(photos, "ants/a")
    bundle(photos, "ants/b", version=1)
    assert [(v.number, v.tags, v.bundles) for v in photos.log()] == [
        (2, (), ("ants/a",)),
        (1, ("baseline", "v1"), ("ants/b",)),
    ]
    (photos.folder / "models/ants/a/card.json").write_text("{}")
    assert photos.log()[0].bundles == ()
    assert "ants/a/card.json: its format is None None" in caplog.text


def test_a_tag_stands_for_its_version_wherever_a_version_is_asked_for(
    photos: FeatureSet, contract: Contract, columns: tuple[Column, Column], image: Make, expected: Expected
) -> None:
    assert photos.tag("v1", 1) == 1
    assert photos.tag("now") == 2
    with opened(photos).writer("photos", contract, columns) as w:
        w.fail(image("003.jpg", mtime_ns=9), "decode", "truncated")
    assert photos.tags() == {"now": 2, "v1": 1}
    np.testing.assert_array_equal(photos.matrix("layer4", version="v1").X, expected(FILES, columns[1]))
    assert photos.ids(version="v1") == sorted(FILES)
    assert photos.failures(version="now") == ()
    assert [f.id for f in photos.failures()] == ["003.jpg"]
    assert photos.resolve("layer4", version="v1") == columns[1]
    assert photos.ids(version="1") == photos.ids(version=1), "digits are a number, as on the command line"
    pinned = photos.as_of("v1")
    photos.tag("v1", "now", move=True)
    assert pinned.ids() == sorted(FILES), "what was pinned stays where it was"
    assert pinned.tag("pinned") == 1


def test_an_unknown_tag_is_told_with_those_there_are(photos: FeatureSet) -> None:
    with pytest.raises(VersionNotFoundError, match=r"set 'photos' has no tag 'x'; it has none$"):
        photos.matrix("layer4", version="x")
    photos.tag("release-1")
    asks: list[Callable[[str], object]] = [photos.as_of, photos.untag, photos.revert, lambda v: photos.tag("other", v)]
    for ask in asks:
        with pytest.raises(VersionNotFoundError, match=r"no tag 'relase-1'; .* did you mean 'release-1'\?"):
            ask("relase-1")
    for version in (0, 3, "3"):
        with pytest.raises(VersionNotFoundError, match=rf"no version {version}; its latest is 2"):
            photos.tag("other", version)


@pytest.mark.parametrize("name", ["", "7", "7up", "-x", "a b", "a\n", "ä", "x" * 129])
def test_a_name_that_could_be_taken_for_something_else_is_no_tag(photos: FeatureSet, name: str) -> None:
    with pytest.raises(RefusedError, match=r"begin with a letter"):
        photos.tag(name)
    assert photos.tags() == {}


def test_a_tag_moves_only_when_told_and_goes_when_asked(photos: FeatureSet) -> None:
    photos.tag("v1", 1)
    assert photos.tag("v1", 1) == 1, "said twice it is the same"
    with pytest.raises(RefusedError, match=r"tag 'v1' stands at version 1; .*--move"):
        photos.tag("v1", 2)
    assert photos.tag("v1", 2, move=True) == 2
    assert photos.untag("v1") == 2
    assert photos.tags() == {}


def test_a_revert_shows_the_old_state_as_a_new_version_and_moves_no_row(
    photos: FeatureSet, expected: Expected, columns: tuple[Column, Column]
) -> None:
    before = {path: path.read_bytes() for path in photos.folder.rglob("*.h5")}
    would = photos.revert(1, dry_run=True)
    assert (would.to, would.version, would.images.counts) == (1, None, {"added": 0, "removed": 1, "changed": 1})
    assert photos.version == 2
    done = photos.revert(1, command="icecore store revert")
    assert (done.to, done.version, done.images) == (1, 3, would.images)
    assert (photos.version, photos.ids()) == (3, sorted(FILES))
    np.testing.assert_array_equal(photos.matrix("layer4").X, expected(FILES, columns[1]))
    np.testing.assert_array_equal(photos.matrix("layer4", version=2).X, expected(CHANGED, columns[1]))
    last = photos.log()[0]
    assert (last.kind, last.as_of, last.removed, last.changed) == ("revert", 1, 1, 1)
    assert last.command == "icecore store revert"
    assert {path: path.read_bytes() for path in photos.folder.rglob("*.h5")} == before
    assert photos.revert(1).version is None, "readers see it already"
    assert photos.revert("2").version == 4
    assert photos.ids() == sorted(CHANGED)
    assert verify_store(photos.folder).ok


def test_after_a_revert_a_run_that_is_cut_off_leaves_readers_there_and_a_clean_one_moves_them(
    photos: FeatureSet, contract: Contract, columns: tuple[Column, Column], image: Make, expected: Expected
) -> None:
    photos.revert(1)
    cut_off(opened(photos), contract, columns, image("x.jpg"))
    assert (photos.version, photos.ids()) == (3, sorted(FILES))
    with opened(photos).writer("photos", contract, columns) as w:
        w.remove(["x.jpg"])
    assert photos.ids() == sorted(CHANGED)
    np.testing.assert_array_equal(photos.matrix("layer4").X, expected(CHANGED, columns[1]))
    photos.revert(1)
    with opened(photos).writer("photos", contract, columns):
        pass  # as a run that finds nothing to do
    assert photos.ids() == sorted(CHANGED)


def test_a_revert_goes_back_to_another_contract_until_a_run_under_the_new_one_is_done(
    fill: Fill, contract: Contract, other_contract: Contract
) -> None:
    fill(FILES)
    photos = fill(FILES, contract=other_contract)["photos"]
    before = photos.version
    assert photos.contract == other_contract
    done = photos.revert(1)
    assert photos.contract == contract
    assert done.images.counts == {"added": 0, "removed": 0, "changed": 0}
    fill(CHANGED, contract=other_contract)
    assert photos.contract == other_contract
    assert photos.as_of(before).contract == other_contract
    assert photos.ids() == sorted(CHANGED)


def test_a_diff_of_two_versions_tells_images_and_columns(photos: FeatureSet, fill: Fill) -> None:
    late = Column("layer2", Pooling.parse("max"), 3)
    store = fill(CHANGED, columns=[late])
    photos.tag("v1", 1)
    found = store.diff("photos@v1", "photos")
    assert (found.a, found.b) == ("photos@1", "photos@3")
    assert (found.contract, found.only_a, found.only_b) == ((), (), (late,))
    assert found.images is not None
    assert (found.images.added, found.images.removed, found.images.changed) == (("new.jpg",), (), ("003.jpg",))
    back = store.diff("photos", "photos@1")
    assert back.images is not None
    assert (back.images.added, back.images.removed, back.only_a) == ((), ("new.jpg",), (late,))
    assert store.diff("photos@1", "photos@v1").is_empty
    assert not found.is_empty


def test_a_diff_of_generations_sets_and_bundles_tells_contracts_field_by_field(
    fill: Fill, other_contract: Contract, columns: tuple[Column, Column], bundle: Bundle
) -> None:
    store = fill(FILES)
    card = bundle(store["photos"])
    old = store["photos"].generation
    fill(FILES, contract=other_contract, columns=columns[1:])
    ways = (old[:6], old, "photos@1", str(card), card / "card.json", "default/2030")
    for way in ways:
        found = store.diff(way, "photos")
        assert [(d.field, d.ours, d.theirs) for d in found.contract] == [("preprocess[0:resize].size", 256, 232)]
        assert (found.only_a, found.only_b) == (columns[:1], ())
        assert (found.images is None) is (way != "photos@1")
    assert store.diff(old, card).is_empty
    assert store.diff("default/2030", "photos").a == "bundle default/2030"


def test_what_cannot_be_compared_is_told(photos: FeatureSet, bundle: Bundle) -> None:
    store = opened(photos)
    for name, error, told in [
        ("photo", SetNotFoundError, "did you mean 'photos'"),
        ("photo@1", SetNotFoundError, "no feature set 'photo'"),
        ("photos@v1", VersionNotFoundError, "no tag 'v1'"),
        ("photos@9", VersionNotFoundError, "its latest is 2"),
        ("ffffff", GenerationNotFoundError, photos.generation),
    ]:
        with pytest.raises(error, match=told):
            store.diff("photos", name)
    card = bundle(photos) / "card.json"
    card.write_text(card.read_text("utf-8").replace('"version": 2', '"version": 1'))
    with pytest.raises(FormatError, match=r"altered since it was written"):
        store.diff("photos", card)


def test_a_generation_that_was_given_up_is_dropped_with_its_files(
    photos: FeatureSet, fill: Fill, other_contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    store = opened(photos)
    cut_off(store, other_contract, columns, image("x.jpg"))
    uuid = photos.log()[0].generation
    folder = store.path / "segments/photos" / uuid
    (segment,) = folder.iterdir()
    size = segment.stat().st_size
    would = store.drop(uuid[:8], dry_run=True)
    assert (would.set_name, would.generation) == ("photos", uuid)
    assert (would.segments, would.rows, would.bytes) == (1, 1, size)
    assert segment.exists()
    assert store.drop(uuid) == would
    assert not folder.exists()
    assert photos.ids() == sorted(CHANGED)
    assert verify_store(store.path).ok
    fill({**CHANGED, "x.jpg": "x"}, contract=other_contract)
    assert photos.contract == other_contract, "it can be filled anew"
    assert photos.ids() == sorted([*CHANGED, "x.jpg"])


def test_a_generation_that_somebody_can_read_is_not_dropped(fill: Fill, other_contract: Contract) -> None:
    store = fill(FILES)
    photos = store["photos"]
    old = photos.generation
    with pytest.raises(RefusedError, match="what readers of 'photos' see"):
        store.drop(old)
    fill(FILES, contract=other_contract)
    with pytest.raises(RefusedError, match=r"version 1 of 'photos' can still be read from it; `icecore store gc`"):
        store.drop(old)
    photos.tag("keep", 1)
    store.collect()
    with pytest.raises(RefusedError, match="version 1"):
        store.drop(old)
    photos.untag("keep")
    store.collect()
    assert store.drop(old).segments == 0, "gc has taken it all"
    for part in ("abc", "photos", old[:5]):
        with pytest.raises(GenerationNotFoundError, match="6 or more hex digits"):
            store.drop(part)


def test_dropping_leaves_what_other_generations_hold_to_bare_h5py(
    photos: FeatureSet, other_contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    before = {path: path.read_bytes() for path in photos.folder.rglob("*.h5")}
    cut_off(opened(photos), other_contract, columns, image("x.jpg"))
    opened(photos).drop(photos.log()[0].generation)
    assert {path: path.read_bytes() for path in photos.folder.rglob("*.h5")} == before
    rows = 0
    for path in before:
        with h5py.File(path) as file:
            assert file.attrs["generation"] == photos.generation
            rows += file["content"].shape[0]
    assert rows == 12
