"""A state is found by its name, pinned, and tells the content of each image."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from icecore.store import (
    Contract,
    FeatureStore,
    GenerationNotFoundError,
    SetNotFoundError,
    SourceImage,
    StoreDamagedError,
    VersionNotFoundError,
)

FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(9)}
Fill = Callable[..., FeatureStore]


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def test_a_state_is_named_as_store_diff_names_it(fill: Fill, other_contract: Contract) -> None:
    store = fill(FILES)
    first = store["photos"].version
    frozen = store["photos"].generation
    store["photos"].tag("before")
    fill({**FILES, "new.jpg": "new"})
    second = store["photos"].version
    store = fill({**FILES, "new.jpg": "new"}, contract=other_contract)
    tuned = store["photos"].generation
    assert tuned != frozen
    latest = store["photos"].version
    expected = {
        "photos": (latest, tuned),
        f"photos@{first}": (first, frozen),
        "photos@before": (first, frozen),
        frozen: (second, frozen),  # the newest version that shows it
        frozen[:6]: (second, frozen),
        tuned[:8]: (latest, tuned),
    }
    for name, (version, generation) in expected.items():
        found = store.at(name)
        assert (found.name, found.version, found.generation) == ("photos", version, generation), name
        assert found.contract == (other_contract if generation == tuned else store.at("photos@before").contract)
    pinned = store.at("photos")
    fill({**FILES, "more.jpg": "more"}, contract=other_contract)
    assert pinned.version == latest
    assert store.generations(other_contract) == (("photos", tuned),)
    assert store.generations(Contract.from_json({**other_contract.to_json(), "weights": "f" * 64})) == ()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("phtos", SetNotFoundError, "did you mean 'photos'?"),
        ("phtos@1", SetNotFoundError, "did you mean 'photos'?"),
        ("photos@99", VersionNotFoundError, "has no version 99"),
        ("photos@nosuch", VersionNotFoundError, "no tag 'nosuch'"),
        ("ffffff", GenerationNotFoundError, "no generation 'ffffff'"),
        ("", SetNotFoundError, "it has photos"),
    ],
)
def test_a_name_that_is_not_there_is_an_error_that_lists_what_is(
    fill: Fill, name: str, kind: type[Exception], message: str
) -> None:
    store = fill(FILES)
    with pytest.raises(kind, match=message.replace("?", r"\?")):
        store.at(name)


def test_a_generation_that_no_version_shows_is_refused(fill: Fill, other_contract: Contract) -> None:
    fill(FILES)
    store = fill({"000.jpg": "picture 0"}, contract=other_contract)  # covers one of nine images: not read yet
    [(_, filling)] = store.generations(other_contract)
    assert store["photos"].generation != filling
    with pytest.raises(VersionNotFoundError, match="no version shows it to readers yet; run `icecore extract`"):
        store.at(filling)


def test_a_collected_generation_is_refused(fill: Fill, other_contract: Contract) -> None:
    frozen = fill(FILES)["photos"].generation
    store = fill(FILES, contract=other_contract)
    store.collect()
    with pytest.raises(VersionNotFoundError, match="gc has collected every version that showed it"):
        store.at(frozen)


def test_contents_are_the_digests_of_the_files_in_the_order_of_the_ids(
    fill: Fill, image: Callable[..., SourceImage]
) -> None:
    odd = {"b\udcff.jpg": "odd bytes", "copy.jpg": "picture 3"}
    store = fill({**FILES, **odd})
    then = store["photos"].version
    found = store["photos"].contents()
    assert list(found) == store["photos"].ids()
    assert found == {name: digest(text) for name, text in {**FILES, **odd}.items()}
    fill({"000.jpg": "another picture"})
    assert store["photos"].contents()["000.jpg"] == digest("another picture")
    assert store["photos"].contents(version=then)["000.jpg"] == digest("picture 0")
    features = store["photos"]
    with store.writer("photos", features.contract, features.columns) as writer:
        writer.fail(image("broken.jpg"), "decode", "not an image")
    assert "broken.jpg" not in store["photos"].contents()


def test_a_content_that_the_catalog_does_not_list_is_damage(fill: Fill) -> None:
    path = Path(fill(FILES).path)
    with sqlite3.connect(path / "catalog.sqlite") as db:
        db.execute("PRAGMA foreign_keys=OFF")
        db.execute("DELETE FROM contents WHERE sha256 = ?", (digest("picture 4"),))
    with FeatureStore.open(path) as store, pytest.raises(StoreDamagedError, match="icecore store repair"):
        store["photos"].contents()
