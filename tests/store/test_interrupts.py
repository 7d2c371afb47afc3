"""Ctrl-C at any moment, once or several times, and signals that mean nothing: real ones, from a timer."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from icecore.store import Column, Contract, FeatureStore, SourceImage, verify_store

ROUNDS = 12
"""Rounds of each job: 36 in all."""

_COMMON = """
import os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np
from icecore.store import FeatureStore, SourceImage, verify_store

path = Path(sys.argv[1])
with FeatureStore.open(path) as store:
    contract, columns = store["photos"].contract, store["photos"].columns


def add(first, last):
    with FeatureStore.open(path) as store, store.writer("photos", contract, columns) as w:
        for n in range(first, last):
            image = SourceImage(f"{n:04}.jpg", Path("x"), 1, 1, 1)
            w.append([image], [n.to_bytes(32)], {c: np.full((1, c.width), n) for c in columns})
            if n % 4 == 3:
                w.commit()


def remove(*gone):
    with FeatureStore.open(path) as store, store.writer("photos", contract, columns) as w:
        w.remove([f"{n:04}.jpg" for n in gone])


def compact():
    with FeatureStore.open(path) as store:
        store.compact()


def collect():
    with FeatureStore.open(path) as store:
        store.collect()


def seen():
    with FeatureStore.open(path) as store:
        ids, X = store["photos"].matrix([c.layer for c in columns])
        numbers = [int(name[:4]) for name in ids]
        assert (X == np.array(numbers)[:, None]).all()
        return numbers
"""

_STORM = """
import logging
logging.disable()
rng = random.Random(int(sys.argv[2]))
rounds = int(sys.argv[3])
left = 0


def interrupt(signum, frame):
    global left
    while frame is not None and frame.f_code not in inside:
        frame = frame.f_back
    if frame is None:
        return  # the job has ended: what follows is not under test
    left -= 1
    if left:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
    raise KeyboardInterrupt


def cut_off(job, moment, times):
    global left
    left = times
    signal.setitimer(signal.ITIMER_REAL, moment)
    try:
        job()
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return False


inside = {job.__code__ for job in (add, compact, collect)}
signal.signal(signal.SIGALRM, interrupt)
kept = path.with_name("kept")
for n in range(0, 16, 4):
    add(n, n + 4)
for name, job in {"add": lambda: add(16, 28), "compact": compact, "collect": collect}.items():
    if name == "collect":
        remove(1, 5, 9)
        compact()
    path.rename(kept)
    shutil.copytree(kept, path)
    before = seen()
    began = time.perf_counter()
    job()
    whole = time.perf_counter() - began
    after = seen()
    interrupted = 0
    for number in range(rounds):
        shutil.rmtree(path)
        shutil.copytree(kept, path)
        interrupted += cut_off(job, max(1e-5, rng.random() * whole), 1 + number % 3)
        now = seen()
        assert now == after[: len(now)] and len(now) >= len(before), (name, now)  # a prefix of the work
        assert verify_store(path).ok
        job()
        assert seen() == after, name
        report = verify_store(path)
        assert report.ok and not report.leftovers, report
    print(name, interrupted)
    shutil.rmtree(path)
    kept.rename(path)
"""

_DESCRIBE = """
from icecore.store.layout import describe

(segment,) = path.glob("segments/**/*.h5")
wanted, rng, interrupted = describe(segment), random.Random(3), 0


def interrupt(signum, frame):
    while frame is not None and frame.f_code is not describe_it.__code__:
        frame = frame.f_back
    if frame is not None:
        raise KeyboardInterrupt


def describe_it():
    return describe(segment)


sys.unraisablehook = lambda told: os._exit(3)  # an interrupt that is swallowed
signal.signal(signal.SIGALRM, interrupt)
began = time.perf_counter()
describe_it()
whole = time.perf_counter() - began
for _ in range(1500):
    signal.setitimer(signal.ITIMER_REAL, max(1e-5, rng.random() * whole))
    try:
        describe_it()
    except KeyboardInterrupt:
        interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
assert describe_it() == wanted
print(interrupted)
"""

_EINTR = """
alarms = 0


def heard(signum, frame):
    global alarms
    alarms += 1


signal.signal(signal.SIGALRM, heard)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for n in range(0, 200, 20):
    add(n, n + 20)
remove(*range(0, 200, 7))
compact()
collect()
signal.setitimer(signal.ITIMER_REAL, 0)
print(alarms)
"""


@pytest.fixture
def store(tmp_path: Path, contract: Contract, columns: tuple[Column, Column]) -> Path:
    """A set of one image, which the jobs keep."""
    made = FeatureStore.create(tmp_path / "features")
    with made.writer("photos", contract, columns) as writer:
        writer.append(
            [SourceImage("0000.jpg", Path("x"), 1, 1, 1)], [bytes(32)], {c: np.zeros((1, c.width)) for c in columns}
        )
    made.close()
    return made.path


def run(body: str, *arguments: object) -> list[str]:
    code = textwrap.dedent(_COMMON + body)
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_storm_of_interrupts_leaves_the_version_before_or_after_and_the_same_process_goes_on(store: Path) -> None:
    """Once to three times at random moments of append and commit, compaction and collection; the next run heals."""
    told = dict(line.split() for line in run(_STORM, store, 7, ROUNDS))
    assert set(told) == {"add", "compact", "collect"}
    assert sum(map(int, told.values())) >= ROUNDS, "most rounds are cut off"


def test_an_interrupt_while_hdf5_lists_a_segment_is_neither_swallowed_nor_another_error(store: Path) -> None:
    """HDF5 lists attributes by calling Python, where an interrupt became a SystemError, 20 times in 2,000."""
    assert int(run(_DESCRIBE, store)[0]) >= 100


def test_system_calls_that_signals_interrupt_are_tried_again(store: Path) -> None:
    """PEP 475; and SQLite and HDF5 do so, too."""
    assert int(run(_EINTR, store)[0]) >= 5
    with FeatureStore.open(store) as opened:
        ids, X = opened["photos"].matrix("layer4")
    numbers = [n for n in range(200) if n % 7]
    assert ids == [f"{n:04}.jpg" for n in numbers]
    np.testing.assert_array_equal(X, np.repeat(np.array(numbers, dtype=X.dtype)[:, None], 6, axis=1))
    assert verify_store(store).ok
