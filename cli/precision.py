"""``icecore doctor --precision``: what lower precisions do to the features of a config, and to a classifier on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .app import progress_bar
from .exits import Exit, Outcome
from .table import counted, table

if TYPE_CHECKING:
    from icecore.extract import Comparison
    from icecore.train import Probe

    from .config import ExtractConfig

__all__ = ["compare"]


def compare(path: Path, overrides: Sequence[str], images: int) -> Outcome:
    """Compute a sample of a config's images in every precision of its device, and tell what differs."""
    from icecore.extract import compare_precisions, load_backbone
    from icecore.extract.layers import columns_for, resolve_layers

    from .config import ExtractConfig, load_config
    from .extract import local_path, scan_of_config

    config = load_config(ExtractConfig, path, overrides)
    chosen, compute = config.backbone, config.compute
    backbone = load_backbone(
        chosen.name,
        local_path(chosen.weights, path.parent),
        preprocess=config.preprocess.like,
        preprocess_changes=config.preprocess.changes(),
        arguments=chosen.arguments,
        views=config.preprocess.views if config.preprocess.store_views == "averaged" else (),
    )
    names = resolve_layers(backbone.layers, chosen.layers, backbone=backbone.name)
    backbone.require(names)
    with progress_bar("forward", unit=" passes") as progress:
        comparison = compare_precisions(
            backbone,
            columns_for(backbone.layers, names, chosen.pooling, dtype=chosen.dtype),
            scan_of_config(config.source),
            images=images,
            device=compute.device,
            batch_size=compute.batch_size,
            compilation=compute.compilation,
            max_pixels=compute.max_pixels,
            progress=progress,
        )
    probes, why = _probes(config, comparison)
    return Outcome(Exit.DONE, _facts(comparison, probes, why), _text(comparison, probes, why))


def _probes(config: ExtractConfig, comparison: Comparison) -> tuple[dict[str, Probe], str]:
    """Give a probe of each column, by its name; or none, and why."""
    from icecore.train import (
        GivenSplit,
        HashSplit,
        LabelError,
        SplitError,
        labels_from_csv,
        labels_from_folders,
        probe_features,
    )

    from .config import Labels, Split

    given, split = config.labels or Labels(), config.split or Split()
    rule = GivenSplit() if split.by == "given" else HashSplit(split.held_out)
    found: dict[str, Probe] = {}
    if config.train is not None and config.train.task != "classification":
        return {}, f"the labels of a {config.train.task} are no classes"
    try:
        if given.csv:
            labels = labels_from_csv(given.csv, columns=given.columns)
        else:
            labels = labels_from_folders(comparison.ids, layout=given.layout)
        for column in comparison.computed[0].features:
            features = {computed.precision: computed.features[column] for computed in comparison.computed}
            probe = probe_features(features, comparison.ids, labels, rule)
            if probe is None:
                return {}, "too few labelled images to learn from: draw more with --images"
            found[column.name] = probe
    except (LabelError, SplitError) as exc:
        return {}, str(exc)
    return found, ""


def _facts(comparison: Comparison, probes: dict[str, Probe], why: str) -> dict[str, Any]:
    precisions = []
    for computed in comparison.computed:
        columns = {}
        for column, found in computed.agreement.items():
            columns[column.name] = {"worst": found.worst, "median": found.median, "worst_image": found.worst_image}
            if probe := probes.get(column.name):
                p = computed.precision
                columns[column.name] |= {
                    "right": probe.right[p],
                    "judged": probe.judged,
                    "differing": probe.differing[p],
                }
        speed = {"images_per_second": round(computed.images_per_second, 2), "engine": computed.engine}
        precisions.append({"precision": computed.precision, **speed, "worst": computed.worst, "columns": columns})
    return {
        "images": len(comparison.ids),
        "unreadable": comparison.unreadable,
        "device": comparison.device,
        "batch_size": comparison.batch_size,
        "judged": next((probe.how for probe in probes.values()), None),
        "why_not_judged": why,
        "precisions": precisions,
    }


def _text(comparison: Comparison, probes: dict[str, Probe], why: str) -> str:
    from icecore.extract.precision import LEAST_COSINE

    rows = []
    for computed in comparison.computed:
        for column, found in computed.agreement.items():
            probe = probes.get(column.name)
            judged = [f"{probe.accuracy(computed.precision):.4f}", probe.differing[computed.precision]] if probe else []
            speed = f"{computed.images_per_second:.1f}"
            rows.append([computed.precision, column.name, f"{found.worst:.6f}", f"{found.median:.6f}", speed, *judged])
    header = ["precision", "column", "worst cosine", "median", "images/s"]
    header += ["accuracy", "labelled otherwise"] if probes else []
    drawn = f"{counted(len(comparison.ids), 'image')} on {comparison.device}, batches of {comparison.batch_size}"
    lines = [drawn + (f"; {comparison.unreadable:,} more cannot be read" if comparison.unreadable else ""), ""]
    lines += [table(header, rows), ""]
    for computed in comparison.computed[1:]:
        enough = computed.worst >= LEAST_COSINE
        told = "as good as fp32" if enough else f"not what fp32 gives: expected {LEAST_COSINE} or more of every image"
        lines.append(f"{computed.precision}: cosine {computed.worst:.6f} at worst, {told}")
    if probes:
        probe = next(iter(probes.values()))
        lines.append(f"accuracy of a logistic regression (C = 1), {probe.how}, on {counted(probe.judged, 'image')}")
    else:
        lines.append(f"no accuracy: {why}")
    return "\n".join(lines)
