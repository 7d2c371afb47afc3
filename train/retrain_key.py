"""What a retraining depends on, as two keys: of the challenger, and of the decision about it.

Equal inputs have equal keys, so that a scheduler may ask again. Nothing is loaded but the labels' bytes and the digest
of the set.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from icecore.store import FeatureSet
from icecore.store.contract import canonical_json

from .bundle import Bundle, load_bundle, read_card
from .bundle_format import CARD
from .errors import BundleError, LabelError
from .gate import GateLimits
from .labels import FolderLabels, LabelSource
from .plan import CellPlan
from .rows import LabelledRows
from .splits import SplitRule

__all__ = ["FORMAT", "Keys", "find_trained", "keys_of"]

FORMAT = 1
"""Goes up when the same inputs would make another challenger or decision."""


@dataclass(frozen=True)
class Keys:
    """sha256, in hex, of what decides."""

    training: str
    """the challenger: contents of the set, labels, sides, settings"""
    decision: str
    """the decision: these, and the gate"""

    def to_json(self) -> dict[str, str]:
        """Give what the challenger's card says under ``retrain``."""
        return {"training": self.training, "decision": self.decision}


def keys_of(
    features: FeatureSet,
    plan: CellPlan,
    *,
    layers: Sequence[str | Sequence[str]],
    labels: LabelSource | None,
    split: SplitRule | None,
    limits: GateLimits,
    gate_metric: str,
) -> Keys:
    """Give the keys of a retraining of a pinned set.

    Raises
    ------
    LabelError
        When the labels cannot be read.
    """
    training = {
        "format": FORMAT,
        "features": features.digest(),
        "labels": _labels(labels or FolderLabels()),
        "split": None if split is None else [type(split).__name__, asdict(split)],
        "layers": [layer if isinstance(layer, str) else list(layer) for layer in layers],
        "task": plan.task,
        "models": [spec.name for spec in plan.specs],
        "grids": _plain(plan.grids),
        "steps": [steps.to_json() for steps in plan.steps],
        "class_weight": plan.options.class_weight,
        "calibration": plan.options.calibration,
        "folds": plan.folds,
        "repeats": plan.repeats,
        "halving": plan.halving,
        "seed": plan.options.seed,
        "metric": plan.metric,
        "memory": plan.memory,
    }
    key = _sha256(training)
    return Keys(key, _sha256({"format": FORMAT, "training": key, "gate": asdict(limits), "metric": gate_metric}))


def find_trained(folder: Path, key: str, rows: LabelledRows) -> Bundle | None:
    """Give the newest whole bundle that was trained by this key on these rows, or None."""
    for card in sorted(folder.glob(f"*/{CARD}"), reverse=True):
        try:
            found = read_card(card.parent)
            if found.get("retrain", {}).get("training") != key or card.parent.name.startswith("."):
                continue
            if found["rows"]["split_sha256"] == rows.split.digest:
                return load_bundle(card.parent)
        except BundleError:
            continue  # damaged: it is trained anew
    return None


def _labels(source: LabelSource) -> dict[str, Any]:
    if isinstance(source, FolderLabels):
        return {"folders": source.layout}
    try:
        with Path(source.path).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise LabelError(f"{source.path}: cannot read the labels ({exc.strerror or exc})") from exc
    return {"csv": digest, "unknown": source.unknown, "missing": source.missing, "columns": list(source.columns)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()
