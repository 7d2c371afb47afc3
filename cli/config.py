"""What a config file says: its sections and keys, frozen, with their limits; ``loading`` reads it.

Paths in a config are relative to the config file's folder, so that a job does not depend on where it is started.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from .config_types import (
    ConfigPath,
    Count,
    Device,
    Grid,
    Joined,
    ManifestPath,
    OneOrMore,
    OuterFolds,
    PoolingName,
    Positive,
    Section,
    Share,
    parse_bytes,
)
from .drift_config import DriftConfig
from .finetune_config import Finetune
from .loading import ConfigError, load_config
from .retrain_config import Retrain
from .task_choices import AnyModelName, MetricName, check_choices
from .watch_config import Hooks, Watch

__all__ = ["ConfigError", "ExtractConfig", "FinetuneConfig", "Source", "TrainConfig", "load_config"]


class Source(Section):
    """Where the images are: a folder, or a manifest that lists them."""

    folder: Annotated[ConfigPath | None, Field(strict=False)] = None
    """folder of images, walked with its subfolders; beside a manifest the folder that its relative paths start from"""
    manifest: Annotated[ManifestPath | None, Field(strict=False)] = None
    """CSV or Parquet file that lists the images: column path, and optionally id; others are ignored"""
    extensions: tuple[str, ...] | None = Field(None, strict=False, min_length=1)
    """file name endings taken for images; by default every common one in a folder, and all in a manifest"""
    prune: Literal["tombstone", "keep"] = "tombstone"
    """what becomes of images that the source has no more: they leave the current version, or stay"""
    max_removed: Share = 0.5
    """refuse a run that would remove more than this share of the set's images: an unmounted disk"""

    @model_validator(mode="after")
    def _has_images(self) -> Self:
        if self.folder is None and self.manifest is None:
            raise ValueError("folder is missing; name a folder of images, or a manifest that lists them")
        return self


class Backbone(Section):
    """The frozen network and what is taken from it."""

    name: str
    """torchvision classification model, or package.module:function"""
    weights: str | None = None
    """torchvision weights name, or a local .pth, .pt or .safetensors file"""
    layers: tuple[str, ...] = Field(strict=False, min_length=1)
    """layer names or globs: * within one dotted part, ** across"""
    pooling: tuple[PoolingName, ...] = Field(("avg",), strict=False, min_length=1)
    """avg, max, gem or gem(P), of token maps also cls and mean; several give several columns a layer"""
    dtype: Literal["float16", "float32"] = "float16"
    """what is stored"""
    arguments: dict[str, Any] | None = None
    """keyword arguments of the builder; by default those that torchvision uses with these weights"""


class Preprocess(Section):
    """Changes to the weights' own preprocessing, and the views of an image."""

    like: str | None = None
    """take over the preprocessing of this torchvision weights entry, e.g. ResNet50_Weights.IMAGENET1K_V2"""
    resize: int | None = Field(None, ge=1)
    """length of the shorter side after resizing, pixels"""
    crop: int | None = Field(None, ge=1)
    """side of the centre crop, pixels"""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] | None = None
    """filter of the resize"""
    mean: tuple[float, float, float] | None = Field(None, strict=False)
    """subtracted from each channel, in units of 0 to 1"""
    std: tuple[Positive, Positive, Positive] | None = Field(None, strict=False)
    """each channel is divided by this"""
    views: tuple[Literal["flip", "five-crop"], ...] = Field((), strict=False)
    """flip: the image and its mirror image; five-crop: four corners and the centre; both: all ten"""
    store_views: Literal["averaged", "separate"] = "averaged"
    """one column of the mean over the views, or a column for each: layer4:avg@flip"""
    decode: Literal["exact", "fast", "nvjpeg"] | None = None
    """fast: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size where its shorter side stays twice resize or longer;
    nvjpeg: JPEG files are decoded, and all images resized, on the CUDA device"""

    def changes(self) -> dict[str, Any]:
        """Give the steps that differ from the weights' own."""
        return self.model_dump(exclude={"like", "views", "store_views"}, exclude_none=True)


