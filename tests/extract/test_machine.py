"""What is said of a machine, also of one that lacks what extraction needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
from icecore.extract import check_machine
from icecore.extract.machine import check_decoders
from icecore.extract.pairing import require_pair
from icecore.store import Check


@pytest.fixture
def checks() -> dict[str, Check]:
    return {check.name: check for check in check_machine()}


def test_versions_are_those_that_are_imported(checks: dict[str, Check]) -> None:
    assert checks["torch"].facts["torch"] == torch.__version__
    assert checks["torch"].health == "ok"
    assert f"Pillow {PIL.__version__}" in checks["decoder"].found


def test_processors_and_memory_are_those_of_the_system(checks: dict[str, Check]) -> None:
    assert checks["processor"].facts["usable"] == len(os.sched_getaffinity(0))
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < checks["memory"].facts["bytes"] <= total


def test_bf16_is_what_the_system_says_of_the_processor(checks: dict[str, Check]) -> None:
    flags = Path("/proc/cpuinfo").read_text("utf-8").split()
    for flag in ("avx512_bf16", "amx_bf16"):
        assert checks["bf16 on the CPU"].facts[flag] == (flag in flags)


def test_a_machine_without_a_compiler_is_told_so_with_the_cure() -> None:
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}):
        found = {check.name: check for check in check_machine()}["C++ compiler"]
    cpp_builder.cpp_compiler_search.cache_clear()
    assert (found.health, found.found) == ("warn", "none")
    assert "install g++ or clang" in found.cure


def test_a_quota_of_processors_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Path.read_text

    def read_text(path: Path, *args: Any, **options: Any) -> str:
        return "50000 100000\n" if path.name == "cpu.max" else plain(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    found = {check.name: check for check in check_machine()}["processor"]
    assert (found.health, found.facts["allowed"]) == ("warn", 0.5)
    assert "compute.threads = 1" in found.cure


def test_without_torch_it_says_what_is_missing_and_the_rest_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("icecore.extract.pairing.metadata.version", version)
    require_pair.cache_clear()
    found = {check.name: check for check in check_machine()}
    require_pair.cache_clear()
    assert (found["torch"].health, found["torch"].found) == ("warn", "torch is not installed, and extraction needs it")
    assert "pip install 'icecore[extract]'" in found["torch"].cure
    assert "CUDA" not in found
    assert found["decoder"].health == "ok"


def test_a_gpu_without_nvjpeg_is_told_with_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU that is not here, the operator that decodes on one can tell nothing else."""
    if torch.cuda.is_available():
        pytest.skip("here it works")
    assert "nvJPEG" not in {check.name for check in check_machine()}

    def decoder(device: torch.device) -> Any:
        raise RuntimeError("torchvision not compiled with nvJPEG support")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("icecore.extract.nvjpeg.CudaDecoder", decoder)
    found = {check.name: check for check in check_machine()}["nvJPEG"]
    assert found.health == "warn"
    assert "(torchvision not compiled with nvJPEG support)" in found.found
    assert found.cure.startswith('set preprocess.decode = "exact"')
    monkeypatch.setattr("icecore.extract.nvjpeg.require_nvjpeg", lambda device: None)
    assert {check.name: check for check in check_machine()}["nvJPEG"].health == "ok"


def test_without_pillow_the_decoder_is_told_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    (found,) = check_decoders()
    assert (found.health, found.found) == ("warn", "Pillow is not installed")


def test_a_pair_that_does_not_fit_will_break(tmp_path: Path) -> None:
    """As pip leaves a torchvision beside another torch."""
    for name, requires in (("torch", ""), ("torchvision", "Requires-Dist: torch (==2.99.0)\n")):
        info = tmp_path / f"{name}-2.13.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 2.13.0\n{requires}")
    code = (
        "import dataclasses, json\nfrom icecore.extract import check_machine\n"
        "print(json.dumps([dataclasses.asdict(c) for c in check_machine()]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found = {check["name"]: check for check in json.loads(done.stdout)}["torch"]
    assert found["health"] == "bad"
    assert found["found"] == "torchvision 2.13.0 needs torch ==2.99.0, found torch 2.13.0"
    assert "-c constraints.txt" in found["cure"]
