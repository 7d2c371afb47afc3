"""The compiled pass gives the features of the pass that it stands for, or is not used."""

from __future__ import annotations

import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import Backbone, CompileError, Preprocess, choose_precision, load_backbone
from icecore.extract import compiled as room
from icecore.extract.graph import cut, fold_batch_norms, trace
from icecore.extract.layers import columns_for
from icecore.extract.machine import check_machine
from icecore.extract.native import unpack
from icecore.extract.precision import settle_precision
from icecore.extract.trunk import Trunk
from icecore.store import Column, scan_folder
from PIL import Image
from torch import nn

SMALL = Preprocess(resize=32, crop=32)
SOURCE = """
import torch
from torch import nn

def net(seed=0):
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    return nn.Sequential(first, nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12)).eval()
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Function that gives a small network of one's own, by seed, with its columns."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "smallnet.py").write_text(SOURCE, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))

        def make(seed: int = 0) -> tuple[Backbone, tuple[Column, ...]]:
            backbone = load_backbone("smallnet:net", preprocess=SMALL, arguments={"seed": seed})
            return backbone, columns_for(backbone.layers, ["0", "2"], ("avg", "max"), dtype="float32")

        yield make


@pytest.fixture
def make(network: Any) -> Callable[..., Trunk]:
    def trunk(seed: int = 0, batch_size: int = 2, **options: Any) -> Trunk:
        backbone, columns = network(seed)
        return Trunk(backbone, columns, device="cpu", batch_size=batch_size, **options)

    return trunk


@pytest.fixture
def kept() -> list[Path]:
    """What is kept now, the newest last."""
    return sorted((room.cache_folder() / "compiled").glob("*.so"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def one(network: Any) -> Path:
    """The compiled form of the network of seed 0, for batches of 2, in fp32."""
    backbone, columns = network()
    Trunk(backbone, columns, device="cpu", batch_size=2, compilation="always")
    return max((room.cache_folder() / "compiled").glob("*.so"), key=lambda path: path.stat().st_mtime_ns)


def pixels(n: int) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


def never(*_: object) -> None:
    raise AssertionError("compiled again")


def test_the_compiled_pass_gives_the_same_features_whatever_the_batch(one: Path, make: Callable[..., Trunk]) -> None:
    eager, compiled = make(), make(compilation="auto")
    assert (eager.engine, compiled.engine, compiled.why) == ("eager", "compiled", "")
    whole = compiled.forward(pixels(2))
    for column, rows in eager.forward(pixels(2)).items():
        np.testing.assert_allclose(whole[column], rows, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(compiled.forward(pixels(2)[:1])[column], whole[column][:1])


def test_what_was_compiled_is_not_compiled_again(
    one: Path, make: Callable[..., Trunk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_compile", never)
    assert make(compilation="always").engine == "compiled"
    for other in ({"seed": 1}, {"batch_size": 3}, {"precision": "bf16"}):
        with pytest.raises(AssertionError, match="compiled again"):
            make(compilation="always", **other)


def test_few_images_are_not_worth_it_and_auto_says_so(make: Callable[..., Trunk]) -> None:
    trunk = make(seed=2, compilation="auto", images=300)
    assert (trunk.engine, trunk.why) == ("eager", "300 images are too few to compile for")
    assert not room.pays(1000, 0.02)
    assert room.pays(100_000, 0.02)


def test_a_form_with_other_weights_is_found_out_and_deleted(one: Path, make: Callable[..., Trunk]) -> None:
    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icecore.extract.trunk.is_kept", lambda key: seen.append(key) or False)
        make(seed=3, compilation="auto")
    wrong = one.with_name(f"{seen[0]}.so")
    for compilation in ("auto", "always"):
        for suffix in (".so", ".json"):
            shutil.copy(one.with_suffix(suffix), wrong.with_suffix(suffix))
        if compilation == "auto":
            trunk = make(seed=3, compilation="auto")
            assert trunk.engine == "eager"
            assert trunk.why.startswith("the compiled network gives other features (cosine ")
        else:
            with pytest.raises(CompileError, match="gives other features"):
                make(seed=3, compilation="always")
        assert not wrong.exists()


def test_a_damaged_file_is_deleted_and_told(one: Path, make: Callable[..., Trunk]) -> None:
    sound, notes = one.read_bytes(), one.with_suffix(".json").read_bytes()
    for damaged in (sound[: len(sound) // 2], sound[:5000] + b"?" + sound[5001:]):
        one.unlink()  # what is in use stays mapped
        one.write_bytes(damaged)
        trunk = make(compilation="auto")
        assert trunk.engine == "eager"
        assert trunk.why == f"{one}: is not what was compiled; it was deleted"
        assert not one.exists()
        one.write_bytes(sound)
        assert make(compilation="auto").engine == "eager", "without its notes it does not count"
        one.with_suffix(".json").write_bytes(notes)
        assert make(compilation="auto").engine == "compiled"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_code_of_another_user_is_not_run(one: Path, make: Callable[..., Trunk]) -> None:
    os.chown(one, 65534, 65534)
    trunk = make(compilation="auto")
    assert trunk.engine == "eager"
    assert "belongs to another user; set ICECORE_CACHE" in trunk.why
    os.chown(one, os.getuid(), os.getgid())


def test_where_it_was_slower_when_measured_auto_leaves_it(one: Path, make: Callable[..., Trunk]) -> None:
    notes = one.with_suffix(".json")
    before = notes.read_text()
    notes.write_text(json.dumps({**json.loads(before), "eager": 1.0, "compiled": 2.0}))
    trunk = make(compilation="auto")
    assert (trunk.engine, trunk.why) == ("eager", "compiled it was slower on this machine")
    assert make(compilation="always").engine == "compiled"
    notes.write_text(before)


def test_without_a_compiler_always_says_what_to_do(make: Callable[..., Trunk], monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder

    search = cpp_builder.cpp_compiler_search
    search.cache_clear()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CompileError, match=r"needs a C\+\+ compiler, and there is none: install g\+\+ or clang"):
        make(seed=4, compilation="always")
    search.cache_clear()


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for age, name in enumerate(["new", "older", "oldest"]):
        (tmp_path / f"{name}.so").write_bytes(bytes(100))
        (tmp_path / f"{name}.json").write_bytes(b"{}")
        os.utime(tmp_path / f"{name}.so", (10_000 - age, 10_000 - age))
    monkeypatch.setattr(room, "MOST_BYTES", 250)
    room._trim(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.json", "new.so", "older.json", "older.so"]


def test_what_a_killed_process_left_is_deleted_after_a_day(tmp_path: Path) -> None:
    for name, age in (("making-now", 60), ("making-then", 90_000), ("else", 90_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "network.so").write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    room._trim(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["else", "making-now"]


def test_the_code_takes_the_batch_that_it_was_made_for_only(make: Callable[..., Trunk]) -> None:
    forward = make(compilation="always")._runner.forward  # type: ignore[union-attr]
    for batch in (torch.zeros(3, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 3, 32, 32)):
        with pytest.raises(ValueError, match=r"expected a contiguous uint8 batch \(2, 3, 32, 32\), found"):
            forward(batch)


def test_passes_side_by_side_are_compiled_passes(make: Callable[..., Trunk]) -> None:
    trunk = make(compilation="always")
    given = [pixels(2) // (1 + n) for n in range(40)]
    together = [wait() for wait in [trunk.start(one) for one in given]]
    for one, found in zip(given, together, strict=True):
        for column, rows in trunk.forward(one).items():
            np.testing.assert_array_equal(found[column], rows)


def test_where_nothing_can_be_kept_auto_goes_on_without(
    make: Callable[..., Trunk], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "file" / "cache"))
    assert make(compilation="auto").engine == "eager"
    with pytest.raises(CompileError, match=r"cannot be kept .* set ICECORE_CACHE to a folder of your own"):
        make(seed=5, compilation="always")


def test_notes_that_say_nothing_are_no_notes(one: Path, make: Callable[..., Trunk]) -> None:
    sound, notes = one.read_bytes(), one.with_suffix(".json").read_bytes()
    one.with_suffix(".json").write_text("null")
    assert "is not what was compiled" in make(compilation="auto").why
    one.write_bytes(sound)
    one.with_suffix(".json").write_bytes(notes)


def test_features_of_another_length_are_not_alike() -> None:
    rows = torch.rand(3, 5) + 1
    assert room._likeness((rows,), (rows.clone(),)) == 1.0
    assert room._likeness((rows,), (rows * 1.1,)) < 0.999
    assert room._likeness((rows * 0,), (rows * 0,)) == 1.0
    assert room._likeness((rows * 0,), (rows,)) < 0
    assert room._likeness((rows,), (rows * torch.nan,)) == 0.0


def test_what_is_kept_is_what_doctor_counts(one: Path) -> None:
    (told,) = (check for check in check_machine() if check.name == "compiled networks")
    files = list(one.parent.glob("*.json"))
    assert told.facts == {"networks": len(files), "bytes": sum(f.with_suffix(".so").stat().st_size for f in files)}
    assert len(files) >= 1


def test_a_network_that_does_not_fit_into_one_library_is_told(tmp_path: Path) -> None:
    package = tmp_path / "network.pt2"
    with zipfile.ZipFile(package, "w") as archive:
        for name in ("a.wrapper.so", "a.wrapper.cpp", "a.wrapper_metadata.json", "a.wrapper.json"):
            archive.writestr(f"network/data/aotinductor/model/{name}", b"x")
    with pytest.raises(CompileError, match="cannot put into one library"):
        unpack(package, tmp_path / "network.so")


def test_a_word_that_is_none_is_refused(make: Callable[..., Trunk]) -> None:
    with pytest.raises(ValueError, match="expected compilation to be auto, always, never; found 'yes'"):
        make(compilation="yes")


def test_auto_precision_goes_on_with_what_the_set_has() -> None:
    cpu = torch.device("cpu")
    native = torch.cpu.get_capabilities()
    best = "bf16" if native.get("avx512_bf16") or native.get("amx_bf16") else "fp32"
    assert choose_precision(cpu, "auto") == best
    assert [choose_precision(cpu, "auto", stored=stored) for stored in ("fp32", "bf16", "fp16")] == [
        "fp32", "bf16", best,
    ]  # fmt: skip
    assert choose_precision(cpu, "fp32", stored="bf16") == "fp32"


class Shared(nn.Module):
    """A convolution whose output is read twice, one that is called twice, and one that may be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.twice_read, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.twice_called, self.other = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.plain, self.last = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.twice_read(x)
        x = x + self.norm(x)
        x = self.other(self.twice_called(self.twice_called(x)))
        folded: torch.Tensor = self.last(self.plain(x))
        return folded