class Compute(Section):
    """How it is computed; nothing here changes a feature but precision."""

    device: Device = "auto"
    """auto, cpu, cuda, cuda:N, cuda:all, or a list, a process for each; one that is not there is an error"""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """arithmetic of the forward pass; part of the contract. auto: as the set has it; else bf16 where it is native
    and gives the features of fp32 (cosine 0.999 on 8 images)"""
    compilation: Literal["auto", "always", "never"] = "auto"
    """compile the forward pass on a CPU; auto: where it was before, or so many images wait that it pays"""
    batch_size: int | None = Field(None, ge=1, le=65_536)
    """images a forward pass; by default the fastest here, once a large run has found it, else 64 on CUDA, 4 on a CPU"""
    threads: int | None = Field(None, ge=0, le=1024)
    """decoding threads; the number of cores by default, with nvjpeg 4 times that from 32 to 128; 0 decodes in line"""
    max_pixels: int = Field(89_478_485, ge=1)
    """images with more pixels are refused before they are decoded"""


class Labels(Section):
    """What each image is."""

    csv: Annotated[ConfigPath | None, Field(strict=False)] = None
    """file with columns path (or id), label and optionally split, group; without it labels come from folder names"""
    layout: Literal["split/label", "label"] = "split/label"
    """meaning of the folders: train/ants/1.jpg, or ants/1.jpg"""
    unknown: Literal["error", "skip"] = "error"
    """what to do with labels of images that the store does not hold"""
    missing: Literal["error", "skip"] = "error"
    """what to do with images without a label"""
    columns: tuple[str, ...] = Field(("label",), strict=False, min_length=1)
    """columns of the file that hold labels: one of classes or of numbers, or several that say yes or no"""

    @model_validator(mode="after")
    def _columns_of_a_file(self) -> Self:
        if self.csv is None and "columns" in self.model_fields_set:
            raise ValueError("columns are those of a file; name it (csv), or leave columns out")
        return self


class Split(Section):
    """Which images are held out."""

    by: Literal["given", "hash"] = "given"
    """given: by the split folders or the CSV's split column; hash: by the image id, or group, for ever"""
    held_out: float = Field(0.2, gt=0, lt=1)
    """share held out by hash"""


class Steps(Section):
    """What is done to the features before a model, in this order; of lists, every combination is tried."""

    signed_sqrt: OneOrMore[bool] = (False,)
    """sign(x) * sqrt(|x|) of each feature"""
    l2_norm: OneOrMore[bool] = (False,)
    """divide each image's features by their length"""
    scale: OneOrMore[Literal["standard", "none"]] = ("standard",)
    """standard: zero mean and unit variance over a fold's training rows; none"""
    pca: OneOrMore[Count] = (0,)
    """principal components of a fold's training rows to keep; 0: all features as they are"""
    whiten: OneOrMore[bool] = (False,)
    """scale components to unit variance"""

    @model_validator(mode="after")
    def _whitens_components(self) -> Self:
        if any(self.whiten) and not any(self.pca):
            raise ValueError("whiten needs principal components; set pca, or leave it out")
        return self


class Train(Section):
    """What is tried on the features."""

    name: str = Field("default", pattern=r"^\w[\w.-]{0,127}$")
    """name under which the bundle is kept in the store"""
    version: int | str | None = Field(None, union_mode="left_to_right")
    """version or tag of the set to learn from; the latest by default"""
    task: Literal["classification", "multilabel", "regression"] = "classification"
    """what labels are: a class; several columns of a CSV that say yes or no; or a column of numbers"""
    layers: tuple[str | Joined, ...] = Field((), strict=False)
    """layers tried one by one, ["a", "b"] in a list of its own being joined; every column by default"""
    models: tuple[AnyModelName, ...] | None = Field(None, strict=False, min_length=1)
    """models tried on each; all of the task by default"""
    folds: int = Field(5, ge=2, le=100)
    """cross-validation folds on the training rows"""
    metric: MetricName | None = None
    """what the cross-validation chooses by; accuracy, of labels macro_f1, of numbers rmse by default"""
    repeats: int = Field(1, ge=1, le=100)
    """divisions into folds; each score is the mean over all"""
    outer_folds: OuterFolds = 0
    """folds of a nested cross-validation of the whole search, an unbiased score at that many times the time; 0: none"""
    halving: Literal["auto", "always", "never"] = "auto"
    """drop settings that are behind on the first folds (never by log_loss or with calibration curves); auto: in grids
    of more than 24"""
    calibration: Literal["auto", "sigmoid", "isotonic"] = "auto"
    """curves from scores to probabilities; auto: one temperature for models that have none, others keep their own"""
    class_weight: Literal["none", "balanced"] = "none"
    """balanced weighs classes alike, none rows"""
    grids: dict[AnyModelName, Grid] = Field({}, strict=False)
    """values of a model's main setting to try instead of its own grid, or of several settings by name, by model"""
    steps: Steps = Steps()
    """preprocessing before each model"""
    seed: int = Field(0, ge=0, lt=2**32)
    """seed of folds and models"""
    memory: Annotated[int | None, BeforeValidator(parse_bytes)] = None
    """what training may add to the process's memory at its peak, "512 MiB" or bytes; more is trained out of core"""
    save: Literal["best", "all"] = "best"
    """bundles kept"""
    report: bool = True
    """write report.html beside the bundle"""

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        check_choices(self.task, models=self.models or (), grids=self.grids, metric=self.metric)
        if self.task == "regression" and self.class_weight != "none":
            raise ValueError("class_weight: a regression has no classes to weigh")
        if self.task != "classification" and self.calibration != "auto":
            raise ValueError("calibration: curves are for classification alone")
        return self


