"""What is told of a store: counts, who writes, what is pending; and a digest that means what readers see."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from icecore.store import (
    Column,
    Contract,
    FeatureStore,
    Pooling,
    SetNotFoundError,
    SourceImage,
    catalog,
    store_status,
    store_usage,
)
from icecore.store.lock import is_locked
from icecore.store.summary import read_summary, summarise

Fill = Callable[..., FeatureStore]
Make = Callable[..., SourceImage]
Columns = tuple[Column, Column]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}
GOLDEN = Path(__file__).parents[1] / "golden" / "store-v1"


def digest_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Files with sizes and times; SQLite's shared memory is its own affair."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith("-shm")]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def test_a_store_is_told_in_numbers(fill: Fill, contract: Contract, columns: Columns, image: Make) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, columns) as w:
        w.fail(image("bad.jpg"), "decode", "truncated")
        w.fail(image("gone.jpg"), "read", "no such file")
    found = store_status(store.path)
    (photos,) = found.sets
    assert (found.catalog_format, found.is_written, found.writer, found.leftovers) == (2, False, None, 0)
    assert (photos.name, photos.version, photos.segments, photos.pending) == ("photos", 2, 1, None)
    assert photos.summary.images == 20
    assert photos.summary.columns == {"layer3:avg": 20, "layer4:avg": 20}
    assert photos.summary.failed == {"decode": 1, "read": 1}
    assert photos.summary.lacking == {}
    assert photos.bytes == sum(p.stat().st_size for p in store.path.glob("segments/**/*.h5"))
    assert (photos.generation, photos.contract_hash) == (store["photos"].generation, contract.hash)
    assert 0 <= photos.age < 60


def test_a_set_is_told_alone_and_one_that_is_not_there_is_refused(fill: Fill) -> None:
    store = fill(FILES)
    assert [one.name for one in store_status(store.path, "photos").sets] == ["photos"]
    assert store_status(store.path, "photos").digest == store_status(store.path).digest
    with pytest.raises(SetNotFoundError, match="did you mean 'photos'"):
        store_status(store.path, "photo")


def test_to_tell_writes_nothing(fill: Fill) -> None:
    store = fill(FILES)
    store.close()
    before = listing(store.path)
    store_status(store.path)
    store_usage(store.path)
    assert listing(store.path) == before


def test_a_store_of_format_1_is_told_as_such(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "store")
    with closing(sqlite3.connect(tmp_path / "store" / "catalog.sqlite")) as db:
        (name,) = db.execute("SELECT name FROM sets").fetchone()
    found = store_status(tmp_path / "store")
    assert (found.catalog_format, found.sets[0].name) == (1, name)
    with FeatureStore.open(tmp_path / "store") as store:
        assert found.sets[0].summary.images == len(store[name].ids())


def test_who_writes_is_told_while_the_lock_is_held(fill: Fill, contract: Contract, columns: Columns) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, columns, command="nightly"):
        found = store_status(store.path)
        assert found.is_written
        assert found.writer is not None
        assert (found.writer.pid, found.writer.command) == (os.getpid(), "nightly")
    assert store_status(store.path).writer is None


def test_to_look_at_the_lock_refuses_no_writer(fill: Fill, contract: Contract, columns: Columns) -> None:
    """Two readers ask all the time whether somebody writes; every writer gets in."""
    store = fill(FILES)
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            is_locked(store.path)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(20):
            with store.writer("photos", contract, columns):
                pass
    finally:
        done.set()
        for reader in readers:
            reader.join()


def test_what_a_run_left_behind_is_counted_until_it_is_swept(fill: Fill, contract: Contract, columns: Columns) -> None:
    store = fill(FILES)
    with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db, db:
        db.execute("INSERT INTO intents VALUES ('aa', 'segments/photos/x/aa.h5')")
    assert store_status(store.path).leftovers == 1
    with store.writer("photos", contract, columns):
        pass
    assert store_status(store.path).leftovers == 0


def test_a_generation_that_is_being_filled_says_what_it_lacks(
    fill: Fill, contract: Contract, other_contract: Contract, columns: Columns, image: Make
) -> None:
    store = fill(FILES)
    with pytest.raises(RuntimeError), store.writer("photos", other_contract, columns) as w:
        for number in range(5):
            chosen = columns if number else columns[:1]
            content = digest_of(f"picture {number}")
            w.append([image(f"{number:03}.jpg")], [content], {c: np.ones((1, c.width)) for c in chosen})
        w.fail(image("019.jpg"), "decode", "truncated")
        w.fail(image("018.jpg"), "read", "input/output error")
        w.commit()
        raise RuntimeError
    (photos,) = store_status(store.path).sets
    assert photos.contract_hash == contract.hash
    assert photos.pending is not None
    assert photos.pending.contract_hash == other_contract.hash
    # 20 images, 5 done (one of them without layer4), one that is no image; one that cannot be read does not count.
    assert (photos.pending.images, photos.pending.lacking) == (20, 15)
    assert photos.pending.columns == {"layer3:avg": 14, "layer4:avg": 15}
    assert w.uncovered == 0, "it was cut off before it could count"
    fill(FILES, contract=other_contract)
    (photos,) = store_status(store.path).sets
    assert (photos.contract_hash, photos.pending) == (other_contract.hash, None)


def test_after_a_revert_nothing_is_pending_until_something_is_committed(
    fill: Fill, contract: Contract, columns: Columns, image: Make
) -> None:
    store = fill(FILES)
    fill({"more.jpg": "more"})
    store["photos"].revert(1)
    assert store_status(store.path).sets[0].pending is None
    with pytest.raises(RuntimeError), store.writer("photos", contract, columns) as w:
        w.append([image("new.jpg")], [digest_of("new")], {c: np.ones((1, c.width)) for c in columns})
        w.commit()
        raise RuntimeError
    (photos,) = store_status(store.path).sets
    assert photos.summary.images == 20
    assert photos.pending is not None
    assert (photos.pending.generation, photos.pending.images, photos.pending.lacking) == (photos.generation, 22, 0)


def test_images_that_lack_a_late_column_are_counted(
    fill: Fill, contract: Contract, columns: Columns, image: Make
) -> None:
    store = fill(FILES)
    late = Column("layer2", Pooling.parse("max"), 2)
    with store.writer("photos", contract, [late]) as w:
        w.append([image("000.jpg")], [digest_of("picture 0")], {late: np.ones((1, 2))})
        w.append([image("001.jpg")], [digest_of("picture 1")], {late: np.full((1, 2), 1e6)})
    (photos,) = store_status(store.path).sets
    assert photos.summary.columns["layer2:max"] == 1
    assert photos.summary.lacking == {"layer2:max": 18}
    assert photos.summary.failed == {"value": 1}


def seen(path: Path) -> str:
    return store_status(path).digest


def test_the_digest_stays_while_readers_see_the_same(
    fill: Fill, contract: Contract, columns: Columns, image: Make, tmp_path: Path
) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, columns) as w:
        w.fail(image("bad.jpg"), "decode", "truncated")
    first = seen(store.path)
    fill(FILES)
    with store.writer("photos", contract, columns) as w:
        w.link(image("000.jpg", mtime_ns=77), digest_of("picture 0"))
        w.fail(image("bad.jpg"), "decode", "truncated")
    store.compact()
    assert seen(store.path) == first
    fill({**FILES, "more.jpg": "more"})
    fill({"yet.jpg": "more"})
    assert seen(store.path) != first
    with store.writer("photos", contract, columns) as w:
        w.remove(["more.jpg", "yet.jpg"])
    store.compact()
    assert seen(store.path) == first
    with store.writer("photos", contract, columns) as w:
        w.remove(["000.jpg"])
    assert seen(store.path) != first
    store["photos"].revert(store["photos"].version - 1)
    assert seen(store.path) == first
    store.collect()
    assert seen(store.path) == first
    store.close()
    store.path.rename(tmp_path / "elsewhere")
    assert seen(tmp_path / "elsewhere") == first


@pytest.mark.parametrize(
    "what", ["id", "content", "column", "more", "failure", "reason", "contract", "name", "refusal"]
)
def test_the_digest_changes_with_whatever_readers_see(
    fill: Fill, contract: Contract, other_contract: Contract, columns: Columns, image: Make, what: str
) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, columns) as w:
        w.fail(image("bad.jpg"), "decode", "truncated")
    first, late = seen(store.path), Column("layer2", Pooling.parse("max"), 2)
    everything = {c: np.ones((1, c.width)) for c in columns}
    if what == "contract":
        with store.writer("photos", other_contract, columns) as w:
            for name, text in FILES.items():
                w.append([image(name)], [digest_of(text)], everything)
            w.fail(image("bad.jpg"), "decode", "truncated")
        assert store["photos"].contract == other_contract
    elif what == "name":
        with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db, db:
            db.execute("UPDATE sets SET name = 'pictures'")
            db.execute("DELETE FROM meta WHERE key LIKE 'summary%'")
    elif what in ("column", "refusal"):
        with store.writer("photos", contract, [late]) as w:
            w.append([image("000.jpg")], [digest_of("picture 0")], {late: np.ones((1, 2))})
            if what == "refusal":
                w.commit()
                first = seen(store.path)
                w.append([image("001.jpg")], [digest_of("picture 1")], {late: np.full((1, 2), np.nan)})
    else:
        with store.writer("photos", contract, columns) as w:
            if what == "id":
                w.remove(["003.jpg"])
                w.link(image("moved.jpg"), digest_of("picture 3"))
            elif what == "content":
                w.link(image("003.jpg"), digest_of("picture 4"))
            elif what == "more":
                w.append([image("new.jpg")], [digest_of("new")], everything)
            else:
                w.fail(image("bad.jpg"), "decode", "empty file" if what == "reason" else "truncated")
                w.fail(image("worse.jpg" if what == "failure" else "bad.jpg"), "decode", "empty file")
    assert seen(store.path) != first


TEXTS = ["1", "2", "3", "bad", "nan"]
FOLDER = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(TEXTS))
MADE = Contract("m", {}, "0" * 64, ({"op": "resize", "size": 8},), "pillow", ("full",), "fp32")
MADE_COLUMNS = [Column("one", Pooling.parse("avg"), 2), Column("two", Pooling.parse("avg"), 1)]


def sync(path: Path, files: dict[str, str], *, batch: int) -> None:
    """Bring a store to a state of a folder, committing every so many images."""
    with FeatureStore.create(path) as store, store.writer("photos", MADE, MADE_COLUMNS) as w:
        for number, (name, text) in enumerate(sorted(files.items())):
            image = SourceImage(name, Path(name), 1, 1 + TEXTS.index(text), 1)
            if text == "bad":
                w.fail(image, "decode", "truncated")
            elif w.is_known(digest_of(text), MADE_COLUMNS):
                w.link(image, digest_of(text))
            else:
                wrong = np.full((1, 2), np.nan if text == "nan" else 1.0)
                w.append([image], [digest_of(text)], {MADE_COLUMNS[0]: wrong, MADE_COLUMNS[1]: np.ones((1, 1))})
            if number % batch == 0:
                w.commit()
        w.remove([name for name in "abcdefgh" if name not in files])


THEN = st.sampled_from(["", "compact", "collect", "revert"])


@given(past=st.lists(st.tuples(FOLDER, st.integers(1, 3), THEN), max_size=3), now=FOLDER)
@settings(max_examples=15, deadline=None)
@example(past=[({"a": "1"}, 1, "")], now={"a": "nan"})
@example(past=[({"a": "1", "b": "1"}, 1, "compact")], now={"a": "1", "b": "bad"})
@example(past=[({"a": "1"}, 1, ""), ({"a": "2"}, 1, "revert")], now={"a": "2"})
def test_stores_that_read_alike_have_one_digest_whatever_their_past(
    past: list[tuple[dict[str, str], int, str]], now: dict[str, str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        old, new = Path(folder, "old"), Path(folder, "new")
        for files, batch, then in past:
            sync(old, files, batch=batch)
            _do(old, then)
        sync(old, now, batch=2)
        sync(new, now, batch=100)
        if now:  # else the new store has no set at all
            assert seen(old) == seen(new)
        for path in (old, new):
            with closing(catalog.connect(path)) as db:
                head = catalog.head_of(db, 1)
                assert head is None or read_summary(db, 1, head) == summarise(db, 1, head)


def _do(path: Path, then: str) -> None:
    with FeatureStore.open(path) as store:
        if then == "compact":
            store.compact()
        elif then == "collect":
            store.collect()
        elif then == "revert" and store.sets():
            log = store["photos"].log()
            store["photos"].revert(min(version.number for version in log if version.readable))


@pytest.mark.parametrize("told", ["forged", "torn", "aged"])
def test_a_kept_summary_that_is_not_of_this_state_is_not_believed(fill: Fill, told: str) -> None:
    store = fill(FILES)
    first = store_status(store.path).sets[0].summary
    with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db, db:
        if told == "aged":  # as after a repair that took rows away
            db.execute("DELETE FROM segment_columns")
            db.execute("DELETE FROM segments")
        else:
            change = "replace(value, '20', '21')" if told == "forged" else "substr(value, 1, 80)"
            assert db.execute(f"UPDATE meta SET value = {change} WHERE key = 'summary.1'").rowcount == 1
    found = store_status(store.path).sets[0].summary
    assert found.images == (0 if told == "aged" else 20)
    assert (found == first) == (told != "aged")


def test_usage_adds_up_to_what_is_on_disk(
    fill: Fill, contract: Contract, other_contract: Contract, columns: Columns, image: Make
) -> None:
    store = fill(FILES)
    fill({**FILES, "more.jpg": "more"})
    store.compact()
    fill({"000.jpg": "picture 0"}, contract=other_contract)
    for name in (
        "canaries/c.npz",
        "models/m/b/card.json",
        "sweeps/m/leaderboard.csv",
        "comparisons/a-b.html",
        "runs/r.json",
        "weights/x.safetensors",
        "quarantine/y.h5",
        "segments/z.h5.tmp",
        "odd",
    ):
        (store.path / name).parent.mkdir(parents=True, exist_ok=True)
        (store.path / name).write_bytes(b"x" * 100)
    found = store_usage(store.path)
    walked = sum(os.lstat(os.path.join(top, name)).st_size for top, _, names in os.walk(store.path) for name in names)
    assert found.total == walked
    assert found.total == sum(one.bytes for one in found.generations) + sum(found.rest.values())
    assert all(one.bytes == sum(one.columns.values()) + one.overhead for one in found.generations)
    assert {kind: n for kind, n in found.rest.items() if kind not in ("catalog", "other")} == dict.fromkeys(
        ("canaries", "models", "sweeps", "comparisons", "weights", "runs", "quarantine", "strays"), 100
    )
    first, second = found.generations
    assert (first.state, first.segments, second.state, second.segments) == ("read", 3, "filling", 1)
    # Rows before and after the merge: 21 in two segments, and 21 in one.
    assert first.columns == {column.name: 2 * 21 * 2 * column.width for column in columns}
    old = [p for p in store.path.glob(f"segments/photos/{first.generation}/*.h5") if not is_live(store.path, p)]
    assert (first.old, found.old, found.missing) == (sum(p.stat().st_size for p in old), first.old, 0)
    fill({**FILES, "more.jpg": "more"}, contract=other_contract)
    first, second = store_usage(store.path).generations
    assert (first.state, first.old, second.state, second.old) == ("old", first.bytes, "read", 0)


def is_live(folder: Path, path: Path) -> bool:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        query = "SELECT removed_in IS NULL FROM segments WHERE uuid = ?"
        return bool(db.execute(query, (path.stem,)).fetchone()[0])


def test_usage_tells_of_segments_that_are_not_there(fill: Fill) -> None:
    store = fill(FILES)
    (path,) = store.path.glob("segments/**/*.h5")
    path.write_bytes(b"cut")
    (photos,) = store_usage(store.path).generations
    assert (photos.bytes, photos.overhead, set(photos.columns.values())) == (3, 3, {0})
    path.unlink()
    assert store_usage(store.path).missing == 1
