from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from icecore.cli.config import ConfigError, ExtractConfig, TrainConfig, load_config
from icecore.cli.task_choices import TASK_CHOICES, AnyModelName, MetricName
from icecore.train.tasks import TASKS, task_of

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
store = "features"
set = "photos"

[source]
folder = "photos"

[backbone]
name = "resnet18"
weights = "IMAGENET1K_V1"
layers = ["layer4"]
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(GOOD, "utf-8")
    return path


WHOLE = ("experiment", "nightly", "demo", "sweep", "multilabel", "regression", "finetune", "retrain")
FOR_TRAINING = ("grouped", "balanced")
"""Examples of one stage: the features are there already."""


@pytest.mark.parametrize("name", [*WHOLE, *FOR_TRAINING])
def test_every_example_config_loads(name: str) -> None:
    path = ROOT / "configs" / f"{name}.toml"
    load_config(TrainConfig, path)
    if name in WHOLE:
        load_config(ExtractConfig, path)


def test_every_example_config_is_tested() -> None:
    assert {path.stem for path in (ROOT / "configs").glob("*.toml")} == {*WHOLE, *FOR_TRAINING}


@pytest.mark.parametrize("name", [*WHOLE, *FOR_TRAINING])
def test_every_commented_key_of_the_examples_is_a_real_one(name: str, tmp_path: Path) -> None:
    """Uncomment `# key = value` and `# [section]` lines: the file must still load."""
    lines = []
    for line in (ROOT / "configs" / f"{name}.toml").read_text("utf-8").splitlines():
        text = line.removeprefix("# ")
        is_code = text != line and ("=" in text.split("#")[0] or text.startswith("[")) and "--" not in text
        lines.append(text if is_code else line)
    path = tmp_path / "all.toml"
    path.write_text("\n".join(lines), "utf-8")
    load_config(ExtractConfig if name in WHOLE else TrainConfig, path)


def test_the_example_names_every_key() -> None:
    """What can be set is documented: each key stands in experiment.toml, commented or not."""
    text = (ROOT / "configs" / "experiment.toml").read_text("utf-8")
    for name, field in ExtractConfig.model_fields.items():
        inner = [
            c for c in (field.annotation, *getattr(field.annotation, "__args__", ())) if hasattr(c, "model_fields")
        ]
        for section in inner:
            assert f"[{name}]" in text
            for key, value in section.model_fields.items():
                assert f"{key} = " in text or f"[{name}.{key}]" in text, f"{name}.{key}"
                assert value.description, f"{name}.{key} has no docstring"
        if not inner:
            assert f"{name} = " in text


def test_paths_are_relative_to_the_config(config: Path) -> None:
    loaded = load_config(ExtractConfig, config)
    assert loaded.store == config.parent / "features"
    assert loaded.source.folder == config.parent / "photos"


def test_a_manifest_stands_for_the_folder_or_beside_it(config: Path) -> None:
    loaded = load_config(ExtractConfig, config, ["source.manifest=lists/Images.CSV"])
    assert loaded.source.manifest == config.parent / "lists" / "Images.CSV"
    assert loaded.source.folder == config.parent / "photos"
    config.write_text(GOOD.replace('folder = "photos"', 'manifest = "images.parquet"'), "utf-8")
    alone = load_config(TrainConfig, config).source
    assert alone is not None
    assert (alone.folder, alone.manifest) == (None, config.parent / "images.parquet")
    assert (alone.prune, alone.extensions, alone.max_removed) == ("tombstone", None, 0.5)


def test_overrides_take_toml_values_and_plain_text(config: Path) -> None:
    loaded = load_config(
        ExtractConfig, config, ["compute.batch_size=8", "backbone.layers=['a','b']", "backbone.name=vgg16"]
    )
    assert (loaded.compute.batch_size, loaded.backbone.layers, loaded.backbone.name) == (8, ("a", "b"), "vgg16")