class Sweep(Section):
    """How a sweep goes over what ``train`` lists."""

    keep: int = Field(0, ge=0)
    """layers that go on to the costly models, the first of the quick pass; 0: all"""
    out: Annotated[ConfigPath | None, Field(strict=False)] = None
    """folder of the leaderboard; by default in the store, under sweeps/NAME/"""


class ExtractConfig(Section):
    """What ``icecore extract`` reads; ``train``, ``labels``, ``split``, ``sweep``, ``retrain`` may stand beside."""

    store: Annotated[ConfigPath, Field(strict=False)]
    """folder of the feature store"""
    set: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
    """name of the feature set"""
    source: Source
    backbone: Backbone
    preprocess: Preprocess = Preprocess()
    compute: Compute = Compute()
    watch: Watch = Watch()
    hooks: Hooks = Hooks()
    drift: DriftConfig | None = None
    labels: Labels | None = None
    split: Split | None = None
    train: Train | None = None
    sweep: Sweep | None = None
    finetune: Finetune | None = None
    retrain: Retrain | None = None


class TrainConfig(Section):
    """What ``icecore train``, ``sweep`` and ``retrain`` read; the sections of ``extract`` may stand beside."""

    store: Annotated[ConfigPath, Field(strict=False)]
    """folder of the feature store"""
    set: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")
    """name of the feature set"""
    labels: Labels = Labels()
    split: Split = Split()
    train: Train = Train()
    sweep: Sweep = Sweep()
    retrain: Retrain = Retrain()
    source: Source | None = None
    backbone: Backbone | None = None
    preprocess: Preprocess | None = None
    compute: Compute | None = None
    watch: Watch = Watch()
    hooks: Hooks = Hooks()
    finetune: Finetune | None = None
    drift: DriftConfig | None = None

    @model_validator(mode="after")
    def _has_labels_for_the_task(self) -> Self:
        self.retrain.check_task(self.train.task)
        if self.train.task != "classification" and self.labels.csv is None:
            raise ValueError(f"folders give classes alone; name the CSV of a {self.train.task} in labels.csv")
        if self.train.task != "multilabel" and len(self.labels.columns) > 1:
            raise ValueError(
                f"labels.columns: a {self.train.task} has one column, found {len(self.labels.columns)}; "
                'set train.task = "multilabel" for several'
            )
        return self


class FinetuneConfig(TrainConfig):
    """What ``icecore finetune`` reads: all sections, those of ``extract`` among them."""

    source: Source
    backbone: Backbone
    preprocess: Preprocess = Preprocess()
    compute: Compute = Compute()
    watch: Watch = Watch()
    finetune: Finetune = Finetune()

    @model_validator(mode="after")
    def _has_classes(self) -> Self:
        if self.train.task != "classification":
            raise ValueError(f"train.task: fine-tuning learns classes, not a {self.train.task}")
        if isinstance(self.compute.device, tuple) or self.compute.device == "cuda:all":
            raise ValueError("compute.device: fine-tuning runs on one device")
        return self
