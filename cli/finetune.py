"""``icecore finetune``: unfreeze a part of the backbone, train it on training rows, keep its weights in the store."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .app import command as make_command
from .app import echo
from .exits import Exit, Outcome
from .extract import extract_from_config, local_path, scan_of_config
from .options import OutputFile, config_argument, set_option
from .running import progressed
from .table import counted, one_line, table
from .train import search_options

if TYPE_CHECKING:
    from icecore.extract import Backbone, Epoch, TrainingImage, TuningReport
    from icecore.store import FeatureSet
    from icecore.train import LabelledRows

    from .config import FinetuneConfig

__all__ = ["command", "finetune_from_config"]


@make_command(example="icecore finetune configs/finetune.toml --then-extract")
@config_argument
@set_option
@click.option("--then-extract", is_flag=True, help="Extract the set with the new weights afterwards.")
@click.option("--finish", is_flag=True, help="Train no further: take the best epoch of a run that was cut off.")
@click.option("--again", is_flag=True, help="Train although the same was done before.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained, on what, and how fast; write nothing.")
@click.option(
    "--find-rate", type=OutputFile(), help="Write a plot (.svg, .png) of loss by learning rate; keep nothing else."
)
def finetune(
    config: Path,
    overrides: tuple[str, ...],
    then_extract: bool,
    finish: bool,
    again: bool,
    dry_run: bool,
    find_rate: Path | None,
) -> Outcome:
    """Train the last layers of CONFIG's backbone on the training rows of its split, and keep the weights.

    Held-out images are never opened. Killed and started again, it goes on after the last whole epoch. The features
    stay as they are until `icecore extract` runs with the new weights.
    """
    from .config import ExtractConfig, FinetuneConfig, load_config

    loaded = load_config(FinetuneConfig, config, overrides)
    job = _Job(loaded, config)
    if dry_run:
        return job.plan()
    if find_rate is not None:
        return job.find_rate(find_rate)
    report = finetune_from_config(loaded, config, finish=finish, again=again, job=job)
    tag = _keep_frozen(loaded, report)
    code, data, lines = Exit.DONE, {**_facts(report), "frozen": tag}, _text(report, config)
    lines.append(f"the frozen features stay as {tag}, whatever gc takes away")
    weights = f"backbone.weights={json.dumps(str(report.weights.resolve()))}"
    if then_extract:
        tuned = load_config(ExtractConfig, config, [*overrides, weights])
        extracted = extract_from_config(tuned, config.parent, command=f"icecore finetune {config} --then-extract")
        done = f"{extracted.forwarded:,} forwarded with the new weights; version {extracted.version}"
        lines.append(f"{loaded.set}: {done}")
        data |= {"version": extracted.version, "forwarded": extracted.forwarded}
        code = Exit.SOME_IMAGES_FAILED if extracted.failures or extracted.plan.failed else Exit.DONE
    else:
        lines.append(f"now: icecore extract {shlex.quote(str(config))} --set {shlex.quote(weights)}")
    return Outcome(code, data, "\n".join(lines), nothing_to_do=not (report.is_new or then_extract))


def finetune_from_config(
    config: FinetuneConfig, path: Path, *, job: _Job | None = None, **options: Any
) -> TuningReport:
    """Run the fine-tuning that a config describes; ``path`` is the config's own."""
    from icecore.extract import finetune_backbone

    job = job or _Job(config, path)
    return finetune_backbone(
        config.store,
        config.set,
        job.backbone,
        job.images,
        **job.arguments,
        command=f"icecore finetune {path}",
        progress=_say,
        **options,
    )


def _keep_frozen(config: FinetuneConfig, report: TuningReport) -> str:
    """Tag the version that the tuning began from, so that gc keeps it to compare with; give ``SET@TAG``."""
    from icecore.store import FeatureStore

    name = f"frozen-{report.tuning.weights[:8]}"
    with FeatureStore.open(config.store) as store:
        if name not in store[config.set].tags():
            store[config.set].tag(name, report.tuning.version, command="icecore finetune")
    return f"{config.set}@{name}"