def test_all_faults_are_listed_at_once_with_line_limit_and_suggestion(config: Path) -> None:
    text = GOOD.replace("layers =", "layrs =") + '\n[compute]\nbatch_size = 0\nprecision = "bf32"\n'
    config.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as refused:
        load_config(ExtractConfig, config, ["compute.threads=-1"])
    wrong = "input should be 'auto', 'fp32', 'bf16' or 'fp16', found 'bf32'"
    assert set(refused.value.faults) == {
        f"{config}:8: backbone.layers: missing",
        f"{config}:11: backbone.layrs: unknown key; did you mean 'layers'?",
        f"{config}:14: compute.batch_size: input should be greater than or equal to 1, found 0",
        f"{config}:15: compute.precision: {wrong}; did you mean 'fp32'?",
        "--set compute.threads: compute.threads: input should be greater than or equal to 0, found -1",
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("no equals sign", "expected key=value"),
        ("store.x=1", "store is a value, not a section"),
        ("backbone.pooling=['median']", r"backbone.pooling\[0\]: no pooling 'median': it is avg, max, gem"),
        ("train.layers=[1]", r"train.layers\[0\]: input should be a valid"),
        ("train.models=['svm']", r"train.models.*: input should be 'logistic_regression'"),
        ("set='../x'", "set: string should match pattern"),
        ("source.max_removed=2", "source.max_removed: input should be less than or equal to 1, found 2"),
        ("source.prune=delete", "source.prune: input should be 'tombstone' or 'keep', found 'delete'"),
        ("source.manifest=images.txt", r"source.manifest: expected a .csv or .parquet file, found 'images.txt'"),
        ("source={}", r"--set source: source: folder is missing; name a folder of images, or a manifest .* them$"),
        ("source.extensions=[]", "source.extensions: tuple should have at least 1 item"),
        (
            "compute.device=gpu",
            "compute.device: expected auto, cpu, cuda, cuda:N, cuda:all, or a list of the first four, found 'gpu'",
        ),
        ("backbone=1", "backbone: input should be a valid"),
    ],
)
def test_a_wrong_override_says_what_is_expected(config: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_config(ExtractConfig, config, [override])
    assert len(refused.value.faults) == 1


def test_a_file_that_is_no_toml_or_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(ExtractConfig, tmp_path / "missing.toml")
    (tmp_path / "bad.toml").write_text("store = \n", "utf-8")
    with pytest.raises(ConfigError, match=r"bad.toml: Invalid value \(at line 1"):
        load_config(ExtractConfig, tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'store = "\xff"\n')
    with pytest.raises(ConfigError, match=r"latin.toml: 'utf-8' codec"):
        load_config(ExtractConfig, tmp_path / "latin.toml")


def test_every_model_and_metric_on_offer_can_be_named() -> None:
    found = {name: (tuple(task_of(name).models), task_of(name).metrics) for name in TASKS}
    assert found == {name: tuple(map(tuple, choices)) for name, choices in TASK_CHOICES.items()}
    assert set(get_args(AnyModelName)) == {model for models, _ in found.values() for model in models}
    assert set(get_args(MetricName)) == {metric for _, metrics in found.values() for metric in metrics}


def test_a_grid_lists_values_of_the_main_setting_or_of_several_by_name(config: Path) -> None:
    rbf = {"C": (1.0,), "gamma_scale": (0.3, 1.0)}
    override = "train.grids={rbf_svm={C=[1], gamma_scale=[0.3, 1]}, knn=[3]}"
    loaded = load_config(ExtractConfig, config, [override]).train
    assert loaded is not None
    assert loaded.grids == {"rbf_svm": rbf, "knn": (3.0,)}
    with pytest.raises(ConfigError) as refused:
        load_config(ExtractConfig, config, ["train.grids={rbf_svm={gamma_scale=[0.3, -1]}, knn=[]}"])
    assert [fault.partition(": ")[2] for fault in refused.value.faults] == [
        "train.grids.rbf_svm.gamma_scale[1]: input should be greater than 0, found -1",
        "train.grids.knn: tuple should have at least 1 item after validation, not 0, found []",
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [("512 MiB", 512 << 20), ("1.5GiB", 3 << 29), ("64KB", 64_000), ("2 GB", 2 * 10**9), ("700 B", 700)],
)
def test_memory_is_given_with_its_unit(config: Path, text: str, count: int) -> None:
    assert load_config(TrainConfig, config, (f"train.memory={text}",)).train.memory == count
    assert load_config(TrainConfig, config, (f"train.memory={count}",)).train.memory == count


@pytest.mark.parametrize("text", ["lots", "0 MiB", "-5", "0", "5 Mio", "true"])
def test_a_memory_limit_that_is_none_is_refused(config: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"train.memory: expected a number of bytes, or a text such as"):
        load_config(TrainConfig, config, (f"train.memory={text}",))
