"""Whether one generation's features are worth more than another's, in plain words.

The rules: a difference counts when the 95 % interval of the paired bootstrap leaves zero out and, for the accuracy of
images that are not in groups, McNemar's exact test has p of 0.05 at most. Above ``least_gain`` it is worth it, below it
is a small gain; a loss that counts is ``worse``; all else is no gain that so many images can show.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .metrics import sign_of
from .resampling import Comparison, Interval
from .result import LEVEL

__all__ = ["LEAST_GAIN", "Verdict", "judge", "points", "span"]

Word = Literal["worth it", "small gain", "no gain", "worse"]

LEAST_GAIN = 0.005
"""Gain from which a tuning is worth its time where nothing else is asked for: half a point of a score from 0 to 1, or
that part of the first side's error of numbers. Our choice: about what two seeds of one tuning differ by."""
FEWEST = 6
"""Images that one side alone gets right, and none the other way, from which McNemar's exact test has p of 0.05 at most:
five give 0.06."""
_IN_UNITS = frozenset({"rmse", "mae"})
"""Scores in the unit of the numbers that are learned."""
_NAMES = {"macro_f1": "macro F1", "rmse": "RMSE"}


@dataclass(frozen=True)
class Verdict:
    """What the held-out rows say of the second side."""

    word: Word
    """in short"""
    text: str
    """in a sentence"""
    score: str
    """score that it is about"""
    least_gain: float
    """gain that was asked for"""

    def to_json(self) -> dict[str, str | float]:
        """Give plain JSON values."""
        return {"word": self.word, "text": self.text, "score": self.score, "least_gain": self.least_gain}


def judge(
    comparison: Comparison,
    score: str,
    *,
    before: float | None,
    kept: str,
    has_groups: bool = False,
    least_gain: float = LEAST_GAIN,
) -> Verdict:
    """Judge the second side.

    Parameters
    ----------
    comparison
        Of both sides on the held-out rows: its gaps are the second side's scores minus the first one's.
    score
        Score that the verdict is about, such as ``accuracy``.
    before
        The first side's score.
    kept
        What to keep where there is no gain, in words.
    has_groups
        Whether images belong together: McNemar's test, which takes them for independent, has no say then.
    least_gain
        Gain that is worth it: a difference of scores from 0 to 1; of errors in units, a part of ``before``.
    """
    gap, n = comparison.gaps[score], f"{comparison.n:,} held-out images"
    if gap is None:
        told = f"no verdict: {_name(score)} is undefined on these {n}; keep {kept}"
        return Verdict("no gain", told, score, least_gain)
    sign = sign_of(score)
    gain, low, high = sign * gap.difference, *sorted(sign * end for end in gap.interval)
    p_value = comparison.p_value if score == "accuracy" and not has_groups else None
    counts = (low > 0 or high < 0) and (p_value is None or p_value <= LEVEL)
    enough = least_gain * (abs(before or 0.0) if score in _IN_UNITS else 1.0)
    signed = f"{_name(score)} {points(gap.difference, score)}"
    interval = f"95 % interval {span(gap.interval, score)}"
    test = "" if p_value is None else f", McNemar p = {p_value:.2g}"
    facts = f"{signed} ({interval}{test})"
    if counts and gain < 0:
        return Verdict("worse", f"worse: {facts} on {n}; keep {kept}", score, least_gain)
    if counts and gain >= enough:
        return Verdict("worth it", f"worth it: {facts} on {n}", score, least_gain)
    if counts:
        asked = points(enough, score).lstrip("+")
        told = f"a small gain: {facts} on {n}, less than the {asked} asked for; keep {kept}"
        return Verdict("small gain", told, score, least_gain)
    least = max((high - low) / 2, 0.0 if p_value is None else FEWEST / comparison.n)
    blur = points(least, score).lstrip("+")
    told = f"no gain that {n} can show: {facts}; less than some {blur} would not show; keep {kept}"
    return Verdict("no gain", told, score, least_gain)


def points(difference: float, score: str) -> str:
    """Give a difference with its sign: in points where the score goes from 0 to 1, else in its unit."""
    return f"{_signed(difference, score)}{_unit(score)}"


def span(interval: Interval, score: str) -> str:
    """Give an interval of differences: ``-3.0 to +7.0 points``."""
    low, high = (_signed(end, score) for end in interval)
    return f"{low} to {high}{_unit(score)}"


def _signed(difference: float, score: str) -> str:
    if score in _IN_UNITS:
        return f"{difference:+.4g}"
    return f"{difference:+.4f}" if score == "log_loss" else f"{100 * difference:+.1f}"


def _unit(score: str) -> str:
    return "" if score in _IN_UNITS or score == "log_loss" else " points"


def _name(score: str) -> str:
    return _NAMES.get(score, score.replace("_", " "))
