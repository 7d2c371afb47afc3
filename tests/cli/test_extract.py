"""What ``icecore extract`` refuses, before anything is written: backbone, layers, weights, config; and its dry run."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from icecore.store import FeatureStore

Icecore = Callable[..., Any]
Write = Callable[..., None]


@pytest.fixture
def photos(project: Any, write_photos: Write) -> Any:
    """The project with eight images."""
    write_photos(project.photos, train=3, val=1)
    return project


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.name=squeezenet1_2", "no backbone 'squeezenet1_2'; did you mean 'squeezenet1_1'?"),
        ("backbone.name=own_module:net", "backbone 'own_module:net': module 'own_module' cannot be imported"),
        ("backbone.name=os:getcwd", "os:getcwd: gives a str, expected a torch.nn.Module"),
        ("backbone.arguments={widht=2}", "squeezenet1_1: cannot be built with {'widht': 2}"),
        ("backbone.layers=['features.33']", "has no layer 'features.33'; did you mean 'features.3'?; `icecore layers"),
        ("backbone.layers=['features.3', 'nosuch.*']", "backbone squeezenet1_1 has no layer 'nosuch.*'"),
        ("backbone.layers=['x']", "layer 'x' of squeezenet1_1 cannot be pooled: it is the input itself"),
        ("backbone.pooling=['flat']", "backbone.pooling[0]: flat is what layers without positions get by themselves"),
        ("backbone.weights=IMAGENET1K_V3", "no weights 'IMAGENET1K_V3'; did you mean 'IMAGENET1K_V1'?"),
        ("backbone.weights=missing.pth", "missing.pth: no such weights file"),
        ("preprocess.like=ResNet18_Wieghts.X", "no torchvision weights entry 'ResNet18_Wieghts.X'"),
        ("source.foldr=x", "--set source.foldr: source.foldr: unknown key; did you mean 'folder'?"),
        ("sourc.folder=x", "--set sourc.folder: sourc: unknown key; did you mean 'source'?"),
        ("compute.batch_size", "--set compute.batch_size: expected key=value"),
    ],
)
def test_a_config_that_asks_for_what_is_not_there_ends_with_4_and_makes_no_store(
    icecore: Icecore, photos: Any, override: str, message: str
) -> None:
    done = icecore("extract", photos.config, "--set", override, "--json")
    assert (done.code, done.outcome["outcome"], done.outcome["retryable"]) == (4, "config invalid", False)
    assert message in done.told
    assert message in done.outcome["error"]
    assert not photos.store.exists()


def test_a_config_with_three_faults_lists_all_at_once_with_their_places(icecore: Icecore, photos: Any) -> None:
    text = photos.config.read_text("utf-8")
    photos.config.write_text(
        text.replace("layers =", "layrs =").replace("threads = 2", "threads = -1").replace("folds = 2", 'folds = "x"')
    )
    lines = {line.partition(" = ")[0]: n for n, line in enumerate(photos.config.read_text("utf-8").splitlines(), 1)}
    done = icecore("extract", photos.config)
    assert done.code == 4
    assert done.told.startswith("icecore extract: config invalid, 4 faults:\n")
    for fault in (
        f"{photos.config}:{lines['[backbone]']}: backbone.layers: missing",
        f"{photos.config}:{lines['layrs']}: backbone.layrs: unknown key; did you mean 'layers'?",
        f"{photos.config}:{lines['threads']}: compute.threads: input should be greater than or equal to 0, found -1",
        f"{photos.config}:{lines['folds']}: train.folds: input should be a valid integer, found 'x'",
    ):
        assert f"\n  {fault}\n" in done.told
    assert not photos.store.exists()


def test_a_missing_config_ends_with_4(icecore: Icecore, tmp_path: Path) -> None:
    done = icecore("extract", tmp_path / "nosuch.toml")
    assert (done.code, done.out) == (4, b"")
    assert f"{tmp_path / 'nosuch.toml'}: no such file" in done.told


def test_a_device_that_is_not_there_is_an_error_never_another_device(icecore: Icecore, photos: Any) -> None:
    done = icecore("extract", photos.config, "--set", "compute.device='cuda:99'")
    assert done.code == 1
    assert "device 'cuda:99' is not there" in done.told
    assert not photos.store.exists()


# --- weights ----------------------------------------------------------------------------------------------------


def test_weights_of_another_architecture_are_refused(icecore: Icecore, photos: Any, save_weights: Write) -> None:
    photos.weights.unlink()
    save_weights(photos.weights, seed=0, name="mobilenet_v3_small")
    done = icecore("extract", photos.config)
    assert done.code == 4
    assert f"{photos.weights}: none of its" in done.told
    assert "so it belongs to another one" in done.told
    assert not photos.store.exists()


def test_weights_of_a_sibling_architecture_are_refused_naming_a_tensor(
    icecore: Icecore, photos: Any, save_weights: Write
) -> None:
    """SqueezeNet 1.0 has layers of the same names; some tensors even have the same shape."""
    photos.weights.unlink()
    save_weights(photos.weights, seed=0, name="squeezenet1_0")
    done = icecore("extract", photos.config)
    assert done.code == 4
    assert (
        f"{photos.weights}: does not fit squeezenet1_1 up to features.3: features.0.bias has shape (96,), the network"
        in done.told
    )


@pytest.mark.parametrize("ending", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0" * 64], ids=["empty", "png", "zeros"])
def test_a_file_that_holds_no_weights_is_refused(icecore: Icecore, photos: Any, ending: str, content: bytes) -> None:
    path = photos.folder / f"odd{ending}"
    path.write_bytes(content)
    done = icecore("extract", photos.config, "--set", f"backbone.weights=odd{ending}")
    assert done.code == 4
    assert done.told.startswith(f"icecore extract: {path}: ")
    assert not photos.store.exists()


def test_weights_cut_short_are_refused(icecore: Icecore, photos: Any) -> None:
    data = photos.weights.read_bytes()
    photos.weights.unlink()
    photos.weights.write_bytes(data[: len(data) // 2])
    done = icecore("extract", photos.config)
    assert done.code == 4
    assert "not a readable weights file" in done.told
    assert "is it whole?" in done.told


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_a_weights_file_that_would_run_code_is_refused_and_runs_nothing(
    icecore: Icecore, photos: Any, tmp_path: Path, form: str
) -> None:
    import torch

    target, path = tmp_path / "was-run", photos.folder / "attack.pth"
    content = {"features.0.weight": Attack(target)}
    torch.save(content, path) if form == "torch" else path.write_bytes(pickle.dumps(content, protocol=2))
    done = icecore("extract", photos.config, "--set", "backbone.weights=attack.pth")
    assert done.code == 4
    assert f"{path}: holds more than tensors, and loading it could run code" in done.told
    assert "save model.state_dict() instead" in done.told
    assert not target.exists()


# --- batch size -------------------------------------------------------------------------------------------------


def test_a_batch_size_that_is_given_is_taken_and_told(icecore: Icecore, photos: Any) -> None:
    done = icecore("extract", photos.config, "--json")
    assert (done.outcome["batch_size"], done.outcome["batch_size_why"]) == (8, "")
    text = icecore("extract", photos.config, "--set", "set=other", "--set", "compute.batch_size=5").text
    assert " images/s on cpu, fp32, batches of 5, eager" in text
    assert "found on this machine" not in text


def test_a_batch_size_that_was_found_is_told_with_its_cost_and_once(
    icecore: Icecore, photos: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ICECORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("icecore.extract.batch_sizes.SHARE", 1e9)  # of eight images
    photos.config.write_text(photos.config.read_text("utf-8").replace("batch_size = 8", ""), "utf-8")
    text = icecore("extract", photos.config).text
    found = (
        r"batches of (\d+), eager.*\n  batch size found on this machine: (\d+) \([\d,]+ images, [\d,.]+% of the run's"
    )
    told = re.search(found, text)
    assert told is not None
    assert told[1] == told[2]
    again = icecore("extract", photos.config, "--set", "set=other", "--json").outcome
    assert (again["batch_size"], again["batch_size_why"]) == (int(told[1]), "")


# --- dry run, and a second contract -----------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(icecore: Icecore, photos: Any) -> None:
    before = files(photos.folder)
    done = icecore("extract", photos.config, "--dry-run")
    assert (done.code, done.told) == (0, "")
    assert "photos: 8 files to read, 0 unchanged\n         8  new\n" in done.text
    assert "columns: features.3:avg (128)\n  on cpu, fp32; nothing was written\n" in done.text
    assert files(photos.folder) == before
    planned = icecore("extract", photos.config, "--dry-run", "--json").outcome
    assert (planned["dry_run"], planned["added"], planned["to_read"], planned["forwarded"]) == (True, 8, 8, 0)
    assert files(photos.folder) == before


def test_a_dry_run_over_a_store_writes_nothing_either(
    icecore: Icecore, trained: Any, noisy: Callable[..., Any]
) -> None:
    noisy(77).save(trained.photos / "train" / "red" / "new.png")
    (trained.photos / "val" / "blue" / "0.png").unlink()
    before = {path: path.read_bytes() for path in trained.store.rglob("*") if path.is_file()}
    done = icecore("extract", trained.config, "--dry-run")
    assert done.code == 0
    assert "         1  new\n" in done.text
    assert "         1  gone from the folder\n" in done.text
    after = {path: path.read_bytes() for path in trained.store.rglob("*") if path.is_file()}
    assert {p: b for p, b in after.items() if p.suffix not in {".sqlite-shm", ".sqlite-wal"}} == {
        p: b for p, b in before.items() if p.suffix not in {".sqlite-shm", ".sqlite-wal"}
    }


def test_other_weights_under_the_same_set_begin_a_generation_of_their_own(
    icecore: Icecore, trained: Any, save_weights: Write
) -> None:
    with FeatureStore.open(trained.store) as store:
        generation, X = store["photos"].generation, store["photos"].matrix("features.3").X
    trained.weights.unlink()
    save_weights(trained.weights, seed=1)
    done = icecore("extract", trained.config, "--json")
    assert (done.code, done.outcome["forwarded"]) == (0, 18)
    with FeatureStore.open(trained.store) as store:
        now = store["photos"]
        assert now.generation != generation
        assert (now.matrix("features.3").X != X).any()


def test_arguments_that_a_builder_refuses_are_told(icecore: Icecore, project: Any, write_photos: Any) -> None:
    write_photos(project.photos)
    done = icecore("extract", project.config, "--set", "backbone.arguments={dropout=7}")
    assert done.code == 4
    assert "cannot be built with {'dropout': 7}" in done.told


def test_numbers_that_moved_end_with_1_and_name_image_column_and_cure(
    icecore: Icecore, trained: Any, noisy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy(500).save(trained.photos / "train" / "red" / "new.png")
    before = files(trained.store / "segments")
    pool = "icecore.extract.trunk.pool"
    plain = __import__("icecore.extract.pooling").extract.pooling.pool
    monkeypatch.setattr(pool, lambda maps, layout, pooling: plain(maps * 1.5, layout, pooling))
    done = icecore("extract", trained.config, "--json")
    assert (done.code, done.outcome["outcome"], done.outcome["retryable"]) == (1, "failed", False)
    assert "gives other features in features.3:avg: moved by 50.00% of their length (cosine 1.000000)" in done.told
    assert "`--set set=NAME`" in done.told
    assert files(trained.store / "segments") == before
    beside = icecore("extract", trained.config, "--set", "set=anew")
    assert (beside.code, "19 forwarded" in beside.text) == (0, True)
