"""A copy of a store beside a writer and a collector at work: always whole, and never copied twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import (
    Column,
    FeatureStore,
    LockedError,
    RefusedError,
    StoreDamagedError,
    StoreNotFoundError,
    backup,
    backup_store,
    store_status,
    verify_store,
)
from icecore.store.lock import writer_lock

Fill = Callable[..., FeatureStore]
Expected = Callable[[dict[str, str], Column], np.ndarray]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}
MORE = {**FILES, **{f"{i:03}.jpg": f"picture {i}" for i in range(20, 30)}}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but those of SQLite and of the lock."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(("catalog.sqlite", "writer."))
    }


def reads_as(path: Path, files: dict[str, str], columns: Sequence[Column], expected: Expected) -> None:
    with FeatureStore.open(path) as store:
        for column in columns:
            ids, X = store["photos"].matrix(column.layer)
            assert ids == sorted(files)
            assert (expected(files, column) == X).all()
    report = verify_store(path)
    assert report.ok, report.problems


def test_a_copy_reads_as_the_store_and_is_brought_up_to_date_by_what_is_new(
    fill: Fill, columns: Sequence[Column], expected: Expected, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with fill(FILES) as store:
        (store.path / "models" / "m" / "b").mkdir(parents=True)
        (store.path / "models" / "m" / "b" / "model.skops").write_bytes(b"model")
        first = backup_store(store.path, copy)
        assert (first.segments, first.copied, first.removed) == (1, 1, 0)
        reads_as(copy, FILES, columns, expected)
        assert tree(copy) == tree(store.path)
        assert backup_store(store.path, copy).bytes == 0
    with fill(MORE) as store:
        again = backup_store(store.path, copy)
        assert again.copied == again.segments - 1
        reads_as(copy, MORE, columns, expected)
        assert store_status(copy).digest == store_status(store.path).digest


def test_a_copy_goes_back_to_a_new_folder_and_the_next_run_goes_on_there(
    fill: Fill, columns: Sequence[Column], expected: Expected, tmp_path: Path
) -> None:
    with fill(FILES) as store:
        backup_store(store.path, tmp_path / "copy")
    shutil.rmtree(tmp_path / "features")
    backup_store(tmp_path / "copy", tmp_path / "features")
    fill(MORE).close()
    reads_as(tmp_path / "features", MORE, columns, expected)


def test_what_a_collection_took_away_leaves_the_copy_too(
    fill: Fill, columns: Sequence[Column], expected: Expected, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    fill(FILES).close()
    with fill(MORE) as store:
        backup_store(store.path, copy)
        store.compact()
        store.collect()
        done = backup_store(store.path, copy)
        assert done.removed >= 1
        reads_as(copy, MORE, columns, expected)
        assert tree(copy).keys() == tree(store.path).keys()


def test_a_collection_in_the_middle_makes_it_begin_again(
    fill: Fill, columns: Sequence[Column], expected: Expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(FILES).close()
    copy_segment, calls = backup._copy_segment, []

    def collect_first(folder: Path, *rest: Any) -> None:
        if not calls:
            with FeatureStore.open(folder) as store:
                store.compact()
                store.collect()
        calls.append(rest)
        copy_segment(folder, *rest)

    with fill(MORE) as store:
        monkeypatch.setattr(backup, "_copy_segment", collect_first)
        backup_store(store.path, tmp_path / "copy")
    assert len(calls) >= 2
    reads_as(tmp_path / "copy", MORE, columns, expected)


WRITER = """
import hashlib, sys
from pathlib import Path
import numpy as np
from icecore.store import FeatureStore, SourceImage
with FeatureStore.open(Path(sys.argv[1])) as store:
    features = store["photos"]
    contract, columns = features.contract, features.columns
    with store.writer("photos", contract, columns) as writer:
        for n in range(100_000):
            content = hashlib.sha256(f"new {n}".encode()).digest()
            image = SourceImage(f"n{n:06}.jpg", Path("x"), 1, 1, 1)
            writer.append([image], [content], {c: np.full((1, c.width), n % 100) for c in columns})
            if n % 5 == 4:
                writer.commit()
                print(n, flush=True)
