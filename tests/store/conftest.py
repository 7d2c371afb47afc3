"""A small set of made-up features, written and read through the public door."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from icecore.store import Column, Contract, FeatureSet, FeatureStore, Pooling, SourceImage
from icecore.store.places import Extent
from icecore.store.segment import SegmentHeader, write_segment

AVG = Pooling.parse("avg")
HALF = Column("layer4", AVG, 3)


@pytest.fixture
def contract() -> Contract:
    return make_contract()


@pytest.fixture
def columns() -> tuple[Column, Column]:
    return Column("layer3", AVG, 4), Column("layer4", AVG, 6)


@pytest.fixture
def other_contract() -> Contract:
    return make_contract(size=232)


def make_contract(*, size: int = 256) -> Contract:
    steps = ({"op": "resize", "size": size, "interpolation": "bilinear"}, {"op": "center_crop", "size": 224})
    return Contract("torchvision.models.resnet18", {}, "0" * 64, steps, "pillow", ("full",), "fp32")


@pytest.fixture
def image() -> Callable[..., SourceImage]:
    def make(image_id: str, *, size: int = 10, mtime_ns: int = 1_000, ctime_ns: int = 1_000) -> SourceImage:
        return SourceImage(image_id, Path("/nowhere") / image_id, size, mtime_ns, ctime_ns)

    return make


@pytest.fixture
def vectors() -> Callable[[bytes, Column], np.ndarray]:
    """The features that a content has: a function of it alone, exact in float16."""

    def make(content: bytes, column: Column) -> np.ndarray:
        seed = int.from_bytes(hashlib.sha256(content + column.name.encode()).digest()[:8], "big")
        return np.random.default_rng(seed).integers(-512, 512, column.width).astype(np.float32)

    return make


@pytest.fixture
def fill(
    tmp_path: Path,
    contract: Contract,
    columns: Sequence[Column],
    image: Callable[..., SourceImage],
    vectors: Callable[[bytes, Column], np.ndarray],
) -> Callable[..., FeatureStore]:
    """Write images, given as id -> content text, into the set ``photos`` of the store in ``tmp_path/features``."""

    def write(
        files: dict[str, str], *, contract: Contract = contract, columns: Sequence[Column] = columns
    ) -> FeatureStore:
        store = FeatureStore.create(tmp_path / "features")
        with store.writer("photos", contract, columns, command="test") as writer:
            for image_id, text in sorted(files.items(), key=lambda item: item[0].encode("utf-8", "surrogateescape")):
                content = hashlib.sha256(text.encode()).digest()
                if writer.is_known(content, columns):
                    writer.link(image(image_id), content)
                else:
                    features = {column: vectors(content, column)[None] for column in columns}
                    writer.append([image(image_id)], [content], features)
        return store

    return write


@pytest.fixture
def expected(vectors: Callable[[bytes, Column], np.ndarray]) -> Callable[[dict[str, str], Column], np.ndarray]:
    """What a column of these files must read as, in the order of the ids' bytes."""

    def make(files: dict[str, str], column: Column) -> np.ndarray:
        order = sorted(files, key=lambda image_id: image_id.encode("utf-8", "surrogateescape"))
        return np.stack([vectors(hashlib.sha256(files[i].encode()).digest(), column) for i in order])

    return make


@pytest.fixture(scope="session")
def write_columns() -> Callable[[Path, dict[Column, np.ndarray]], dict[Column, Extent]]:
    """Write a segment outside any store; gives where its columns lie."""

    def write(path: Path, features: dict[Column, np.ndarray]) -> dict[Column, Extent]:
        rows = len(next(iter(features.values())))
        columns = tuple(sorted(features, key=lambda column: column.name))
        header = SegmentHeader("0" * 32, "s", "0" * 32, make_contract(), columns, rows, "2026-01-01T00:00:00Z", {}, {})
        ids = [b"%d" % row for row in range(rows)]
        offsets = write_segment(path, header, ids, np.zeros((rows, 32), np.uint8), features)
        return {column: Extent(path, rows, offsets[column], column) for column in columns}

    return write


@pytest.fixture
def segment(
    tmp_path: Path, write_columns: Callable[[Path, dict[Column, np.ndarray]], dict[Column, Extent]]
) -> Callable[..., tuple[Extent, np.ndarray]]:
    """Write a segment of one column into ``tmp_path``; gives where it lies, and its values."""

    def make(rows: int = 40, column: Column = HALF, name: str = "a.h5") -> tuple[Extent, np.ndarray]:
        X = np.random.default_rng(rows).integers(-512, 512, (rows, column.width)).astype(column.dtype)
        return write_columns(tmp_path / name, {column: X})[column], X

    return make


@pytest.fixture
def bundle() -> Callable[..., Path]:
    """Leave the card of a bundle that was trained on a set as it is now, or as it was at a version."""

    def make(features: FeatureSet, name: str = "default/2030", *, version: int | None = None, form: int = 1) -> Path:
        features = features if version is None else features.as_of(version)
        columns = [{"name": c.name, "width": c.width, "hash": c.hash, **c.to_json()} for c in features.columns]
        card = {
            "format": "icecore.bundle",
            "format_version": form,
            "set": features.name,
            "generation": features.generation,
            "version": features.version,
            "contract": features.contract.to_json(),
            "columns": columns,
        }
        text = json.dumps(card, sort_keys=True, separators=(",", ":"))
        folder = features.folder / "models" / name
        folder.mkdir(parents=True)
        card["card_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (folder / "card.json").write_text(json.dumps(card), "utf-8")
        return folder

    return make