@torch.inference_mode()
def test_only_norms_that_nobody_else_looks_behind_are_folded_and_the_network_itself_is_left_alone() -> None:
    torch.manual_seed(0)
    network = Shared().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    batch = torch.randn(2, 3, 5, 5)
    expected = network(batch)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    folded = fold_batch_norms(cut(trace(network), ["last"]))
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["norm", "other"]
    torch.testing.assert_close(folded(batch)[0], expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(("least", "precision"), [(0.99, "rough"), (1.1, "fp32")])
def test_auto_takes_the_lower_precision_for_a_new_set_only_where_features_stay_what_they_are(
    network: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, least: float, precision: str
) -> None:
    for number in range(4):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 50, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    (tmp_path / "broken.png").write_bytes(b"x")
    backbone, columns = network()
    monkeypatch.setattr("icecore.extract.precision.choose_precision", lambda *_, stored, **__: stored or "bf16")
    monkeypatch.setattr("icecore.extract.precision.LEAST_COSINE", least)
    settled = settle_precision(backbone, columns, scan_folder(tmp_path), torch.device("cpu"), stored=None)
    assert settled.name == {"rough": "bf16"}.get(precision, precision)
    assert ("bf16 would change features too much: cosine " in settled.why) is (least > 1)
    assert settle_precision(backbone, columns, scan_folder(tmp_path), torch.device("cpu"), stored="bf16").name == "bf16"
