"""Bytes that change behind our back: verify names the file, and no reader crashes or reads a row of another image."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from icecore.store import (
    Column,
    Contract,
    FeatureStore,
    SourceImage,
    StoreDamagedError,
    apart,
    verify_store,
)
from icecore.store.examine import check_file, recorded

Fill = Callable[..., FeatureStore]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(40)}
COUNT = 500


@pytest.fixture
def many(
    tmp_path: Path, contract: Contract, columns: tuple[Column, Column], vectors: Callable[[bytes, Column], np.ndarray]
) -> FeatureStore:
    """Fifty segments of four images each."""
    store = FeatureStore.create(tmp_path / "many")
    with pytest.MonkeyPatch.context() as patch, store.writer("photos", contract, columns) as writer:
        patch.setattr("icecore.store.compact.COMPACT_PAST", 1000)
        for number in range(50):
            names = [f"{number:02}-{i}.jpg" for i in range(4)]
            contents = [bytes([number, i]) * 16 for i in range(4)]
            features = {c: np.stack([vectors(content, c) for content in contents]) for c in columns}
            writer.append([SourceImage(name, Path(name), 1, 1, 1) for name in names], contents, features)
            writer.commit()
    return store


def segments_of(store: FeatureStore) -> list[Path]:
    return sorted(store.path.glob("segments/**/*.h5"))


def data_spans(store: FeatureStore) -> dict[Path, list[range]]:
    """Where the features lie in each file, as the catalog says."""
    with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db:
        rows = db.execute(
            "SELECT s.path, c.offset, s.rows * k.width * 2 FROM segments s "
            "JOIN segment_columns c ON c.segment_id = s.id JOIN columns k ON k.id = c.column_id"
        ).fetchall()
    spans: dict[Path, list[range]] = {}
    for path, offset, size in rows:
        spans.setdefault(store.path / path, []).append(range(offset, offset + size))
    return spans


def flip(path: Path, offset: int, mask: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ mask]))


def test_any_flipped_byte_is_found_and_only_rows_of_flipped_features_change(many: FeatureStore) -> None:
    """Ten rounds of fifty files, a byte in each: verify names all fifty, and readers get what is theirs."""
    files, spans, rng = segments_of(many), data_spans(many), random.Random(20)
    before = many["photos"].matrix("layer4")
    relative = {path: path.relative_to(many.path).as_posix() for path in files}
    for _ in range(COUNT // len(files)):
        flips = [(path, rng.randrange(path.stat().st_size), 1 << rng.randrange(8)) for path in files]
        for place in flips:
            flip(*place)
        report = verify_store(many.path)
        assert [problem.path for problem in report.problems] == sorted(relative.values(), key=_age(many))
        hurt = {path for path, offset, _ in flips if any(offset in span for span in spans[path])}
        after = many["photos"].matrix("layer4")
        assert after.ids == before.ids
        changed = sum((a.tobytes() != b.tobytes()) for a, b in zip(before.X, after.X, strict=True))
        assert changed <= len(hurt)
        for place in flips:
            flip(*place)
    assert verify_store(many.path).ok


def _age(store: FeatureStore) -> Callable[[str], int]:
    with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db:
        order = dict(db.execute("SELECT path, id FROM segments"))
    return order.__getitem__


def test_every_byte_of_a_header_is_checked_and_none_is_needed_to_read(fill: Fill) -> None:
    store = fill(FILES)
    (path,) = segments_of(store)
    (spans,) = data_spans(store).values()
    sound, before = path.read_bytes(), store["photos"].matrix(["layer3", "layer4"])
    header = [offset for offset in range(len(sound)) if not any(offset in span for span in spans)]
    rng = random.Random(21)
    with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db:
        (segment,) = recorded(db)
    descriptor = os.open(path, os.O_RDWR)
    for number, offset in enumerate(header):
        os.pwrite(descriptor, bytes([sound[offset] ^ (1 << rng.randrange(8))]), offset)
        assert check_file(store.path, segment).state == "damaged", offset
        if number % 100 == 0:
            after = store["photos"].matrix(["layer3", "layer4"])
            assert after.ids == before.ids
            np.testing.assert_array_equal(after.X, before.X)
        os.pwrite(descriptor, sound[offset : offset + 1], offset)
    os.pwrite(descriptor, bytes(byte ^ 0xFF for byte in sound[:512]), 0)  # and no HDF5 file at all
    np.testing.assert_array_equal(store["photos"].matrix(["layer3", "layer4"]).X, before.X)
    os.close(descriptor)


_QUICK = textwrap.dedent("""
    import sys
    from icecore.store import apart, verify_store
    apart.PATIENCE = 3.0
    for problem in verify_store(sys.argv[1], quick=True).problems:
        print(problem.path, problem.what)
