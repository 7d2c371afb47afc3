"""A store that this user may only read: everything is read, commits of others are seen, and a writer is refused.

Twice: by a user who may not write the folder, and by root through a mount that is read-only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import Column, Contract, FeatureStore, SourceImage

Fill = Callable[..., FeatureStore]
Expected = Callable[[dict[str, str], Column], Any]
GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}
MORE = {**FILES, "new.jpg": "another"}
NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user, or mount")

CHILD = textwrap.dedent("""
    import io, json, os, sys, traceback
    from contextlib import redirect_stdout
    from pathlib import Path
    from icecore.cli.app import main
    from icecore.store import FeatureStore, StoreError, export, repair_store, store_status, verify_store

    def run(*words):
        told = io.TextIOWrapper(io.BytesIO(), "utf-8")
        try:
            with redirect_stdout(told):
                main([str(word) for word in words])
        except SystemExit as ended:
            return ended.code, told.buffer.getvalue().decode("utf-8")

    def look(store, out, layer="layer4"):
        photos = store["photos"]
        ids, X = photos.matrix(layer, missing="drop")
        array = photos.array(layer, missing="drop")
        exported = export(photos, layer, Path(out, "x.npy"), missing="drop", overwrite=True)
        with FeatureStore.open(store.path) as again:
            assert again["photos"].matrix(layer, missing="drop").ids == ids
        status = store_status(store.path)
        assert status.sets[0].version == photos.version == photos.log()[0].number
        assert (array.take(ids) == X).all()
        assert exported.rows == len(ids)
        assert verify_store(store.path).ok
        if os.access(os.__file__, os.R_OK):  # another process looks into headers: may this user start Python?
            assert verify_store(store.path, quick=True).ok
        assert not repair_store(store.path, dry_run=True).is_needed
        code, listed = run("store", "ls", store.path)
        assert code == 0 and "photos" in listed
        return [os.fsencode(i).hex() for i in ids], X.tolist()

    def refusals(calls):
        told = []
        for call in calls:
            try:
                call()
                told.append("done")
            except StoreError as exc:
                told.append(f"{type(exc).__name__}: {exc}")
        return told

    space = globals()
    for line in sys.stdin:
        try:
            answer = eval(json.loads(line), space)
        except BaseException as exc:
            answer = "".join(traceback.format_exception(exc))
        print(json.dumps(answer), flush=True)
