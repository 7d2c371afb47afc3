"""Runs that overlap: who writes second is refused with 7 and told by whom; who reads is never kept waiting."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from icecore.store import list_runs

Icecore = Callable[..., Any]
WRITER = """
import sqlite3, sys
from pathlib import Path
from icecore.store import catalog
from icecore.store.session import writing
with writing(Path(sys.argv[1]), command="the nightly job") as db, catalog.transaction(db):
    db.execute("UPDATE meta SET value = value")
    print("in the middle of a commit", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def at_work(trained: Any) -> Iterator[Any]:
    """A project whose store another process writes: it holds the lock, and is in the middle of a transaction."""
    (trained.photos / "train" / "red" / "0.png").touch()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(trained.store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"in the middle of a commit\n"
        yield trained, other.pid
        other.stdin.close()
    assert other.returncode == 0


WRITERS: dict[str, Callable[[Any], list[object]]] = {
    "extract": lambda p: ["extract", p.config],
    "store compact": lambda p: ["store", "compact", p.store],
    "store gc": lambda p: ["store", "gc", p.store],
    "store repair": lambda p: ["store", "repair", p.store],
    "store revert": lambda p: ["store", "revert", p.store, "photos", "1"],
    "store tag": lambda p: ["store", "tag", p.store, "photos", "v1"],
}
READERS: dict[str, Callable[[Any], list[object]]] = {
    "extract --dry-run": lambda p: ["extract", p.config, "--dry-run"],
    "metrics": lambda p: ["metrics", p.store],
    "predict": lambda p: ["predict", p.bundle, p.photos / "val"],
    "runs ls": lambda p: ["runs", "ls", p.store],
    "store backup": lambda p: ["store", "backup", p.store, p.folder / "copy"],
    "store diff": lambda p: ["store", "diff", p.store, "photos", p.bundle],
    "store du": lambda p: ["store", "du", p.store],
    "store errors": lambda p: ["store", "errors", p.store],
    "store export": lambda p: ["store", "export", p.store, "photos", "--to", p.folder / "all.npy"],
    "store log": lambda p: ["store", "log", p.store],
    "store ls": lambda p: ["store", "ls", p.store],
    "store show": lambda p: ["store", "show", p.store, "photos"],
    "store status": lambda p: ["store", "status", p.store],
    "store verify": lambda p: ["store", "verify", p.store],
    "sweep": lambda p: ["sweep", p.config],
    "train": lambda p: ["train", p.config],
}


@pytest.mark.parametrize("name", WRITERS)
def test_who_writes_second_is_refused_with_7_and_told_the_holder(icecore: Icecore, at_work: Any, name: str) -> None:
    project, pid = at_work
    before = catalog_of(project)
    done = icecore(*WRITERS[name](project), "--json")
    assert (done.code, done.outcome["outcome"], done.outcome["retryable"]) == (7, "locked by another run", True)
    assert f"being written by pid {pid} on {os.uname().nodename} (the nightly job) since " in done.outcome["error"]
    assert catalog_of(project) == before
    newest = list_runs(project.store)[0]
    assert (newest.command, newest.state, newest.exit_code) == (name, "failed", 7)
    assert icecore(*WRITERS[name](project), "--success-on", "7").code == 0


@pytest.mark.parametrize("name", READERS)
def test_who_reads_or_predicts_is_never_kept_waiting(icecore: Icecore, at_work: Any, name: str) -> None:
    project, _ = at_work
    done = icecore(*READERS[name](project))
    assert done.code == 0, done.told


def catalog_of(project: Any) -> list[tuple[Any, ...]]:
    """What is committed, without our own reader."""
    with closing(sqlite3.connect(project.store / "catalog.sqlite")) as db:
        return db.execute("SELECT * FROM versions").fetchall() + db.execute("SELECT * FROM tags").fetchall()
