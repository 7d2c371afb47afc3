"""``icecore compare``: two generations, the same classifiers, the same rows -> a verdict and a page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .app import command as make_command
from .app import echo
from .exits import Exit, Outcome
from .options import OutputFile, set_option
from .table import counted, human_bytes, one_line, table
from .train import number, search_options

if TYPE_CHECKING:
    from icecore.train import GenerationComparison, Progress
    from icecore.train.comparison import Side

    from .config import TrainConfig

__all__ = ["command", "compare_from_config"]

MOST_CLASSES = 5
"""Classes that lose, and classes that gain, shown on a terminal; the page has more and the JSON all."""


@make_command(example="icecore compare photos@frozen photos --config experiment.toml")
@click.argument("a", metavar="[A]", required=False)
@click.argument("b", metavar="[B]", required=False)
@click.option(
    "--config", type=click.Path(path_type=Path), help="TOML file with store, labels, split and what to train."
)
@click.option("--store", type=click.Path(path_type=Path), help="Folder of the store.  [default: the config's]")
@click.option(
    "--layer-b",
    "layers_b",
    multiple=True,
    metavar="LAYER",
    help="Layer of B that stands beside the config's, in their order, where the networks differ.",
)
@click.option(
    "--least-gain",
    type=click.FloatRange(min=0),
    default=0.005,
    show_default=True,
    help="Gain that is worth it: of a score from 0 to 1, or a part of A's error.",
)
@click.option("--out", type=OutputFile(), help="HTML page to write.  [default: STORE/comparisons/A-B.html]")
@set_option
def compare(
    a: str | None,
    b: str | None,
    config: Path | None,
    store: Path | None,
    layers_b: tuple[str, ...],
    least_gain: float,
    out: Path | None,
    overrides: tuple[str, ...],
) -> Outcome:
    """Train the same models on two generations, and say whether B is worth it.

    A and B are each a set, SET@VERSION, SET@TAG, or a generation's uuid (6 digits or more); by custom A is frozen and
    B fine-tuned. With one name alone, or none, that or the config's set is B, and A is what it was tuned from.
    Refused where the held-out images of both are not the same, or where a fine-tuning saw one of them.
    """
    from .config import TrainConfig, load_config

    if config is None:
        loaded = _without_config(store, a, overrides)
    else:
        loaded = load_config(TrainConfig, config, overrides)
        loaded = loaded if store is None else loaded.model_copy(update={"store": store})
    result = compare_from_config(loaded, a, b, layers_b=layers_b, least_gain=least_gain, with_page=out is not None)
    if out is None and not loaded.train.report:
        return Outcome(Exit.DONE, {**result.to_json(), "page": None}, _text(result))
    return _with_page(result, loaded.store, out)


def compare_from_config(
    config: TrainConfig,
    a: str | None = None,
    b: str | None = None,
    *,
    layers_b: tuple[str, ...] = (),
    least_gain: float = 0.005,
    with_page: bool = False,
) -> GenerationComparison:
    """Run the comparison of two states by what a config says of labels, split, layers and models."""
    from icecore.train import compare_generations

    from .config import ConfigError

    train = config.train
    if train.memory is not None:
        raise ConfigError(["train.memory: a comparison trains in memory; leave the limit out"])
    if train.report or with_page:
        from icecore.train.report import require_extra

        require_extra()  # before any time is spent
    if a is None:
        a = config.set if train.version is None else f"{config.set}@{train.version}"
    _require_states(config.store, a, b)
    options = search_options(config)
    for name in ("version", "name", "report", "images", "config"):
        del options[name]
    return compare_generations(
        config.store,
        a,
        b,
        layers=train.layers,
        layers_b=layers_b or None,
        least_gain=least_gain,
        progress=_say,
        **options,
    )


def _without_config(store: Path | None, a: str | None, overrides: tuple[str, ...]) -> TrainConfig:
    """Give the defaults for a store: labels and split from folders, all layers, logistic regression."""
    from .config import TrainConfig

    if store is None or a is None:
        raise click.UsageError("name a config (--config), or a store (--store) and what to compare: A B")
    if overrides:
        raise click.UsageError("--set changes a config: name one with --config")
    return TrainConfig.model_validate({"store": str(store), "set": "unnamed"})


def _require_states(store: Path, *names: str | None) -> None:
    """Refuse names that stand for nothing: what the command line says and is not there is an error of usage."""
    from icecore.store import FeatureStore, GenerationNotFoundError, SetNotFoundError, VersionNotFoundError

    with FeatureStore.open(store) as opened:
        for name in names:
            try:
                if name is not None:
                    opened.at(name)
            except (SetNotFoundError, VersionNotFoundError, GenerationNotFoundError) as exc:
                raise click.UsageError(str(exc)) from exc


def _with_page(result: GenerationComparison, store: Path, out: Path | None) -> Outcome:
    """Write the page; where it cannot be written, what was found is told all the same."""
    from icecore.train.compare_page import comparison_path, write_comparison

    path = out or comparison_path(store, result)
    text = _text(result)
    try:
        write_comparison(result, path)
    except OSError as exc:
        told = f"{path}: the page cannot be written there ({exc.strerror}); name another place with --out"
        return Outcome(Exit.FAILED, {**result.to_json(), "page": None}, text, told)
    return Outcome(Exit.DONE, {**result.to_json(), "page": str(path)}, f"{text}\npage {path}")


def _text(result: GenerationComparison) -> str:
    return "\n".join(
        [
            f"A {_described(result.a)}",
            f"B {_described(result.b)}",
            "",
            _pairs(result),
            "",
            *_winners(result),
            *_classes(result),
            *_costs(result),
            *(f"note: {one_line(note)}" for note in result.notes),
            one_line(result.verdict.text),
        ]
    )


def _described(side: Side) -> str:
    tuned = f", fine-tuned {side.tunings[0].created}" if side.tunings else ""
    found = side.provenance
    return f"{side.name}: {found.contract.architecture}, weights {found.contract.weights[:12]}{tuned}"


def _pairs(result: GenerationComparison) -> str:
    from icecore.train.verdict import points, span

    name = result.headline
    header = ["layers", "model", "cv A", "cv B", f"{name} A", f"{name} B", "B - A", "95 % interval", "McNemar"]
    rows = []
    for pair in result.pairs:
        gap, p_value = pair.comparison.gaps[name], pair.comparison.p_value
        rows.append(
            [
                pair.a.inputs if pair.a.inputs == pair.b.inputs else f"{pair.a.inputs} / {pair.b.inputs}",
                pair.a.model,
                number(pair.a.best.mean),
                number(pair.b.best.mean),
                number(getattr(pair.a.evaluation, name)),
                number(getattr(pair.b.evaluation, name)),
                "-" if gap is None else points(gap.difference, name),
                "-" if gap is None else span(gap.interval, name),
                "-" if p_value is None else f"{p_value:.2g}",
            ]
        )
    return table(header, rows)


def _winners(result: GenerationComparison) -> Iterator[str]:
    name = result.headline
    for which, side in (("A", result.a), ("B", result.b)):
        interval = side.intervals[name]
        sure = f" (95 % interval {number(interval[0])} to {number(interval[1])})" if interval else ""
        score = number(getattr(side.winner.evaluation, name))
        yield f"{which}, chosen by cross-validation: {side.winner.model} on {side.winner.inputs}, {name} {score}{sure}"


def _classes(result: GenerationComparison) -> Iterator[str]:
    from icecore.train.verdict import points

    lost = [change for change in result.classes if change.change < 0][:MOST_CLASSES]
    won = [change for change in result.classes[::-1] if change.change > 0][:MOST_CLASSES]
    for what, changes in (("lose", lost), ("gain", won)):
        if changes:
            told = ", ".join(f"{one_line(c.label)} {points(c.change, 'accuracy')} of {c.support}" for c in changes)
            yield f"classes that {what} the most: {told}"


def _costs(result: GenerationComparison) -> Iterator[str]:
    for which, side in (("A", result.a), ("B", result.b)):
        costs = side.costs
        told = [
            f"fine-tuned for {one.seconds:.0f} s, {counted(one.epochs, 'epoch')}, on {counted(one.images, 'image')}"
            for one in costs.tunings
        ]
        told += [
            f"{counted(costs.images, 'image')} extracted",
            f"{human_bytes(costs.bytes)} of features",
            f"{side.winner.n_features} features an image",
            f"trained in {costs.training_seconds:.1f} s",
        ]
        yield f"{which} costs: {'; '.join(told)}"


def _say(side: str, progress: Progress) -> None:
    cell: Any = progress.cell
    if cell is not None:
        score = f"cv {number(cell.best.mean)}, {cell.seconds:.1f} s"
        echo(f"[{progress.done}/{progress.total}] {side}: {progress.model} on {cell.inputs}: {score}", err=True)


command = compare
