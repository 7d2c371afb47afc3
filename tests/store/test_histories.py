"""Long lives: two contracts, files that change, fail, move and vanish, runs that are cut off; against a plain model."""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from icecore.store import (
    Column,
    Contract,
    FeatureStore,
    IncompleteColumnError,
    LayerNotFoundError,
    Pooling,
    RefusedError,
    SourceImage,
    VersionNotFoundError,
    publishing,
    repair_store,
    verify_store,
    writer,
)

Fill = Callable[..., FeatureStore]
Make = Callable[..., SourceImage]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(10)}


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def row(content: bytes, column: Column, contract: Contract) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(content + column.name.encode() + contract.hash.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).integers(-512, 512, column.width).astype(np.float32)


def test_a_detour_through_another_contract_leaves_no_stale_row(
    fill: Fill, contract: Contract, other_contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    """A is read; under B an image takes content that A knows, and B is cut off; A then finds nothing to do."""
    store = fill(FILES)
    with (
        pytest.raises(RuntimeError, match="cut off"),
        store.writer("photos", other_contract, columns) as detour,
    ):
        features = {c: np.ones((1, c.width)) for c in columns}
        detour.append([image("000.jpg", mtime_ns=5)], [digest("picture 1")], features)
        detour.append([image("new.jpg")], [digest("picture 2")], features)
        detour.commit()
        raise RuntimeError("cut off")
    before = store["photos"].matrix("layer4")
    assert "new.jpg" not in before.ids
    with store.writer("photos", contract, columns):
        pass
    ids, X = store["photos"].matrix("layer4")
    assert "new.jpg" in ids
    np.testing.assert_array_equal(X[ids.index("000.jpg")], X[ids.index("001.jpg")])


def test_readers_stay_until_an_older_generation_has_caught_up(
    fill: Fill, contract: Contract, other_contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    """B has replaced A and changed an image; going back to A and being cut off must not drop that image."""
    store = fill(FILES)
    changed = {**FILES, "003.jpg": "another"}
    fill(changed, contract=other_contract)
    with pytest.raises(RuntimeError), store.writer("photos", contract, columns) as back:
        back.append([image("zzz.jpg")], [digest("z")], {c: np.ones((1, c.width)) for c in columns})
        back.commit()
        raise RuntimeError
    assert store["photos"].contract == other_contract
    assert store["photos"].ids() == sorted(changed)
    fill({**changed, "zzz.jpg": "z"}, contract=contract)
    assert store["photos"].contract == contract
    assert store["photos"].ids() == sorted({**changed, "zzz.jpg": "z"})


def test_a_generation_of_read_failures_does_not_replace_a_good_one(
    fill: Fill, other_contract: Contract, contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    store = fill(FILES)
    with store.writer("photos", other_contract, columns) as bad_night:
        for name in FILES:
            bad_night.fail(image(name), "read", "input/output error")
    assert bad_night.uncovered == 10
    assert store["photos"].contract == contract
    assert store["photos"].ids() == sorted(FILES)


def test_a_commit_that_fails_is_tried_again_and_loses_nothing(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(FILES)
    real, faults = publishing.publish, iter([OSError(28, "No space left on device"), KeyboardInterrupt()])

    def publish(temporary: Path, final: Path) -> None:
        if (fault := next(faults, None)) is not None:
            raise fault
        real(temporary, final)

    monkeypatch.setattr(publishing, "publish", publish)
    with pytest.raises(KeyboardInterrupt), store.writer("photos", contract, columns) as w:
        w.append([image("x.jpg")], [digest("x")], {c: np.ones((1, c.width)) for c in columns})
        with pytest.raises(OSError, match="No space left"):
            w.commit()
        w.append([image("y.jpg")], [digest("y")], {c: np.ones((1, c.width)) for c in columns})
        w.commit()
    assert store["photos"].ids() == sorted([*FILES, "x.jpg", "y.jpg"])
    assert verify_store(store.path).ok


def test_an_interrupt_right_behind_the_transaction_doubles_nothing(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = fill(FILES)
    monkeypatch.setattr(writer, "Buffers", _interrupting(writer.Buffers))
    with pytest.raises(KeyboardInterrupt), store.writer("photos", contract, columns) as w:
        w.append([image("x.jpg")], [digest("x")], {c: np.ones((1, c.width)) for c in columns})
        w.commit()
    assert store["photos"].ids() == sorted([*FILES, "x.jpg"])
    assert verify_store(store.path).ok


def _interrupting(real: type) -> Callable[[], object]:
    """The second construction, which follows the commit, is interrupted."""
    calls = iter([None, KeyboardInterrupt()])

    def make() -> object:
        if (fault := next(calls, None)) is not None:
            raise fault
        return real()

    return make


def test_a_layer_that_refuses_a_value_leaves_the_other_layers_alone(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    store = fill(FILES)
    late = Column("layer2", Pooling.parse("max"), 2)
    with store.writer("photos", contract, [late]) as w:
        for name, text in FILES.items():
            values = np.full((1, 2), 1e5 if name == "004.jpg" else 1.0)
            w.append([image(name)], [digest(text)], {late: values})
        w.link(image("copy.jpg"), digest("picture 4"))
        assert w.is_known(digest("picture 4"), [late]), "what was refused is not computed again"
        w.commit()
        w._retries = True
        assert not w.is_known(digest("picture 4"), [late]), "but on request"
        w.link(image("copy.jpg"), digest("picture 4"))
    photos = store["photos"]
    assert "004.jpg" in photos.matrix("layer4").ids
    assert "004.jpg" not in photos.matrix("layer2").ids
    assert "004.jpg" not in photos.matrix(["layer4", "layer2"]).ids
    assert [(f.id, f.kind) for f in photos.failures()] == [("004.jpg", "value"), ("copy.jpg", "value")]
    before = photos.version
    wide = Column("layer2", Pooling.parse("max"), 2, "float32")
    with store.writer("photos", contract, [wide]) as w:
        for name, text in {**FILES, "copy.jpg": "picture 4"}.items():
            if not w.is_known(digest(text), [wide]):
                w.append([image(name)], [digest(text)], {wide: np.full((1, 2), 1e5)})
    assert "004.jpg" in photos.matrix("layer2:max:float32").ids
    assert "004.jpg" not in photos.matrix("layer2:max:float16").ids
    assert "004.jpg" not in photos.matrix("layer2", version=before).ids


def test_a_column_is_not_there_before_it_has_a_row(
    fill: Fill, contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, [Column("layer4", Pooling.parse("gem"), 6)]):
        pass
    assert store["photos"].columns == columns
    assert store["photos"].matrix("layer4").X.shape == (10, 6)
    with pytest.raises(LayerNotFoundError):
        store["photos"].matrix("layer4:gem")


def test_an_old_version_reads_the_same_after_a_failure_is_mended(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, columns) as w:
        w.fail(image("bad.jpg"), "decode", "truncated")
    old = store["photos"].version
    fill({"bad.jpg": "mended"})
    assert store["photos"].failures() == ()
    assert [f.id for f in store["photos"].failures(version=old)] == ["bad.jpg"]
    assert store["photos"].matrix("layer4", version=old).ids == sorted(FILES)


def test_a_failure_for_another_reason_leaves_earlier_versions_and_those_who_read_them_alone(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    store = fill(FILES)
    photos = store["photos"]
    with store.writer("photos", contract, columns) as w:
        w.fail(image("bad.jpg"), "decode", "truncated")
    old = photos.version
    fill({"later.jpg": "later"})
    photos.tag("old", old)
    photos.revert(old)
    with pytest.raises(RuntimeError, match="cut off"), store.writer("photos", contract, columns) as w:
        w.fail(image("bad.jpg"), "read", "input/output error")
        w.commit()
        raise RuntimeError("cut off")
    assert [f.reason for f in photos.failures()] == ["truncated"]
    assert [f.reason for f in photos.failures(version=old)] == ["truncated"]
    assert verify_store(store.path).ok
    assert not repair_store(store.path).is_needed
    with store.writer("photos", contract, columns):
        pass
    assert [(f.kind, f.attempts) for f in photos.failures()] == [("read", 2)]
    assert photos.tags() == {"old": old}


def test_a_matrix_is_of_one_commit_even_when_readers_are_moved_meanwhile(
    fill: Fill, other_contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other generation gives the layer another width: half of each must never come together."""
    store = fill(FILES)
    wider = Column("layer4", Pooling.parse("avg"), 3)
    first = store["photos"].matrix("layer4").X
    from icecore.store import reading

    locate = reading.locate

    def switch_then_locate(*where: Any) -> Any:
        fill(FILES, contract=other_contract, columns=[wider])
        return locate(*where)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "locate", switch_then_locate)
        np.testing.assert_array_equal(store["photos"].matrix("layer4").X, first)
    assert store["photos"].matrix("layer4").X.shape == (10, 3)


def test_the_last_word_on_an_image_counts(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Make
) -> None:
    store = fill(FILES)
    with store.writer("photos", contract, columns) as w:
        w.remove(["000.jpg", "001.jpg"])
        w.link(image("000.jpg"), digest("picture 0"))
        with pytest.raises(ValueError, match=r"not opened for layer9:avg"):
            stranger = Column("layer9", Pooling.parse("avg"), 2)
            w.append([image("q.jpg")], [digest("q")], {stranger: np.ones((1, 2))})
        with pytest.raises(ValueError, match=r"'q.jpg' has no features"):
            w.link(image("q.jpg"), digest("q"))
    ids = store["photos"].ids()
    assert "000.jpg" in ids
    assert "001.jpg" not in ids


CONTRACTS = [
    Contract("m", {}, "0" * 64, ({"op": "resize", "size": size},), "pillow", ("full",), "fp32") for size in (8, 9)
]
COLUMNS = [Column(f"layer{i}", Pooling.parse("avg"), i) for i in (1, 2, 3)]
NAMES = [f"{letter}.jpg" for letter in "abcdef"]


def stored_rows(folder: Path) -> list[tuple[str, bytes]]:
    """Every row on disk as (file, content), by bare h5py."""
    rows = []
    for path in (folder / "segments").rglob("*.h5"):
        with h5py.File(path) as file:
            rows += [(path.stem, content.tobytes()) for content in file["content"]]
    return sorted(rows)


def needed_rows(folder: Path) -> list[tuple[str, bytes]]:
    """What FORMAT.md says that a collection leaves, row by row, by bare sqlite3 and h5py."""
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        heads = db.execute("SELECT generation_id, as_of FROM heads WHERE collected IS NULL").fetchall()
        (now, read) = db.execute("SELECT max(version), generation_id FROM heads").fetchone()
        assert now is not None
        ((last,),) = db.execute("SELECT generation_id FROM versions WHERE kind = 'sync' ORDER BY id DESC LIMIT 1")
        unseen = db.execute(
            "SELECT id FROM generations WHERE id > ? AND id NOT IN (SELECT generation_id FROM heads)", (read,)
        )
        needs = {*heads, *((generation, 10**9) for generation in (read, last, *(row[0] for row in unseen)))}
        images = db.execute(
            "SELECT sha256, i.added_in, coalesce(i.removed_in, 1e18) FROM images i JOIN contents c ON c.id = content_id"
        ).fetchall()
        segments = db.execute(
            "SELECT path, uuid, generation_id, added_in, coalesce(removed_in, 1e18) FROM segments"
        ).fetchall()
    rows, met = [], set[tuple[object, ...]]()
    for path, uuid, generation, first, end in segments:
        points = [v for g, v in needs if g == generation and first <= v < end]
        most = Counter[bytes]()
        for v in points:
            most |= Counter(content for content, added, removed in images if added <= v < removed)
        with h5py.File(folder / path) as file:
            held = Counter(content.tobytes() for content in file["content"])
            places = {(generation, v, name, c) for v in points for name in file["columns"] for c in held & most}
        assert not places & met, "as of one need a column has a content in one segment"
        met |= places
        rows += [(uuid, content) for content in (held & most).elements()]
    return sorted(rows)


class Lives(RuleBasedStateMachine):
    """A folder in memory, synced into a store by runs that may be cut off; the model is a dict a version."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = FeatureStore.create(self.folder.name)
        self.files: dict[str, tuple[str, int]] = {}
        self.clock = 0
        self.tags: dict[str, int] = {}
        self.seen: dict[int, dict[str, dict[str, bytes]]] = {}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            report = verify_store(self.store.path) if (self.store.path / "catalog.sqlite").exists() else None
            assert report is None or report.ok, report.problems
            self.store.close()
            self.folder.cleanup()

    @rule(name=st.sampled_from(NAMES), text=st.sampled_from(["1", "2", "3", "4", "bad"]))
    def save(self, name: str, text: str) -> None:
        self.clock += 1
        self.files[name] = (text, self.clock)

    @rule(name=st.sampled_from(NAMES), new=st.sampled_from(NAMES))
    def move(self, name: str, new: str) -> None:
        if name in self.files and new != name:
            self.files[new] = self.files.pop(name)

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        self.files.pop(name, None)

    @rule(
        which=st.integers(0, 1),
        columns=st.sets(st.sampled_from(COLUMNS), min_size=1),
        cut=st.none() | st.integers(0, 6),
        frequent=st.booleans(),
    )
    def run(self, which: int, columns: set[Column], cut: int | None, *, frequent: bool) -> None:
        """One extraction: every file is read, as with ``--rehash``; cut off after some images, or clean."""
        contract, chosen = CONTRACTS[which], sorted(columns, key=lambda column: column.name)
        try:
            with self.store.writer("photos", contract, chosen) as w:
                for number, name in enumerate(sorted(self.files)):
                    if number == cut:
                        raise RuntimeError("cut off")
                    self._read(w, name, contract, chosen)
                    if frequent:
                        w.commit()
                known = self.store["photos"].ids() if "photos" in self.store.sets() else []
                w.remove([i for i in {*known, *NAMES} if i not in self.files])
        except RuntimeError:
            return
        if not self._is_current(contract):
            return
        wanted = {name: text for name, (text, _) in self.files.items() if text != "bad"}
        for column in chosen:
            if wanted:
                self._check(column, contract, wanted)

    @precondition(lambda self: "photos" in self.store.sets())
    @rule()
    def compact(self) -> None:
        """Every column of every set of images in one segment, and no reader notices."""
        before = {c.name: self.store["photos"].matrix(c.name, missing="drop") for c in self.store["photos"].columns}
        self.store.compact()
        assert self.store.compact() == []
        for name, (ids, X) in before.items():
            assert self._rows(name, None) == {i: v.tobytes() for i, v in zip(ids, X, strict=True)}

    @precondition(lambda self: "photos" in self.store.sets())
    @rule(name=st.sampled_from(["a", "b"]), choose=st.data())
    def tag(self, name: str, choose: st.DataObject) -> None:
        photos = self.store["photos"]
        version = choose.draw(st.sampled_from([v.number for v in photos.log() if v.readable]))
        assert photos.tag(name, version, move=True) == version
        self.tags[name] = version

    @precondition(lambda self: self.tags)
    @rule(choose=st.data())
    def untag(self, choose: st.DataObject) -> None:
        name = choose.draw(st.sampled_from(sorted(self.tags)))
        assert self.store["photos"].untag(name) == self.tags.pop(name)

    @precondition(lambda self: "photos" in self.store.sets())
    @rule(choose=st.data())
    def revert(self, choose: st.DataObject) -> None:
        photos = self.store["photos"]
        version = choose.draw(st.sampled_from([v.number for v in photos.log() if v.readable]))
        contract = photos.as_of(version).contract
        photos.revert(version)
        assert photos.contract == contract
        for name, rows in self.seen.get(version, {}).items():
            assert self._rows(name, None) == rows

    @precondition(lambda self: "photos" in self.store.sets())
    @rule(newest=st.integers(1, 3))
    def gc(self, newest: int) -> None:
        """What must be kept reads as before (see the invariant), and not a row more is there than that needs."""
        photos = self.store["photos"]
        heads = [v.number for v in photos.log() if v.readable]
        would = self.store.collect(keep_versions=newest, dry_run=True)
        done = self.store.collect(keep_versions=newest)
        assert [(s.kept, s.collected, s.rows) for s in done.sets] == [(s.kept, s.collected, s.rows) for s in would.sets]
        readable = {v.number for v in photos.log() if v.readable}
        assert readable >= {*heads[:newest], *self.tags.values()}
        for version in self.seen.keys() - readable:
            with pytest.raises(VersionNotFoundError, match="collected by gc"):
                photos.as_of(version)
            del self.seen[version]
        assert stored_rows(self.store.path) == needed_rows(self.store.path)
        assert self.store.collect(keep_versions=newest).bytes == 0

    @precondition(lambda self: "photos" in self.store.sets())
    @rule(choose=st.data())
    def drop(self, choose: st.DataObject) -> None:
        log = self.store["photos"].log()
        uuid = choose.draw(st.sampled_from(sorted({v.generation for v in log})))
        in_use = {self.store["photos"].as_of(v.number).generation for v in log if v.readable}
        if uuid in in_use:
            with pytest.raises(RefusedError):
                self.store.drop(uuid)
        else:
            self.store.drop(uuid)
            assert not (self.store.path / "segments" / "photos" / uuid).exists()

    def _rows(self, name: str, version: int | None) -> dict[str, bytes]:
        """Read a column; one that no image has may be gone with the rows of images that are gone."""
        try:
            ids, X = self.store["photos"].matrix(name, version=version, missing="drop")
        except LayerNotFoundError:
            return {}
        return {i: v.tobytes() for i, v in zip(ids, X, strict=True)}

    def _read(self, w: writer.Writer, name: str, contract: Contract, columns: list[Column]) -> None:
        text, changed = self.files[name]
        image = SourceImage(name, Path(name), len(text), changed, changed)
        content = digest(text)
        if text == "bad":
            w.fail(image, "decode", "truncated")
        elif w.is_known(content, columns):
            w.link(image, content)
        else:
            w.append([image], [content], {c: row(content, c, contract)[None] for c in columns})

    def _is_current(self, contract: Contract) -> bool:
        return "photos" in self.store.sets() and self.store["photos"].contract == contract

    def _check(self, column: Column, contract: Contract, wanted: dict[str, str]) -> None:
        ids, X = self.store["photos"].matrix(column.name)
        assert ids == sorted(wanted)
        np.testing.assert_array_equal(X, [row(digest(wanted[i]), column, contract) for i in ids])

    @precondition(lambda self: "photos" in self.store.sets())
    @invariant()
    def every_row_is_right_and_the_past_stays(self) -> None:
        photos = self.store["photos"]
        contract = photos.contract
        contents = {row(digest(t), c, contract).tobytes() for t in "1234" for c in COLUMNS}
        now: dict[str, dict[str, bytes]] = {}
        for column in photos.columns:
            try:
                ids, X = photos.matrix(column.name)
            except IncompleteColumnError:
                ids, X = photos.matrix(column.name, missing="drop")
            assert len(set(ids)) == len(ids)
            assert all(vector.tobytes() in contents for vector in X)
            now[column.name] = {i: vector.tobytes() for i, vector in zip(ids, X, strict=True)}
        self.seen.setdefault(photos.version, now)
        for version, then in self.seen.items():
            for name, rows in then.items():
                assert self._rows(name, version) == rows


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