""")


def test_headers_on_which_hdf5_crashes_or_hangs_do_not_end_verify(many: FeatureStore) -> None:
    """Single flipped bits that did so with HDF5 2.0; another release may read or refuse them, and must survive too."""
    files = segments_of(many)
    for path, (offset, mask) in zip(files, [(1057, 255), (1137, 4), (1577, 255), (4105, 1), (0, 255)], strict=False):
        flip(path, offset, mask)
    done = subprocess.run([sys.executable, "-c", _QUICK, many.path], capture_output=True, text=True, check=True)
    assert files[4].name in done.stdout, "no signature at all"
    assert {problem.path for problem in verify_store(many.path).problems} == {
        path.relative_to(many.path).as_posix() for path in files[:5]
    }


def test_a_file_that_kills_the_helper_is_told_and_the_next_one_is_read(
    fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever HDF5 does: here the other process is made to die, and to hang, on files of these names."""
    store = fill(FILES)
    (sound,) = segments_of(store)
    dies, hangs = (sound.with_name(name) for name in ("dies.h5", "hangs.h5"))
    for path in (dies, hangs):
        shutil.copy(sound, path)
    monkeypatch.setattr(apart, "PATIENCE", 0.5)
    monkeypatch.setattr(apart, "CODE", _HOSTILE)
    answers = list(apart.layouts_of([sound, dies, sound, hangs, sound]))
    assert [str(answer) for answer in answers if isinstance(answer, StoreDamagedError)] == [
        "HDF5 crashes on it (exit -11)",
        "HDF5 does not come back from it within 0.5 s",
    ]
    assert [isinstance(answer, StoreDamagedError) for answer in answers] == [False, True, False, True, False]


_HOSTILE = textwrap.dedent("""
    import os, signal, time
    from icecore.store import apart
    real = apart.describe
    def describe(path):
        if path.name == "dies.h5":
            os.kill(os.getpid(), signal.SIGSEGV)
        while path.name == "hangs.h5":
            time.sleep(1)
        return real(path)
    apart.describe = describe
    apart.answer()
""")


def _swap(path: Path, other: Path) -> None:
    path.write_bytes(other.read_bytes())


DAMAGES: list[tuple[Callable[[Path, Path], object], str]] = [
    (lambda path, _: os.truncate(path, 1), "has 1 bytes"),
    (lambda path, _: os.truncate(path, path.stat().st_size - 1), "bytes, should have"),
    (lambda path, _: path.write_bytes(path.read_bytes() + b"\0"), "bytes, should have"),
    (lambda path, _: path.write_bytes(b""), "has 0 bytes"),
    (_swap, "another"),
    (lambda path, _: (path.unlink(), path.mkdir()), "is not a file"),
    (lambda path, _: (path.unlink(), path.symlink_to("nowhere")), "is missing"),
]


@pytest.mark.parametrize("quick", [False, True], ids=["full", "quick"])
def test_files_that_are_something_else_are_named(many: FeatureStore, *, quick: bool) -> None:
    """Cut, longer, empty, swapped, a folder, a link to nowhere: each in a segment of its own."""
    *paths, other = segments_of(many)[: len(DAMAGES) + 1]
    for path, (damage, _) in zip(paths, DAMAGES, strict=True):
        damage(path, other)
    told = {problem.path: problem.what for problem in verify_store(many.path, quick=quick).problems}
    assert told.keys() == {path.relative_to(many.path).as_posix() for path in paths}
    for path, (_, what) in zip(paths, DAMAGES, strict=True):
        assert what in told[path.relative_to(many.path).as_posix()]
    with pytest.raises(StoreDamagedError):
        many["photos"].matrix("layer4")


