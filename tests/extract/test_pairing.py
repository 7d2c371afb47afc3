"""A broken pair of torch and torchvision is told in one line, before anything else fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "icecore.extract.pairing"]


def install(folder: Path, name: str, version: str, *, requires: str = "", code: str | None = None) -> None:
    """Put a distribution on a path as pip leaves it: metadata, and a package where ``code`` is given."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requires}"] if requires else []
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    if code is not None:
        (folder / f"{name}.py").write_text(code)


def check(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(COMMAND, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.slow
def test_the_installed_pair_is_fine_and_silent() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_torch_older_than_torchvision_wants_is_one_line_with_both_versions_and_the_cure(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.13.0+cpu")
    install(tmp_path, "torchvision", "0.29.2", requires="torch (>=2.14.0)")
    done = check(tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "torchvision 0.29.2 needs torch >=2.14.0, found torch 2.13.0+cpu: "
        "install both with `pip install -c constraints.txt torch torchvision`\n"
    )


def test_a_local_version_counts_as_its_release(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.14.0+cpu", code="")
    install(tmp_path, "torchvision", "0.29.0", requires="torch==2.14.0", code="")
    done = check(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_import_that_fails_although_the_metadata_fit_is_the_same_one_line(tmp_path: Path) -> None:
    install(tmp_path, "torch", "2.15.0", code="")
    broken = "raise RuntimeError('operator torchvision::nms does not exist\\nand more')"
    install(tmp_path, "torchvision", "0.29.2", requires="torch>=2.14", code=broken)
    done = check(tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "torch 2.15.0 and torchvision 0.29.2 do not work together" in done.stderr
    assert "operator torchvision::nms does not exist" in done.stderr
    assert "pip install -c constraints.txt" in done.stderr


BLOCK = """
import sys, importlib.metadata as metadata
sys.modules["torch"] = None
found = metadata.version
def version(name):
    if name == "torch":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
"""


def test_the_package_imports_without_torch_and_the_names_that_need_it_say_how_to_get_it() -> None:
    script = BLOCK + (
        "import icecore.extract as extract\n"
        "assert extract.Preprocess().crop == 224\n"
        "assert 'torchvision' not in sys.modules\n"
        "try:\n"
        "    extract.load_backbone\n"
        "except extract.PairError as exc:\n"
        "    assert isinstance(exc, ImportError)\n"
        "    print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.stderr == ""
    assert done.stdout == "torch is not installed, and extraction needs it: pip install 'icecore[extract]'\n"


def test_the_public_names_are_these() -> None:
    import icecore.extract

    assert sorted(icecore.extract.__all__) == list(icecore.extract.__all__)
    assert all(getattr(icecore.extract, name) for name in icecore.extract.__all__)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = icecore.extract.nothing_like_it


def test_importing_the_package_does_not_import_torch() -> None:
    script = "import sys, icecore.extract; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode == 0
