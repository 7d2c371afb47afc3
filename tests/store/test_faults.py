"""The commit protocol under faults: errors at each step and system call, and kill -9; then a look at what is there."""

from __future__ import annotations

import errno
import hashlib
import io
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import (
    Column,
    Contract,
    DiskError,
    FeatureStore,
    Pooling,
    SetNotFoundError,
    SourceImage,
    StoreNotFoundError,
    durable,
    publishing,
    segment,
    verify_store,
    writer,
)

Fill = Callable[..., FeatureStore]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(8)}
MORE = {**FILES, "new.jpg": "a new picture"}
STEPS = [
    (publishing, "write_segment"),
    (publishing, "file_checksum"),
    (durable, "fsync_file"),
    (durable, "fsync_folder"),
    (writer, "apply_commit"),
]
NUMBERS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE]


def files_of(store: FeatureStore) -> list[str]:
    """Every file of a store but SQLite's own and the lock."""
    files = (path.relative_to(store.path).as_posix() for path in store.path.rglob("*") if path.is_file())
    return sorted(name for name in files if not name.startswith("catalog.sqlite") and name != "writer.lock")


def assert_as_before(store: FeatureStore, before: np.ndarray) -> None:
    with FeatureStore.open(store.path) as opened:
        ids, X = opened["photos"].matrix("layer4")
    assert ids == sorted(FILES)
    np.testing.assert_array_equal(X, before)
    assert verify_store(store.path).ok


def assert_empty(path: Path) -> None:
    with pytest.raises((StoreNotFoundError, SetNotFoundError)):
        FeatureStore.open(path)["photos"]


def assert_healed(fill: Fill, segments: int = 2) -> None:
    """The next run brings everything, once."""
    store = fill(MORE)
    assert store["photos"].ids() == sorted(MORE)
    assert verify_store(store.path).ok
    assert [name[-3:] for name in files_of(store)] == [".h5"] * segments
    assert store.db.execute("SELECT count(*) FROM intents").fetchone() == (0,)
    store.close()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "step"), STEPS, ids=[step for _, step in STEPS])
def test_a_fault_at_any_step_leaves_the_old_version_and_the_next_run_heals(
    fill: Fill, monkeypatch: pytest.MonkeyPatch, module: object, step: str, after: bool
) -> None:
    store = fill(FILES)
    before, files = store["photos"].matrix("layer4").X, files_of(store)
    real = getattr(module, step)

    def fail(*args: object, **kwargs: object) -> object:
        if after:
            real(*args, **kwargs)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        if step == "write_segment":
            patch.setattr(segment, step, fail)
        with pytest.raises(OSError, match="No space left"):
            fill(MORE)
    assert_as_before(store, before)
    assert files_of(store) == files, "a run that failed takes away what it announced"
    assert_healed(fill)


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is offered: thousands of fsyncs."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


class SystemCalls:
    """Counts what asks the file system for something; from ``fail_at`` on it is refused, once or for good."""

    def __init__(self, patch: pytest.MonkeyPatch, *, fail_at: int = 0, number: int = 0, for_good: bool = False) -> None:
        self.count, self.fail_at, self.number, self.for_good = 0, fail_at, number, for_good
        for name in ("open", "fsync", "replace", "mkdir", "unlink"):
            patch.setattr(os, name, self.guard(getattr(os, name)))
        patch.setattr(Path, "open", self.guard(Path.open))
        calls = self

        class Guarded(io.FileIO):
            def write(self, data: Any) -> int:
                calls.ask()
                return super().write(data)

            def truncate(self, size: int | None = None) -> int:
                calls.ask()
                return super().truncate(size)

        patch.setattr("icecore.store.sink.FileIO", Guarded)

    def guard(self, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            self.ask()
            return real(*args, **kwargs)

        return call

    def ask(self) -> None:
        self.count += 1
        if self.number and (self.count >= self.fail_at if self.for_good else self.count == self.fail_at):
            raise OSError(self.number, os.strerror(self.number))


def attempt(fill: Fill) -> DiskError | None:
    try:
        fill(MORE).close()
    except DiskError as exc:
        return exc
    return None


@pytest.mark.parametrize("for_good", [False, True], ids=["once", "for-good"])
@pytest.mark.parametrize("first", [True, False], ids=["first-run", "next-run"])
def test_an_error_of_any_system_call_leaves_the_version_before_and_the_next_run_heals(
    fill: Fill, tmp_path: Path, first: bool, for_good: bool
) -> None:
    store = fill(FILES)
    before = store["photos"].matrix("layer4").X
    store.close()
    store.path.rename(tmp_path / "kept")

    def restore() -> None:
        shutil.rmtree(store.path, ignore_errors=True)
        if not first:
            shutil.copytree(tmp_path / "kept", store.path)

    restore()
    with pytest.MonkeyPatch.context() as patch:
        calls = SystemCalls(patch)
        fill(MORE).close()
    refused = 0
    for fail_at, number in zip(range(1, calls.count + 1), itertools.cycle(NUMBERS), strict=False):
        restore()
        with pytest.MonkeyPatch.context() as patch:
            SystemCalls(patch, fail_at=fail_at, number=number, for_good=for_good)
            told = attempt(fill)
        if told is not None:  # else it was of no consequence: the note of the lock's holder, or the tidying up
            refused += 1
            assert told.errno == number
            assert str(store.path) in str(told)
            assert os.strerror(number) in str(told)
            assert_empty(store.path) if first else assert_as_before(store, before)
        assert_healed(fill, segments=1 if first else 2)
    assert refused >= 15


@pytest.mark.parametrize("pages", [0, 1, 2, 4, 8])
def test_sqlite_out_of_space_in_mid_transaction_leaves_the_old_version(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Callable[..., SourceImage], pages: int
) -> None:
    """By SQLite's own limit on pages; test_full_disk has the real thing."""
    store = fill(FILES)
    before, files = store["photos"].matrix("layer4").X, files_of(store)
    images = [image(f"{n:04}-{'x' * 200}.jpg") for n in range(500)]
    contents = [hashlib.sha256(b"%d" % n).digest() for n in range(500)]
    with (
        pytest.raises(DiskError, match=r"catalog.sqlite: database or disk is full \(SQLITE_FULL\); free some"),
        store.writer("photos", contract, columns) as w,
    ):
        held = w._db.execute("PRAGMA page_count").fetchone()[0]
        w._db.execute(f"PRAGMA max_page_count = {held + pages}")
        w.append(images, contents, {c: np.zeros((500, c.width)) for c in columns})
    assert_as_before(store, before)
    assert files_of(store) == files
    assert_healed(fill)


def test_a_transaction_cut_off_at_any_moment_leaves_the_old_version(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], image: Callable[..., SourceImage]
) -> None:
    """SQLite is made to stop after so many steps of its machine."""
    store = fill(FILES)
    before = store["photos"].matrix("layer4").X
    content = hashlib.sha256(b"a new picture").digest()
    stopped = 0
    for steps in itertools.count(1, 11):
        try:
            with store.writer("photos", contract, columns) as w:
                w.append([image("new.jpg")], [content], {c: np.zeros((1, c.width)) for c in columns})
                w._db.set_progress_handler(stop_after(steps), 1)
        except sqlite3.OperationalError:  # interrupted
            stopped += 1
        if store["photos"].version == 2:
            break
        assert_as_before(store, before)
    assert stopped > 20
    assert_healed(fill)


