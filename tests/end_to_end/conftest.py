"""Fixtures of the end-to-end tests: photos made on the spot, and icecore's jobs as processes that can be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from icecore.store import FeatureStore
from PIL import Image

HERE = Path(__file__).parent
PLAIN = HERE / "plain_script.py"
CONFIG = """
store = "features"
set = "hymenoptera"
[source]
folder = {folder}
extensions = [".jpg", ".jpeg"]
[backbone]
name = "mobilenet_v2"
weights = {weights}
layers = ["features.6", "features.13", "features.18"]
dtype = "{dtype}"
[compute]
device = "cpu"
batch_size = 16
threads = 1
[train]
layers = ["features.6", "features.13", "features.18"]
save = "all"
report = false
"""


def write_config(folder: Path, assets: Path, *, images: Path, dtype: str) -> Path:
    weights = json.dumps(str(assets / "weights/mobilenet_v2_features.pth"))
    path = folder / "job.toml"
    path.write_text(CONFIG.format(folder=json.dumps(str(images)), weights=weights, dtype=dtype))
    return path


def run_plain(*arguments: str | Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(PLAIN), *map(str, arguments)], env=environment)


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str
    convolutions: dict[str, int]
    """calls of each convolution, named ``channels in-channels out-kernel``"""

    @property
    def facts(self) -> dict[str, Any]:
        """The object that ``--json`` prints last."""
        facts: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return facts


class Jobs:
    """One fork server; one job at a time."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "fork_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def close(self) -> None:
        with self._server:
            assert self._server.stdin is not None
            self._server.stdin.close()

    def start(self, **task: Any) -> int:
        """Start a job and give its process id; ``answers`` must be read to its end before the next one."""
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        return int(self._answer()["pid"])

    def answers(self) -> Iterator[dict[str, Any]]:
        """Yield what the job says; last its exit status, negative for a signal."""
        answer: dict[str, Any] = {}
        while "status" not in answer:
            answer = self._answer()
            yield answer

    def start_extraction(
        self, *, rows: int = 6, kill_at: int | None = None, in_commit: int = 0, tell: bool = False, **options: Any
    ) -> int:
        return self.start(job="extract", rows=rows, kill_at=kill_at, in_commit=in_commit, tell=tell, options=options)

    def extract(self, **options: Any) -> dict[str, Any]:
        """Extract to the end, or to where it kills itself; give all that it said in one dict."""
        self.start_extraction(**options)
        return {key: value for answer in self.answers() for key, value in answer.items()}

    def command(self, arguments: Sequence[str | Path], folder: Path) -> Finished:
        """Run ``icecore ARGUMENTS`` in a folder."""
        out, err = self._scratch / "out", self._scratch / "err"
        self.start(job="command", arguments=list(map(str, arguments)), folder=str(folder), out=str(out), err=str(err))
        said = {key: value for answer in self.answers() for key, value in answer.items()}
        told, complained = (file.read_text("utf-8", "surrogateescape") for file in (out, err))
        return Finished(said["status"], told, complained, said["convolutions"])

    def _answer(self) -> dict[str, Any]:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        assert line, "the fork server died"
        answer: dict[str, Any] = json.loads(line)
        return answer


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jobs]:
    server = Jobs(tmp_path_factory.mktemp("jobs"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def draw() -> Callable[..., Image.Image]:
    """Gives an RGB picture, another for each seed: coarse colours with some grain, so that JPEG keeps them apart."""

    def draw(seed: int, width: int = 96, height: int = 80) -> Image.Image:
        random = np.random.default_rng(seed)
        coarse = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize((width, height))
        grain = random.integers(-20, 21, (height, width, 3))
        return Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8))

    return draw


Rows = Callable[..., tuple[list[str], np.ndarray]]


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Reads ids and a copy of the matrix of some layers from a store with one set."""

    def rows(store_path: Path, *layers: str) -> tuple[list[str], np.ndarray]:
        with FeatureStore.open(store_path) as store:
            (name,) = store.sets()
            ids, X = store[name].matrix(list(layers))
            return ids, np.array(X)

    return rows


@pytest.fixture(scope="session")
def settle() -> Callable[[Path], None]:
    """Waits until a folder's files are older than the two seconds within which their times are not to be trusted.

    Younger files are read again by the next run, whatever their times say; some tests are about the times alone.
    """

    def settle(folder: Path) -> None:
        youngest = max(path.stat().st_ctime for path in folder.rglob("*"))
        time.sleep(max(0.0, youngest + 2.2 - time.time()))

    return settle


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """Gives a folder that one test process fills and all of them read."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def shared(name: str, fill: Callable[[Path], None]) -> Path:
        folder = root / name
        with FileLock(root / f"{name}.lock"):
            if not (folder / "filled").exists():
                folder.mkdir()
                fill(folder)
                (folder / "filled").touch()
        return folder

    return shared


@pytest.fixture(scope="session")
def work(assets: Path, jobs: Any, shared: Any) -> Path:
    """Folder with ``plain.npz``, the plain script's features, and ``features``, icecore's store of the same photos."""
    data, weights = assets / "data/hymenoptera", assets / "weights/mobilenet_v2_features.pth"

    def fill(folder: Path) -> None:
        config = write_config(folder, assets, images=data, dtype="float32")
        with run_plain("features", data, weights, folder / "plain.npz") as plain:
            done = jobs.command(["extract", config, "--json"], folder)
        assert (plain.returncode, done.code) == (0, 0), done.err
        (folder / "extract.json").write_text(json.dumps(done.facts))

    folder: Path = shared("witness", fill)
    return folder
