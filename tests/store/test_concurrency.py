"""Writers and readers at once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from icecore.store import Column, Contract, FeatureStore, SourceImage, verify_store

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
