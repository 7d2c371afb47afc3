"""``icecore advise``: before any GPU hour is spent, whether to fine-tune, and why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .app import command as make_command
from .app import echo
from .exits import Exit, Outcome
from .options import config_argument, set_option
from .table import one_line, table
from .train import as_of, number, search_options

if TYPE_CHECKING:
    from icecore.train import Advice, Facts

    from .config import TrainConfig

__all__ = ["advise_from_config", "command"]


@make_command(example="icecore advise experiment.toml --set 'train.layers=[\"layer*\"]'", reads_only=True)
@config_argument
@set_option
def advise(config: Path, overrides: tuple[str, ...]) -> Outcome:
    """Say whether to fine-tune the backbone of CONFIG, the last blocks or all of it, or to gather more data.

    It looks at the stored features of the frozen backbone: their cross-validated scores by layer, the learning curve,
    and how far held-out images lie from the training ones. No held-out label is looked at.
    """
    from .config import TrainConfig, load_config

    advice = advise_from_config(load_config(TrainConfig, config, overrides))
    return Outcome(Exit.DONE, advice.to_json(), "\n".join(_lines(advice)))


def advise_from_config(config: TrainConfig) -> Advice:
    """Measure the features that a config describes, and give the advice of the rules."""
    from icecore.store import FeatureStore
    from icecore.train import advise, measure_facts

    from .config import ConfigError

    train = config.train
    if train.task != "classification":
        raise ConfigError([f"train.task: advice is for classes, found {train.task!r}"])
    if train.memory is not None:
        raise ConfigError(["train.memory: advice is found in memory; leave the limit out"])
    if train.version is not None:
        with FeatureStore.open(config.store) as store:
            as_of(store[config.set], train.version)
    options = search_options(config)
    for name in ("task", "calibration", "name", "report", "images", "config"):
        del options[name]
    return advise(measure_facts(config.store, config.set, layers=train.layers, progress=_say, **options))


def _lines(advice: Advice) -> Iterator[str]:
    facts = advice.facts
    label, count = facts.smallest
    yield _layers(facts)
    yield ""
    yield (
        f"{facts.n_train:,} training images of {facts.n_classes} classes, the fewest {count:,} of {one_line(label)}; "
        f"{facts.n_held_out:,} held out; majority class {number(facts.majority)}"
    )
    curve = ", ".join(f"{number(point.mean)} with {point.rows:,}" for point in facts.learning)
    on_itself = number(facts.training_score)
    yield f"learning curve of the best layer: {curve} training images; on all of these themselves {on_itself}"
    if (far := facts.distance) is not None:
        yield (
            f"{far.share:.1%} of {far.looked_at:,} held-out images lie farther from the training images than 95 % of "
            f"these from each other (5 % would be usual, p = {far.p_value:.2g})"
        )
    yield f"advice: {advice.action}"
    for what, reasons in (("because", advice.reasons), ("though", advice.against), ("mind", advice.warnings)):
        for reason in reasons:
            other = f" would advise: {reason.action}" if what == "though" else ""
            yield f"  {what}: {one_line(reason.text)} [{reason.rule}{other}; {reason.source}]"


def _layers(facts: Facts) -> str:
    rows = [
        [
            layer.name,
            str(layer.n_features),
            number(layer.score),
            "-" if layer.p_value is None else f"{layer.p_value:.2g}",
            "best" if place == facts.winner else "",
        ]
        for place, layer in enumerate(facts.layers)
    ]
    return table(["layer", "features", "cv accuracy", "p, against the last", ""], rows)


def _say(layer: str, accuracy: float) -> None:
    echo(f"{layer}: cv {number(accuracy)}", err=True)


command = advise
