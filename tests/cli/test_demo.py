"""``icecore demo`` runs the whole job in a folder of its own, and never touches another."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.cli.demo import MADE, _prepare, _write_digits
from PIL import Image

Icecore = Callable[..., Any]
CONFIG = resources.files("icecore.configs").joinpath("demo.toml").read_bytes()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"thesis.txt": b"years of work"}, "holds something else than a demo (thesis.txt)"),
        ({"features": b"a store?"}, "holds something else than a demo (no demo.toml)"),
        ({"demo.toml": CONFIG, "thesis.txt": b"years of work"}, "holds something else than a demo (thesis.txt)"),
        ({"demo.toml": b"# my own job\n"}, "its demo.toml was changed; move it away, or name another folder"),
    ],
    ids=["other files", "no config", "a config beside other files", "a changed config"],
)
def test_a_folder_that_is_not_only_a_demos_is_refused_and_left_as_it_was(
    icecore: Icecore, tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    done = icecore("demo", tmp_path, "--json")
    assert (done.code, done.outcome["outcome"]) == (2, "usage")
    assert message in done.told
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_a_file_in_place_of_the_folder_is_refused(icecore: Icecore, tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("x")
    done = icecore("demo", tmp_path / "demo")
    assert done.code == 2
    assert "is a file" in done.told


def test_a_demos_own_folder_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "demo"
    for _ in range(2):
        _prepare(folder)
        assert sorted(path.name for path in folder.iterdir()) == [".icecore-demo", "demo.toml"]
        assert (folder / "demo.toml").read_bytes() == CONFIG
        for name in MADE - {"demo.toml", ".icecore-demo"}:
            (folder / name).mkdir()
    (tmp_path / "empty").mkdir()
    _prepare(tmp_path / "empty")


def test_the_digits_are_written_as_they_are(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    source = _write_digits(tmp_path)
    digits = load_digits()
    files = sorted(tmp_path.rglob("*.png"))
    assert len(files) == len(digits.target) == 1797
    for path in files[::50]:
        number = int(path.stem)
        assert path.parent.name == str(digits.target[number])
        with Image.open(path) as image:
            np.testing.assert_allclose(np.asarray(image), digits.images[number] * 255 / 16, atol=0.5)
    assert {digit for _, digit in source} == {0, 1, 2, 3, 4}
    assert {path.name for path in tmp_path.glob("target/train/*")} == {"5", "6", "7", "8", "9"}
    assert {path.name for path in tmp_path.glob("target/val/*")} == {"5", "6", "7", "8", "9"}
    held, train = (len(list(tmp_path.glob(f"target/{side}/*/*"))) for side in ("val", "train"))
    assert held / (held + train) == pytest.approx(0.25, abs=0.01)


@pytest.mark.slow
def test_the_whole_demo_runs_twice_and_keeps_what_it_says(icecore: Icecore, tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    done = icecore("demo", folder, "--json")
    assert done.code == 0
    facts = done.outcome
    assert (facts["forwarded"], facts["forwarded_again"]) == (896, 0)
    assert len(facts["cells"]) == 12
    assert facts["winner"]["held_out"]["accuracy"] > facts["baseline"]["accuracy"] + 0.5
    page = Path(facts["report"])
    assert page == folder / "report.html"
    assert "<html" in page.read_text("utf-8")
    assert {path.name for path in folder.iterdir()} == MADE
    bundle, images = facts["bundles"][0], next(folder.glob("target/val/7"))
    shutil.copytree(images, tmp_path / "elsewhere")
    predicted = icecore("predict", bundle, tmp_path / "elsewhere")
    assert predicted.code == 0
    labels = [line.split(",")[1] for line in predicted.text.splitlines()[1:]]
    assert labels.count("7") > 0.8 * len(labels)
    again = icecore("demo", folder)
    assert again.code == 0
    assert "extract again: nothing has changed\n      0 images forwarded\n" in again.text


def test_the_folder_of_an_earlier_releases_demo_is_made_anew_but_a_changed_one_is_not(tmp_path: Path) -> None:
    """After an upgrade the shipped demo.toml differs from the one in the folder, which nobody touched."""
    import hashlib

    from click import UsageError
    from icecore.cli.demo import MARK, _prepare

    folder = tmp_path / "demo"
    _prepare(folder)
    shipped = (folder / "demo.toml").read_bytes()
    older = b"# an older release\n" + shipped
    (folder / "demo.toml").write_bytes(older)
    (folder / "features").mkdir()
    with pytest.raises(UsageError, match=r"its demo\.toml was changed"):
        _prepare(folder)
    (folder / MARK).write_text(hashlib.sha256(older).hexdigest())
    _prepare(folder)
    assert (folder / "demo.toml").read_bytes() == shipped
    assert sorted(path.name for path in folder.iterdir()) == [MARK, "demo.toml"]
