"""The gate: numbers of a challenger and a champion in, a verdict out. Nothing is read, trained or promoted here.

Each rule tells its numbers. A promotion needs all of them; which of two models is better is one of several.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .errors import TrainError
from .metrics import LOSSES, sign_of

__all__ = ["ClassRecall", "GateLimits", "GateNumbers", "Rule", "Verdict", "judge"]

Decision = Literal["promote", "keep", "undecided"]


@dataclass(frozen=True)
class GateLimits:
    """What a challenger must fulfil; None leaves a rule out."""

    min_gain: float = 0.0
    """what its score must lie above the champion's, in the unit of the metric; of a loss, below"""
    level: float = 0.05
    """how likely the gain may be where the challenger is no better: one-sided, above 0 and below 1"""
    max_class_drop: float | None = 0.05
    """most that the recall of a class may fall, 0 to 1"""
    class_rows: int = 20
    """held-out rows that a class must have for that rule to look at it"""
    min_rows: int = 50
    """held-out rows that a comparison needs"""
    max_calibration_error: float | None = None
    """most expected calibration error of the challenger, 0 to 1; for classes"""
    max_champion_drop: float | None = 0.05
    """most that the champion's score may have fallen, on the held-out rows that it was promoted with, since then; a
    share of it for errors in the unit of the target (``rmse``, ``mae``) and for ``log_loss``"""
    max_latency_ms: float | None = None
    """most milliseconds an image that the challenger takes, from features to outputs"""
    max_megabytes: float | None = None
    """most size of the challenger's model files, in 10**6 bytes"""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise TrainError(f"gate: level lies above 0 and below 1, found {self.level}")
        for name in ("max_class_drop", "max_calibration_error"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise TrainError(f"gate: {name} lies from 0 to 1, found {value}")
        for name in ("min_gain", "class_rows", "min_rows", "max_champion_drop", "max_latency_ms", "max_megabytes"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise TrainError(f"gate: {name} is not below 0, found {value}")


@dataclass(frozen=True)
class ClassRecall:
    """How a class fares under both models."""

    rows: int
    """held-out rows of the class"""
    champion: float
    """part of them that the champion finds"""
    challenger: float
    """part of them that the challenger finds"""


@dataclass(frozen=True)
class GateNumbers:
    """What was measured, on the same held-out rows for both."""

    metric: str
    """what is compared"""
    rows: int
    """held-out rows of the comparison"""
    challenger: float | None
    """the challenger's score; None where it is undefined"""
    champion: float | None
    """the champion's; of a first model, that of the baseline that knows no features"""
    p_value: float | None
    """how likely so large a gain is where the challenger is no better, one-sided; None where that is undefined"""
    test: str
    """how that was found, in words"""
    is_first: bool = False
    """whether there is no champion, so that the baseline stands for it"""
    classes: Mapping[str, ClassRecall] = field(default_factory=dict)
    """classes, or labels, that both models know"""
    calibration_error: float | None = None
    """of the challenger; None where it has no class probabilities"""
    champion_then: float | None = None
    """the champion's score when it was promoted; None where nothing is recorded"""
    champion_now: float | None = None
    """its score now, on those of the same rows that are still there"""
    champion_rows: int = 0
    """how many these are"""
    relabelled: int = 0
    """those of them that have another label now"""
    latency_ms: float | None = None
    """milliseconds an image that the challenger takes"""
    megabytes: float | None = None
    """size of its model files, 10**6 bytes"""

    @property
    def gain(self) -> float | None:
        """What the challenger has more, larger is better; None where a score is undefined."""
        if self.challenger is None or self.champion is None:
            return None
        return sign_of(self.metric) * (self.challenger - self.champion)

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {**asdict(self), "gain": self.gain}


@dataclass(frozen=True)
class Rule:
    """One rule, applied."""

    name: str
    """its key in the config"""
    passed: bool
    """whether the challenger may be promoted as far as this rule goes"""
    told: str
    """its numbers, in words"""


@dataclass(frozen=True)
class Verdict:
    """What the gate says."""

    decision: Decision
    """promote; keep the champion; or undecided, where the held-out rows themselves are doubtful"""
    rules: tuple[Rule, ...]
    """every rule that was applied"""
    why: str
    """the decision in a line"""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return asdict(self)


def judge(limits: GateLimits, numbers: GateNumbers) -> Verdict:
    """Decide whether a challenger replaces the champion.

    A first model is held against the baseline, which it must beat beyond chance, and against the rules that need no
    champion.
    """
    suspicion = list(_champion_drop(limits, numbers))
    rules = (*suspicion, *_comparison(limits, numbers), *_challenger_alone(limits, numbers))
    failed = [rule for rule in rules if not rule.passed]
    if any(not rule.passed for rule in suspicion):
        return Verdict("undecided", rules, suspicion[0].told)
    if failed:
        return Verdict("keep", rules, "; ".join(f"{rule.name}: {rule.told}" for rule in failed))
    opponent = "the baseline" if numbers.is_first else "the champion"
    return Verdict("promote", rules, f"better than {opponent}: {_comparison_text(numbers)}")


def _comparison(limits: GateLimits, numbers: GateNumbers) -> Iterator[Rule]:
    yield Rule(
        "min_rows",
        numbers.rows >= limits.min_rows,
        f"{numbers.rows:,} held-out rows, at least {limits.min_rows:,} needed",
    )
    gain = numbers.gain
    # a first model has no champion to gain on: beyond chance above the baseline is enough
    wanted = 0.0 if numbers.is_first else limits.min_gain
    yield Rule(
        "min_gain",
        gain is not None and round(gain, 12) >= wanted and gain > 0,
        f"{_comparison_text(numbers)}, at least {wanted:+.4g} and above 0 needed",
    )
    p = numbers.p_value
    yield Rule(
        "level",
        p is not None and p <= limits.level,
        f"{numbers.test}: p = {'undefined' if p is None else f'{p:.3g}'}, at most {limits.level:g} allowed",
    )
    if limits.max_class_drop is not None and numbers.classes:
        yield _class_drop(limits.max_class_drop, limits.class_rows, numbers)


def _comparison_text(numbers: GateNumbers) -> str:
    ours, theirs, gain = numbers.challenger, numbers.champion, numbers.gain
    opponent = "baseline" if numbers.is_first else "champion"
    if gain is None:
        return f"{numbers.metric} is undefined on these rows"
    less = " (less is better)" if numbers.metric in LOSSES else ""
    return f"{numbers.metric} {ours:.4f} against the {opponent}'s {theirs:.4f}{less}, gain {gain:+.4f}"


def _class_drop(limit: float, least: int, numbers: GateNumbers) -> Rule:
    judged = {label: each for label, each in numbers.classes.items() if each.rows >= least}
    few = len(numbers.classes) - len(judged)
    unjudged = f"; {few} with fewer than {least} held-out rows not judged" if few else ""
    if not judged:
        return Rule("max_class_drop", passed=True, told=f"no class has {least} held-out rows: not judged")
    fallen = {
        label: each for label, each in judged.items() if round(each.champion - each.challenger, 12) > limit
    } or dict([max(judged.items(), key=lambda item: item[1].champion - item[1].challenger)])
    told = ", ".join(
        f"{label!r} recall {each.champion:.4f} to {each.challenger:.4f} ({each.rows} rows)"
        for label, each in sorted(fallen.items())
    )
    worst = max(round(each.champion - each.challenger, 12) for each in judged.values())
    return Rule("max_class_drop", worst <= limit, f"{told}, a fall of at most {limit:g} allowed{unjudged}")


def _challenger_alone(limits: GateLimits, numbers: GateNumbers) -> Iterator[Rule]:
    rules = (
        ("max_calibration_error", limits.max_calibration_error, numbers.calibration_error, "calibration error", ""),
        ("max_latency_ms", limits.max_latency_ms, numbers.latency_ms, "time", " ms an image"),
        ("max_megabytes", limits.max_megabytes, numbers.megabytes, "size", " MB"),
    )
    for name, limit, value, what, unit in rules:
        if limit is not None and value is None:
            yield Rule(name, passed=False, told=f"{what}: not defined for this model; leave the rule out")
        elif limit is not None and value is not None:
            yield Rule(name, value <= limit, f"{what} {value:.4g}{unit}, at most {limit:g}{unit} allowed")


def _champion_drop(limits: GateLimits, numbers: GateNumbers) -> Iterator[Rule]:
    then, now, limit = numbers.champion_then, numbers.champion_now, limits.max_champion_drop
    if limit is None or then is None or now is None:
        return
    drop = sign_of(numbers.metric) * (then - now)
    if numbers.metric in {"rmse", "mae", "log_loss"}:
        drop /= max(abs(then), 1e-12)
    suspicious = round(drop, 12) > limit
    told = (
        f"the champion's own {numbers.metric} on {numbers.champion_rows:,} held-out rows of its promotion was "
        f"{then:.4f} and is {now:.4f} now; {numbers.relabelled:,} of them have another label"
    )
    cure = "; look at these labels, and at the features of these images, before any model is compared on them"
    yield Rule("max_champion_drop", not suspicious, told + (cure if suspicious else f", a fall of {limit:g} allowed"))