def stop_after(steps: int) -> Callable[[], int]:
    left = iter(range(steps))
    return lambda: int(next(left, None) is None)


def test_killed_before_the_catalog_commit_the_next_writer_sweeps_only_what_was_announced(
    fill: Fill, contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(store.path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (kept,) = [p for p in store.path.rglob("*.h5") if b"x.jpg" not in p.read_bytes()]
    assert len(list(store.path.rglob("*.h5"))) == 2
    assert store["photos"].ids() == sorted(FILES)
    with store.writer("photos", contract, columns):
        pass
    assert list(store.path.rglob("*.h5")) == [kept]
    assert verify_store(store.path).ok


_KILLED = textwrap.dedent("""
    import os, pathlib, signal, sys
    import numpy as np
    from icecore.store import FeatureStore, SourceImage, writer
    store = FeatureStore.open(sys.argv[1])
    photos = store["photos"]
    writer.apply_commit = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    with store.writer("photos", photos.contract, photos.columns) as w:
        image = SourceImage("x.jpg", pathlib.Path("x.jpg"), 1, 1, 1)
        w.append([image], [bytes(32)], {c: np.zeros((1, c.width)) for c in photos.columns})
""")


def test_a_limit_on_file_sizes_leaves_the_old_version(fill: Fill) -> None:
    """Python has SIGXFSZ ignored, so that the system refuses with EFBIG."""
    wide = (Column("layer4", Pooling.parse("avg"), 600),)
    store = fill(FILES, columns=wide)
    before = store["photos"].matrix("layer4").X
    store.close()
    code = f"""
        import json, resource, sys
        import numpy as np
        from pathlib import Path
        from icecore.store import DiskError, FeatureStore, SourceImage
        store = FeatureStore.open({str(store.path)!r})
        photos = store["photos"]
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        for kib in (0, 1, 4, 16, 64, 150):
            resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, hard))
            try:
                with store.writer("photos", photos.contract, photos.columns) as w:
                    images = [SourceImage(f"x{{n}}.jpg", Path("x"), 1, 1, 1) for n in range(250)]
                    w.append(images, [n.to_bytes(32) for n in range(250)], {{photos.columns[0]: np.zeros((250, 600))}})
            except DiskError as exc:
                told = [exc.errno, str(exc)]
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            print(json.dumps([*told, photos.version]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert [version for _, _, version in said] == [1] * 6
    assert {number for number, _, _ in said} == {errno.EIO, errno.EFBIG}, "SQLite tells the one as the other"
    assert "h5: File too large; raise the limit on file sizes (ulimit -f) and run again: everything" in said[-1][1]
    np.testing.assert_array_equal(FeatureStore.open(store.path)["photos"].matrix("layer4").X, before)
    assert verify_store(store.path).ok
    assert fill(MORE, columns=wide)["photos"].ids() == sorted(MORE)
