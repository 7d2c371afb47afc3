"""The commit protocol: raise at each step, or kill -9, then look at what is there."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from icecore.store import (
    Column,
    Contract,
    FeatureStore,
    SourceImage,
    durable,
    publishing,
    segment,
    verify_store,
    writer,
)

FILES = {f"{i:03}.jpg": f"picture {i}" for i in range(20)}
MORE = {**FILES, "new.jpg": "a new picture"}
STEPS = [
    (publishing, "write_segment"),
    (publishing, "file_checksum"),
    (durable, "fsync_file"),
    (durable, "fsync_folder"),
    (writer, "apply_commit"),
]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("module", "step"), STEPS, ids=[step for _, step in STEPS])
def test_a_fault_at_any_step_leaves_the_old_version_and_the_next_run_heals(
    fill: Callable[..., FeatureStore], monkeypatch: pytest.MonkeyPatch, module: object, step: str, after: bool
) -> None:
    store = fill(FILES)
    before = store["photos"].matrix("layer4")
    real = getattr(module, step)

    def fail(*args: object, **kwargs: object) -> object:
        if after:
            real(*args, **kwargs)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        if step == "write_segment":
            patch.setattr(segment, step, fail)
        with pytest.raises(OSError, match="No space left"):
            fill(MORE)
    now = store["photos"].matrix("layer4")
    assert now.ids == before.ids
    np.testing.assert_array_equal(now.X, before.X)
    fill(MORE)
    assert store["photos"].ids() == sorted(MORE)
    assert verify_store(store.path).ok
    assert not list(store.path.rglob("*.tmp"))
    assert len(list(store.path.rglob("*.h5"))) == 2


def test_killed_before_the_catalog_commit_the_next_writer_sweeps_only_what_was_announced(
    fill: Callable[..., FeatureStore], contract: Contract, columns: tuple[Column, Column]
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
