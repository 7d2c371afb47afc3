"""Writers and readers at once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import BaseFileLock
from icecore.store import Column, Contract, FeatureArray, FeatureStore, LockedError, SourceImage, verify_store
from icecore.store.lock import read_holder, writer_lock

Fill = Callable[..., FeatureStore]
Expected = Callable[[dict[str, str], Column], np.ndarray]
FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}


def test_readers_see_whole_versions_while_a_writer_commits(
    fill: Callable[..., FeatureStore], contract: Contract, columns: tuple[Column, Column], tmp_path: Path
) -> None:
    """Each commit adds ten images whose features all equal its number: a reader must see tens, and whole."""
    store = fill(FILES)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            for number in range(1, 31):
                with store.writer("photos", contract, columns) as w:
                    for i in range(10):
                        name = f"x{number:02}-{i}.jpg"
                        content = hashlib.sha256(name.encode()).digest()
                        image = SourceImage(name, Path(name), 1, 1, 1)
                        w.append([image], [content], {c: np.full((1, c.width), number) for c in columns})
            code = 0
        finally:
            os._exit(code)
    seen = set()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        ids, X = store["photos"].matrix(["layer3", "layer4"])
        assert len(ids) % 10 == 0
        assert X.shape == (len(ids), 10)
        for image_id, row in zip(ids, X, strict=True):
            if image_id.startswith("x"):
                assert set(row) == {float(image_id[1:3])}
        seen.add(len(ids))
    assert store["photos"].matrix("layer4").X.shape == (320, 6)
    assert verify_store(store.path).ok


def churn(fill: Fill, store: FeatureStore, contract: Contract, columns: tuple[Column, Column], night: int) -> None:
    """Change an image and add one, take away last night's, merge, and delete what only older versions need."""
    fill({**FILES, "000.jpg": f"changed {night}", f"x{night}.jpg": f"new {night}"})
    with store.writer("photos", contract, columns) as writer:
        writer.remove([f"x{night - 1}.jpg"])
    store.compact()
    assert store.collect().sets[0].segments


def test_arrays_opened_before_go_on_to_their_end_while_their_version_is_merged_and_collected(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], expected: Expected
) -> None:
    """One batch before each change: to the end of an array and of its batches, in order and shuffled."""
    store = fill(FILES)
    before = set(store.path.rglob("*.h5"))
    photos = store["photos"]
    array = photos.array(["layer3", "layer4"])
    batches = [array.iter_batches(5), array.iter_batches(5, shuffle=1), photos.array("layer4").iter_batches(5)]
    seen: list[dict[str, np.ndarray]] = [{} for _ in batches]
    for night in range(4):
        for found, one in zip(seen, batches, strict=True):
            ids, X = next(one)
            found.update(zip(ids, X, strict=True))
        churn(fill, store, contract, columns, night)
    assert not before & set(store.path.rglob("*.h5")), "all that they read is deleted"
    assert [next(one, None) for one in batches] == [None] * 3
    wanted = np.hstack([expected(FILES, column) for column in columns])
    for found, X in zip(seen, (wanted, wanted, wanted[:, 4:]), strict=True):
        assert sorted(found) == sorted(FILES)
        np.testing.assert_array_equal(np.stack([found[i] for i in sorted(found)]), X)
    np.testing.assert_array_equal(array.read(), wanted)
    array.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_workers_and_threads_read_right_at_once_while_a_writer_merges_and_collects(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], expected: Expected
) -> None:
    """As a training loop has them: one store, one array opened before, many who read both."""
    store = fill(FILES)
    array, wanted = store["photos"].array("layer4"), expected(FILES, columns[1])
    array.read()
    context = multiprocessing.get_context("fork")
    ended = context.Event()
    workers = [context.Process(target=read_until, args=(ended, store, array, wanted)) for _ in range(2)]
    for worker in workers:
        worker.start()
    with ThreadPoolExecutor(4) as pool:
        reads = [pool.submit(read_until, ended, store, array, wanted) for _ in range(4)]
        try:
            for night in range(3):
                churn(fill, store, contract, columns, night)
        finally:
            ended.set()
        assert min(read.result() for read in reads) > 0
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 2
    assert verify_store(store.path).ok


def read_until(ended: threading.Event, store: FeatureStore, array: FeatureArray, wanted: np.ndarray) -> int:
    """Read what was opened before and what is latest; give how often."""
    rng, times = np.random.default_rng(os.getpid()), 0
    while not ended.is_set() or not times:
        rows = rng.integers(0, 20, 7)
        np.testing.assert_array_equal(array[rows], wanted[rows])
        ids, X = store["photos"].matrix("layer4")
        assert set(FILES) <= set(ids), "the version before or after each commit"
        first = ids.index("001.jpg")  # unchanged, as are the rest
        np.testing.assert_array_equal(X[first : first + 19], wanted[1:])
        times += 1
    return times