""")


class Reader:
    """Another process that evaluates what it is told."""

    def __init__(self, *, nobody: bool) -> None:
        self.out = Path(tempfile.mkdtemp(prefix="icecore-test-"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        warm = Path(shutil.copytree(GOLDEN / "store-v1", self.out / "warm"))
        Seen(self, warm).open()
        Seen(self, warm).look("layer3")  # imports all that is used, while that may still be read
        self.ask("store.close()")
        self.ask(f"run('store', 'compact', {str(warm)!r})")  # what a run's record is made with, too
        if nobody:
            subprocess.run(["chown", "-R", str(NOBODY), self.out], check=True)
            self.ask(f"os.setgid({NOBODY}), os.setuid({NOBODY})")

    def ask(self, code: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self) -> None:
        self.process.communicate()
        shutil.rmtree(self.out)


@dataclass(frozen=True)
class Seen:
    """A store as the reader meets it."""

    reader: Reader
    path: Path
    """the folder of the store, for the reader"""

    def open(self) -> None:
        """Open the store and keep it open."""
        assert self.reader.ask(f"space.update(store=FeatureStore.open({str(self.path)!r}))") is None

    def look(self, layer: str = "layer4") -> Any:
        """Read the open store in every way; gives ids (hex) and rows."""
        found = self.reader.ask(f"look(store, {str(self.reader.out)!r}, {layer!r})")
        assert isinstance(found, list), found
        return found

    def count(self) -> int:
        """How many images the open store has, and rows."""
        ids, rows = self.reader.ask("len(store['photos'].ids()), len(store['photos'].matrix('layer4').X)")
        assert ids == rows
        return int(ids)


@pytest.fixture(scope="module", params=["as nobody", "through a read-only mount"])
def reader(request: pytest.FixtureRequest) -> Iterator[Reader]:
    made = Reader(nobody=request.param == "as nobody")
    yield made
    made.stop()


@pytest.fixture
def tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where ``fill`` puts its store: a folder that others may list, as pytest's own is not."""
    with tempfile.TemporaryDirectory(prefix="icecore-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def seen(reader: Reader, tmp_path: Path) -> Iterator[Seen]:
    if reader.ask("os.geteuid()") == NOBODY:
        (tmp_path / "features").mkdir(mode=0o755)
        yield Seen(reader, tmp_path / "features")
        reader.ask("store.close()")
        return
    with tempfile.TemporaryDirectory(prefix="icecore-test-") as place:
        bound = subprocess.run(["mount", "--bind", tmp_path, place], capture_output=True, check=False)
        if bound.returncode:
            pytest.skip(f"nothing can be mounted here: {bound.stderr.decode().strip()}")
        try:
            subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
            yield Seen(reader, Path(place, "features"))
            reader.ask("store.close()")
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


def whole(files: dict[str, str], expected: Expected, column: Column) -> list[Any]:
    return [[name.encode().hex() for name in sorted(files)], expected(files, column).tolist()]


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def quiet(store: FeatureStore) -> Path:
    """Close a store so that no log is left."""
    store.close()
    for path in store.path.glob("catalog.sqlite-*"):
        path.unlink()  # what it holds is in the catalog: a writer empties it when it closes
    return store.path


def test_without_a_log_all_is_read_and_nothing_is_written(
    fill: Fill, seen: Seen, expected: Expected, columns: tuple[Column, Column]
) -> None:
    folder = quiet(fill(FILES))
    before = tree(folder)
    seen.open()
    assert seen.look() == whole(FILES, expected, columns[1])
    assert tree(folder) == before


@pytest.mark.parametrize("index", [True, False], ids=["with its index", "copied without its index"])
def test_a_log_left_by_a_killed_writer_is_read(
    fill: Fill, seen: Seen, expected: Expected, columns: tuple[Column, Column], *, index: bool
) -> None:
    folder = quiet(fill(FILES))
    child = os.fork()
    if child == 0:
        try:
            store = FeatureStore.open(folder)
            with store.writer("photos", store["photos"].contract, columns) as writer:
                _append_new(writer, columns)
                writer.commit()
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (folder / "catalog.sqlite-wal").stat().st_size
    if not index:
        (folder / "catalog.sqlite-shm").unlink()
    before = tree(folder)
    seen.open()
    ids, rows = seen.look()
    assert ids == [name.encode().hex() for name in sorted(MORE)]
    assert rows[:-1] == whole(FILES, expected, columns[1])[1]
    after = tree(folder)
    assert {name: after[name] for name in before if not name.endswith("-shm")} == {
        name: data for name, data in before.items() if not name.endswith("-shm")
    }
    assert after.keys() == before.keys()


def _append_new(writer: Any, columns: tuple[Column, Column], name: str = "new.jpg") -> None:
    image = SourceImage(name, Path(name), 1, 1, 1)
    writer.append([image], [name.encode().ljust(32)], {column: np.ones((1, column.width)) for column in columns})


def test_commits_of_a_writer_at_work_are_seen_by_the_next_read(
    fill: Fill, seen: Seen, contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    quiet(store)
    seen.open()
    assert seen.count() == 20, "without a log"
    with store.writer("photos", contract, columns) as writer:
        for number in (21, 22):
            _append_new(writer, columns, f"new-{number}.jpg")
            writer.commit()
            assert seen.count() == number, "through the log of a writer at work"
        assert len(seen.look()[0]) == 22
        _append_new(writer, columns, "new-23.jpg")
    assert seen.count() == 23, "after it has gone"
    store.close()
    fill({**FILES, "late.jpg": "late"})
    assert seen.count() == 24


def test_a_store_of_format_1_is_read(seen: Seen, tmp_path: Path) -> None:
    folder = tmp_path / "features"
    shutil.copytree(GOLDEN / "store-v1", folder, dirs_exist_ok=True)
    before = tree(folder)
    last = json.loads((GOLDEN / "store-v1.json").read_text("utf-8"))[-1]
    seen.open()
    for name, column in last["columns"].items():
        assert seen.look(name) == [column["ids"], column["X"]]
    assert tree(folder) == before


def test_a_writer_is_refused_and_changes_nothing(fill: Fill, seen: Seen) -> None:
    folder = quiet(fill(FILES))
    before = tree(folder)
    seen.open()
    calls = (
        "store.writer('photos', store['photos'].contract, store['photos'].columns).__enter__",
        "store.compact",
        "store.collect",
        "lambda: store['photos'].tag('good')",
        "lambda: store['photos'].revert(1)",
        f"lambda: repair_store({str(seen.path)!r})",
    )
    told = seen.reader.ask(f"refusals([{', '.join(calls)}])")
    assert len(told) == len(calls)
    for line in told:
        assert line.startswith("DiskError: "), line
        assert f"{seen.path}/writer.lock: " in line
        assert "Read-only file system; mount it for writing" in line or "Permission denied; " in line
    for words in (("compact",), ("repair",)):
        code, _ = seen.reader.ask(f"run('store', *{words!r}, {str(seen.path)!r})")
        assert code == 1
    assert tree(folder) == before