class _Job:
    """A config, made into what ``finetune_backbone`` takes."""

    def __init__(self, config: FinetuneConfig, path: Path) -> None:
        from icecore.extract import TuningOptions
        from icecore.store import FeatureStore
        from icecore.train import fit_head

        self.config, finetune = config, config.finetune
        with FeatureStore.open(config.store) as store:
            features, self.rows = _rows(store[config.set], config)
            self.backbone = _backbone(config, path.parent)
            self.images = _images(self.rows, config)
            self.arguments: dict[str, Any] = {
                "classes": self.rows.classes,
                "options": TuningOptions(**finetune.options()),
                "start_head": lambda X, y: fit_head(
                    X, y, class_weight=finetune.options()["class_weight"], seed=finetune.seed
                ),
                "split_digest": self.rows.split.digest,
                "split": self.rows.split.description,
                "version": features.version,
                "generation": _generation_of(features, self.backbone),
                "device": config.compute.device,
                "threads": config.compute.threads,
                "workers": finetune.workers,
                "max_pixels": config.compute.max_pixels,
            }

    def plan(self) -> Outcome:
        """Say what would be done."""
        from icecore.extract.tuning_opening import prepare_network
        from icecore.extract.tuning_rates import first_epochs, peak_rates

        options = self.arguments["options"]
        _, groups = prepare_network(self.backbone, len(self.rows.classes), options)
        rates, begins = peak_rates(groups, options), first_epochs(groups, options)
        parameters = dict(self.backbone.module.named_parameters())
        sizes = {group.name: sum(parameters[name].numel() for name in group.tensors) for group in groups}
        blocks = [
            {"block": name, "parameters": sizes.get(name), "learning_rate": rate, "from_epoch": begins[name]}
            for name, rate in rates.items()
        ]
        shown = table(
            ["block", "parameters", "peak rate", "from epoch"],
            [
                [name, f"{sizes[name]:,}" if name in sizes else "", f"{rate:.2g}", str(begins[name])]
                for name, rate in rates.items()
            ],
        )
        held_out = len(self.rows.ids) - len(self.images)
        told = (
            f"{counted(len(self.images), 'training image')} in {len(self.rows.classes)} classes; {held_out:,} held out"
        )
        data = {"images": len(self.images), "held_out": held_out, "classes": list(self.rows.classes), "blocks": blocks}
        return Outcome(Exit.DONE, data, f"{shown}\n{told} and never read; nothing was written")

    def find_rate(self, out: Path) -> Outcome:
        """Plot the loss by learning rate."""
        from icecore.extract.rate_finder import find_rate

        from .rate_plot import plot_rates

        recorded = {"split_digest", "split", "version", "generation"}  # of a tuning; nothing is recorded here
        taken = {name: value for name, value in self.arguments.items() if name not in recorded}
        found = find_rate(self.backbone, self.images, **taken)
        plot_rates(found, out)
        data = {"suggested": found.suggested, "rates": found.rates, "losses": found.losses, "plot": str(out)}
        why = "a third of the largest rate at which the loss stays near its lowest"
        told = f"suggested finetune.learning_rate {found.suggested:.1e}, {why}; {out}"
        return Outcome(Exit.DONE, data, told)


def _rows(features: FeatureSet, config: FinetuneConfig) -> tuple[FeatureSet, LabelledRows]:
    """Label and divide the images of the set exactly as ``train`` does."""
    from icecore.train.shared import share_rows

    pinned = features.as_of(features.version if config.train.version is None else config.train.version)
    options = search_options(config)
    layers = config.train.layers or tuple(column.name for column in pinned.columns)
    rows = share_rows(pinned, layers, labels=options["labels"], split=options["split"])
    return pinned, rows