"""


def test_beside_a_writer_at_work_every_copy_is_one_of_its_commits(fill: Fill, tmp_path: Path) -> None:
    fill(FILES).close()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "features")], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline()
        seen = []
        for _ in range(4):
            backup_store(tmp_path / "features", tmp_path / "copy")
            report = verify_store(tmp_path / "copy")
            assert report.ok, report.problems
            with FeatureStore.open(tmp_path / "copy") as copy:
                ids, X = copy["photos"].matrix("layer3")
            new = [(int(name[1:7]), row) for name, row in zip(ids, X, strict=True) if name.startswith("n")]
            assert [n for n, _ in new] == list(range(len(new)))
            assert all((row == n % 100).all() for n, row in new)
            assert len(new) % 5 == 0
            seen.append(len(new))
        assert writer.poll() is None
        writer.kill()
    assert seen == sorted(seen)
    assert seen[-1] > 0


KILLED = """
import os, signal, sys
from pathlib import Path
from icecore.store import backup, backup_store
step, number = sys.argv[3], int(sys.argv[4])
act, calls = getattr(backup, step), []

def killed(*args):
    calls.append(args)
    if len(calls) == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return act(*args)

setattr(backup, step, killed)
backup_store(Path(sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("step", "number"),
    [("_copy_segment", 1), ("_copy_others", 1), ("publish", 1), ("publish", 2), ("sweep", 1)],
)
def test_killed_at_any_step_the_copy_is_the_old_or_the_new_one(
    fill: Fill, columns: Sequence[Column], expected: Expected, tmp_path: Path, step: str, number: int
) -> None:
    copy = tmp_path / "copy"
    with fill(FILES) as store:
        backup_store(store.path, copy)
    with fill(MORE) as store:
        store.compact()
        store.collect()  # something is to go, too
        words = [sys.executable, "-c", KILLED, str(store.path), str(copy), step, str(number)]
        assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
        reads_as(copy, MORE if step == "sweep" else FILES, columns, expected)
        backup_store(store.path, copy)
        reads_as(copy, MORE, columns, expected)
        assert tree(copy) == tree(store.path)


def test_a_first_backup_that_was_killed_can_be_begun_again(
    fill: Fill, columns: Sequence[Column], expected: Expected, tmp_path: Path
) -> None:
    with fill(FILES) as store:
        words = [sys.executable, "-c", KILLED, str(store.path), str(tmp_path / "copy"), "publish", "1"]
        assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
        with pytest.raises((StoreNotFoundError, StoreDamagedError)):
            FeatureStore.open(tmp_path / "copy")
        backup_store(store.path, tmp_path / "copy")
    reads_as(tmp_path / "copy", FILES, columns, expected)


def test_damage_is_never_copied_and_the_copy_stays(
    fill: Fill, columns: Sequence[Column], expected: Expected, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    with fill(FILES) as store:
        backup_store(store.path, copy)
    with fill(MORE) as store:
        newest = max(store.path.rglob("*.h5"), key=lambda path: path.stat().st_mtime_ns)
        data = bytearray(newest.read_bytes())
        data[len(data) // 2] ^= 1
        newest.write_bytes(data)
        with pytest.raises(StoreDamagedError, match="does not match its checksum, and was not copied"):
            backup_store(store.path, copy)
        newest.unlink()
        with pytest.raises(StoreDamagedError, match="missing; `icecore store verify"):
            backup_store(store.path, copy)
    reads_as(copy, FILES, columns, expected)


def test_other_folders_are_refused(fill: Fill, tmp_path: Path) -> None:
    with fill(FILES) as store:
        for place in (store.path, store.path / "inside", tmp_path):
            with pytest.raises(RefusedError, match=r"is .* itself, or one lies in the other"):
                backup_store(store.path, place)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        FeatureStore.create(tmp_path / "another").close()
        for place in (tmp_path / "mine", tmp_path / "another"):
            with pytest.raises(RefusedError, match="holds something else"):
                backup_store(store.path, place)
        (tmp_path / "file").write_text("")
        with pytest.raises(RefusedError, match="is no folder"):
            backup_store(store.path, tmp_path / "file")
        backup_store(store.path, tmp_path / "copy")
        with writer_lock(tmp_path / "copy"), pytest.raises(LockedError):
            backup_store(store.path, tmp_path / "copy")
    with pytest.raises(StoreNotFoundError):
        backup_store(tmp_path / "nosuch", tmp_path / "copy")


def test_the_store_may_be_read_only(fill: Fill, columns: Sequence[Column], expected: Expected, tmp_path: Path) -> None:
    fill(FILES).close()
    os.chmod(tmp_path / "features", 0o555)
    try:
        backup_store(tmp_path / "features", tmp_path / "copy")
    finally:
        os.chmod(tmp_path / "features", 0o755)
    reads_as(tmp_path / "copy", FILES, columns, expected)