@pytest.mark.parametrize("state", ["map", "transaction", "query"])
def test_a_reader_killed_in_the_middle_does_no_harm(
    fill: Fill, contract: Contract, columns: tuple[Column, Column], state: str
) -> None:
    """A map open, a transaction open, a cursor in mid-query: writer, merge, collection and the next reader go on."""
    store = fill(FILES)
    code = f"""
        import sys
        from icecore.store import FeatureStore
        store = FeatureStore.open({str(store.path)!r})
        held = {{
            "map": lambda: next(store["photos"].array("layer4").iter_batches(3)),
            "transaction": lambda: store.db.execute("BEGIN").execute("SELECT count(*) FROM images").fetchone(),
            "query": lambda: (rows := store.db.execute("SELECT id FROM images"), next(rows)),
        }}[{state!r}]()
        print("reading", flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        churn(fill, store, contract, columns, 0)  # it holds nobody up while it lives
        reader.send_signal(signal.SIGKILL)
        reader.wait()
    churn(fill, store, contract, columns, 1)
    assert store["photos"].ids() == sorted([*FILES, "x1.jpg"])
    store.close()
    log = store.path / "catalog.sqlite-wal"
    assert not log.exists() or not log.stat().st_size, "the dead one keeps no log from being emptied"
    report = verify_store(store.path)
    assert report.ok
    assert not report.leftovers


@pytest.fixture
def held(fill: Fill) -> Iterator[FeatureStore]:
    """A store with a writer at work in another thread."""
    store = fill(FILES)
    begun, end = threading.Event(), threading.Event()

    def hold() -> None:
        with writer_lock(store.path, command="nightly job"):
            begun.set()
            end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait()
    yield store
    end.set()
    thread.join()


def test_a_second_writer_in_any_thread_or_process_is_refused_naming_the_first_and_changes_nothing(
    held: FeatureStore, contract: Contract, columns: tuple[Column, Column]
) -> None:
    who = rf"pid {os.getpid()} on {socket.gethostname()} \(nightly job\) since 20\d\d-.*; wait for it to end"
    ways = [
        lambda: held.writer("photos", contract, columns).__enter__(),
        held.compact,
        held.collect,
        lambda: held["photos"].tag("mine"),
    ]
    for write in ways:
        with pytest.raises(LockedError, match=who):
            write()
    command = [sys.executable, "-m", "icecore.cli", "store", "gc", str(held.path)]
    other = subprocess.run(command, capture_output=True, text=True, check=False)
    assert other.returncode == 7
    assert f"pid {os.getpid()} on " in other.stderr
    assert (holder := read_holder(held.path)) is not None
    assert holder.command == "nightly job", "the refused take nothing away from it"
    assert held["photos"].version == 1


def test_of_many_writers_that_begin_at_once_each_is_done_or_refused_and_none_is_lost(
    fill: Fill, contract: Contract, columns: tuple[Column, Column]
) -> None:
    store = fill(FILES)
    start = threading.Barrier(8)

    def write(number: int) -> str | None:
        name = f"t{number}.jpg"
        start.wait()
        try:
            with FeatureStore.open(store.path).writer("photos", contract, columns) as w:
                image = SourceImage(name, Path(name), 1, 1, 1)
                w.append([image], [hashlib.sha256(name.encode()).digest()], {c: np.ones((1, c.width)) for c in columns})
        except LockedError:
            return None
        return name

    with ThreadPoolExecutor(8) as pool:
        done = [name for name in pool.map(write, range(8)) if name is not None]
    assert done
    assert store["photos"].ids() == sorted([*FILES, *done])
    assert store["photos"].version == 1 + len(done)


def test_a_note_of_a_dead_holder_does_not_keep_anybody_out_whoever_has_its_pid_now(fill: Fill) -> None:
    """The lock is the system's; the note only tells."""
    store = fill(FILES)
    with writer_lock(store.path):
        note = (store.path / "writer.json").read_bytes()
    (store.path / "writer.json").write_bytes(note)  # of this live process
    with writer_lock(store.path, command="next") as holder:
        assert read_holder(store.path) == holder
    assert read_holder(store.path) is None


def test_an_interrupt_before_the_lock_is_let_go_of_leaves_it_free(
    fill: Fill, monkeypatch: pytest.MonkeyPatch, contract: Contract, columns: tuple[Column, Column]
) -> None:
    """A notebook goes on in the same process, with the traceback that holds every object of the run."""
    store = fill(FILES)
    release = BaseFileLock.release
    calls = iter(range(9))

    def interrupted(self: BaseFileLock, force: bool = False) -> None:
        if next(calls) == 0:
            raise KeyboardInterrupt
        release(self, force=force)

    monkeypatch.setattr(BaseFileLock, "release", interrupted)
    with pytest.raises(KeyboardInterrupt) as kept, writer_lock(store.path):
        pass
    with store.writer("photos", contract, columns):
        assert kept.tb is not None


def test_a_catalog_held_for_writing_by_another_program_is_waited_for_not_damaged(
    fill: Fill, contract: Contract, columns: tuple[Column, Column]
) -> None:
    """Somebody's ``sqlite3`` shell, which knows nothing of our lock."""
    store = fill(FILES)
    other = sqlite3.connect(store.path / "catalog.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.2, other.execute, ["ROLLBACK"])
    done.start()
    with store.writer("photos", contract, columns) as writer:
        writer.remove(["000.jpg"])
    done.join()
    other.close()
    assert store["photos"].ids() == sorted(FILES)[1:]
    assert verify_store(store.path).ok