def _backbone(config: FinetuneConfig, folder: Path) -> Backbone:
    from icecore.extract import load_backbone

    backbone = config.backbone
    return load_backbone(
        backbone.name,
        local_path(backbone.weights, folder),
        preprocess=config.preprocess.like,
        preprocess_changes=config.preprocess.changes(),
        arguments=backbone.arguments,
        views=config.preprocess.views if config.preprocess.store_views == "averaged" else (),
    )


def _images(rows: LabelledRows, config: FinetuneConfig) -> list[TrainingImage]:
    """Give the training rows with their files; held-out files are not even looked for."""
    from icecore.extract import TrainingImage

    labels = dict(zip(rows.ids, rows.y.tolist(), strict=True))
    groups = dict(zip(rows.ids, rows.groups, strict=True)) if rows.groups else {}
    wanted = set(rows.train_ids)
    scan = scan_of_config(config.source)
    places = {image.id: image.path for found in scan if (image := scan.image(*found[:4])).id in wanted}
    return [
        TrainingImage(name, places.get(name, scan.root / name), int(labels[name]), groups.get(name, ""))
        for name in rows.train_ids
    ]


def _generation_of(features: FeatureSet, backbone: Backbone) -> str | None:
    """Give the uuid of the generation that readers see, if the backbone is the one that made it."""
    contract = features.contract
    return features.generation if contract == backbone.contract(precision=contract.precision) else None


def _say(epoch: Epoch) -> None:
    head = "before" if epoch.train_loss is None else f"epoch {epoch.epoch}/{epoch.epochs}: loss {epoch.train_loss:.4f},"
    scores = f"validation loss {epoch.validation_loss:.4f}, accuracy {epoch.validation_accuracy:.4f}"
    best = "  best so far" if epoch.is_best else ""
    echo(f"{head} {scores}, {epoch.seconds:.1f} s{best}", err=True)
    progressed(epoch.epoch, epoch.epochs)


def _facts(report: TuningReport) -> dict[str, Any]:
    tuning = report.tuning
    return {
        "weights": str(report.weights),
        "weights_sha256": tuning.weights,
        "is_new": report.is_new,
        "resumed_after": report.resumed_after,
        "set": tuning.set_name,
        "split_digest": tuning.split_digest,
        "seen": len(tuning.seen_ids),
        "skipped": dict(tuning.skipped),
        "trained_parameters": tuning.trained_parameters,
        "best_epoch": tuning.best_epoch,
        "epochs": [dict(epoch) for epoch in tuning.epochs],
        "seconds": round(tuning.seconds, 3),
        "device": tuning.device,
        "keeps_prefix": report.keeps_prefix,
        "config": dict(tuning.config),
    }


def _text(report: TuningReport, config: Path) -> list[str]:
    tuning = report.tuning
    before = tuning.epochs[0]
    best = next(epoch for epoch in tuning.epochs if epoch["epoch"] == tuning.best_epoch)
    if not report.is_new:
        lines = ["nothing to do: the same tuning was done before; --again trains anew"]
    else:
        how = f"the frozen part was {'kept' if report.keeps_prefix else 'run'} for every view"
        whole = f"nothing divided off: {one_line(report.why_whole)}" if report.why_whole else how
        resumed = f" (went on after epoch {report.resumed_after})" if report.resumed_after else ""
        what = f"{tuning.trained_parameters:,} parameters trained on {len(tuning.seen_ids):,} images"
        lines = [f"{what} in {tuning.seconds:.1f} s on {tuning.device}{resumed}; {whole}"]
    loss, accuracy = (f"{before[name]:.4f} -> {best[name]:.4f}" for name in ("validation_loss", "validation_accuracy"))
    lines.append(f"validation: loss {loss}, accuracy {accuracy} in epoch {tuning.best_epoch}")
    if best["validation_accuracy"] <= before["validation_accuracy"]:
        lines.append("  no more validation images are called right than by the frozen network: it may not be worth it")
    lines += [f"  skipped: {one_line(name)}: {one_line(why)}" for name, why in list(tuning.skipped.items())[:20]]
    return [*lines, f"weights {report.weights}"]


command = finetune