def test_a_file_cut_anywhere_is_refused_or_read_whole(fill: Fill) -> None:
    store = fill(FILES)
    (path,) = segments_of(store)
    sound, before = path.read_bytes(), store["photos"].matrix("layer4").X
    for length in random.Random(22).sample(range(len(sound)), 60):
        os.truncate(path, length)
        with suppress(StoreDamagedError):
            np.testing.assert_array_equal(store["photos"].matrix("layer4").X, before)
        path.write_bytes(sound)


_AS_NOBODY = textwrap.dedent("""
    import os, sys
    from icecore.store import FeatureStore, StoreError, repair_store, verify_store
    verify_store(sys.argv[1])  # all that is imported, before it may not be read any more
    os.setgid(65534), os.setuid(65534)
    print(verify_store(sys.argv[1]).problems)
    photos = FeatureStore.open(sys.argv[1])["photos"]
    for call in (lambda: photos.matrix("layer4"), lambda: repair_store(sys.argv[1], dry_run=True)):
        try:
            call()
        except StoreError as exc:
            print(exc)
""")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read the file")
def test_a_file_that_may_not_be_read_is_no_damage_that_repair_acts_on(fill: Fill) -> None:
    store = fill(FILES)
    (path,) = segments_of(store)
    path.chmod(0)
    store.close()
    opened_up = [p for p in store.path.parents if p.stat().st_mode & 0o5 != 0o5]
    for folder in opened_up:
        folder.chmod(folder.stat().st_mode | 0o5)
    done = subprocess.run([sys.executable, "-c", _AS_NOBODY, store.path], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, done.stderr
    problems, refusal, repair = done.stdout.splitlines()
    assert "cannot be read (Permission denied)" in problems
    assert path.name in refusal
    assert "nothing was changed" in repair


# The catalog.

CHILD = textwrap.dedent("""
    import sys
    from pathlib import Path
    import numpy as np
    from icecore.store import FeatureStore, StoreError, verify_store
    folder, sound = Path(sys.argv[1]), Path(sys.argv[2]).read_bytes()
    def read():
        with FeatureStore.open(folder) as store:
            photos = store["photos"]
            return [(ids, X.tobytes()) for ids, X in (photos.matrix(name) for name in ("layer3", "layer4"))]
    (folder / "catalog.sqlite").write_bytes(sound)
    before = read()
    for line in sys.stdin:
        offset, mask = map(int, line.split())
        (folder / "catalog.sqlite").write_bytes(
            sound[:offset] + bytes([sound[offset] ^ mask]) + sound[offset + 1 :])
        try:
            outcome = "same" if read() == before else "other"
        except StoreError:
            outcome = "refused"
        try:
            seen = "sound" if verify_store(folder).ok else "damaged"
        except StoreError:
            seen = "damaged"
        print(offset, outcome, seen, flush=True)
""")


def test_a_flipped_byte_of_the_catalog_is_seen_or_does_no_harm(fill: Fill, tmp_path: Path) -> None:
    """In another process, as a crash would be one of SQLite; what it reads otherwise, verify must see."""
    store = fill({**FILES, "003.jpg": "before"})
    fill(FILES)
    store.close()
    with closing(sqlite3.connect(store.path / "catalog.sqlite")) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    sound = (store.path / "catalog.sqlite").read_bytes()
    (tmp_path / "sound").write_bytes(sound)
    used = [offset for offset, byte in enumerate(sound) if byte]  # free space is zeros
    rng = random.Random(23)
    flips = [(rng.choice(used), 1 << rng.randrange(8)) for _ in range(100)]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, store.path, tmp_path / "sound"],
        input="".join(f"{offset} {mask}\n" for offset, mask in flips),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert len(told) == len(flips)
    assert [line for line in told if line[1] == "other" and line[2] == "sound"] == []
