"""The table of rules that say whether to fine-tune, with their thresholds and their sources.

The first rule that applies decides. Sources: Yosinski, Clune, Bengio and Lipson, "How transferable are features in deep
neural networks?", NeurIPS 2014; Kornblith, Shlens and Le, "Do better ImageNet models transfer better?", CVPR 2019;
Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022; Evci et
al., "Head2Toe", ICML 2022; Hestness et al., "Deep learning scaling is predictable, empirically", arXiv 1712.00409; the
notes on transfer learning of Stanford's course CS231n. Thresholds that none of them gives are ours, and say so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .advice_facts import Facts, expected_gain
from .distance import USUAL

__all__ = ["FEW", "LEAST_A_CLASS", "RULES", "Action", "Rule"]

Action = Literal["keep frozen", "tune the last blocks", "tune all", "gather data"]

LEAST_A_CLASS = 10
"""Training images of a class below which nothing is sure: two a fold of five. Ours."""
FEW = 1_000
"""Training images that are few. VTAB-1k gives 1,000 a task, and there frozen features of several layers match
fine-tuning on average (Evci et al. 2022)."""
FAR = 3 * USUAL
"""Share of unseen images that lie far from the training images, from which the training images do not cover them:
three times the usual one. Ours."""
SURE = 0.01
"""Largest p value at which the share of far images is no chance. Ours."""
SHOWABLE = 12
"""Errors on held-out images below which even half of them put right would not show: McNemar's exact test needs six
images that one side alone gets right (p = 0.03); five give 0.06."""
BLIND = 0.1
"""Part of the way from the majority class's score to 1 below which features tell next to nothing. Ours."""
RISING = 0.02
"""Gain expected of twice the images at which the learning curve still rises. Ours."""
BY_HEART = 0.1
"""Score on the training images above the cross-validated one, from which the classifier knows them by heart. Ours."""


@dataclass(frozen=True)
class Rule:
    """One line of the table."""

    name: str
    """what it is called"""
    action: Action | None
    """what it advises; None where it only warns"""
    applies: Callable[[Facts], bool]
    """whether it has a say"""
    because: Callable[[Facts], str]
    """its reason in a sentence, with the facts"""
    source: str
    """where it comes from"""


def _is_few(facts: Facts) -> bool:
    return facts.n_train < FEW


def _is_rising(facts: Facts) -> bool:
    gain = expected_gain(facts.learning)
    return gain is not None and gain >= RISING


def _is_far(facts: Facts) -> bool:
    distance = facts.distance
    return distance is not None and distance.share >= FAR and distance.p_value <= SURE


def _errors(facts: Facts) -> float:
    return (1 - facts.score) * facts.n_held_out


def _told_far(facts: Facts) -> str:
    assert facts.distance is not None
    return (
        f"{facts.distance.share:.0%} of the held-out images lie farther from every training image than "
        f"{1 - USUAL:.0%} of these lie from each other: the training images do not cover what the model will see. "
        "Label some like them; until then frozen features lose less there than tuned ones"
    )


def _told_size(facts: Facts) -> str:
    return f"{facts.n_train:,} training images of {facts.n_classes} classes"


def _told_layer(facts: Facts) -> str:
    winner, last = facts.layers[facts.winner], facts.layers[-1]
    if len(facts.layers) == 1:
        return f"{winner.name} is the only layer looked at, so that nothing tells how far the task is from the source"
    if facts.winner == len(facts.layers) - 1:
        return f"{winner.name}, the last layer, is the best: the task is close to what the network was made for"
    gap = f"{100 * (winner.score - last.score):.1f} points"
    if facts.is_early:
        return (
            f"{winner.name} is better than the last layer {last.name} by {gap} (p = {winner.p_value:.2g}): the task is "
            "far from what the network was made for"
        )
    return (
        f"{winner.name} leads the last layer {last.name} by {gap}, which may be chance: the task is close to the source"
    )


RULES: tuple[Rule, ...] = (
    Rule(
        "tiny class",
        "gather data",
        lambda f: f.smallest[1] < LEAST_A_CLASS,
        lambda f: f"class {f.smallest[0]!r} has {f.smallest[1]} training images: no score of it can be trusted",
        "ours: two images a fold",
    ),
    Rule("uncovered", "gather data", _is_far, _told_far, "Kumar et al. 2022: tuning gains 2 points on images like the "
         "training ones and loses 7 on shifted ones, on average over ten sets"),
    Rule(
        "nothing to show",
        "keep frozen",
        lambda f: _errors(f) < SHOWABLE,
        lambda f: (
            f"at a cross-validated accuracy of {f.score:.1%} some {_errors(f):.0f} of {f.n_held_out:,} held-out images "
            "are called wrong: even if tuning put half of them right, these images could not show it"
        ),
        "McNemar 1947",
    ),
    Rule(
        "blind, few images",
        "gather data",
        lambda f: f.reach < BLIND and _is_few(f),
        lambda f: (
            f"the frozen features tell next to nothing ({f.score:.1%}, majority class {f.majority:.1%}), and "
            f"{_told_size(f)} are too few to learn new ones: look at the labels first"
        ),
        "Kornblith et al. 2019: ImageNet features hardly help on some fine-grained sets",
    ),
    Rule(
        "blind, many images",
        "tune all",
        lambda f: f.reach < BLIND and not _is_few(f),
        lambda f: (
            f"the frozen features tell next to nothing ({f.score:.1%}, majority class {f.majority:.1%}): look at the "
            "labels first; if they are right, the network has to learn other features"
        ),
        "Kornblith et al. 2019",
    ),
    Rule(
        "still rising",
        "gather data",
        lambda f: _is_few(f) and _is_rising(f),
        lambda f: (
            f"twice the {f.n_train:,} training images would bring some "
            f"{100 * (expected_gain(f.learning) or 0):.1f} points by the learning curve, and cost labels instead of "
            "GPU hours"
        ),
        "Hestness et al. 2017: the error falls as a power of the number of images",
    ),
    Rule(
        "few and close",
        "keep frozen",
        lambda f: _is_few(f) and not f.is_early,
        lambda f: f"{_told_size(f)} are few, and a tuned network would overfit them; {_told_layer(f)}",
        "CS231n, case 1: small and similar",
    ),
    Rule(
        "few and far",
        "keep frozen",
        lambda f: _is_few(f) and f.is_early,
        lambda f: f"{_told_size(f)} are few; {_told_layer(f)}. Take earlier layers, or several joined, instead",
        "CS231n, case 3: small and different; Evci et al. 2022: frozen layers match fine-tuning on 1,000 images",
    ),
    Rule(
        "many and close",
        "tune the last blocks",
        lambda f: not _is_few(f) and not f.is_early,
        lambda f: f"{_told_size(f)} are enough to tune; {_told_layer(f)}, and its early layers are general",
        "CS231n, case 2: large and similar; Yosinski et al. 2014: early layers are general, late ones specific",
    ),
    Rule(
        "many and far",
        "tune all",
        lambda f: not _is_few(f) and f.is_early,
        lambda f: f"{_told_size(f)} are enough to tune; {_told_layer(f)}",
        "CS231n, case 4: large and different; Yosinski et al. 2014: features transfer the worse, the farther the task",
    ),
    Rule(
        "by heart",
        None,
        lambda f: f.training_score - f.score >= BY_HEART,
        lambda f: (
            f"the classifier gets {f.training_score:.1%} of its training images right and {f.score:.1%} out of fold: "
            "it knows them by heart, and a tuned network has far more to know them by; augment, and stop early"
        ),
        "CS231n: overfitting is the concern on small sets",
    ),
    Rule(
        "one layer",
        None,
        lambda f: len(f.layers) == 1,
        lambda f: "one layer is looked at: with earlier ones beside it their order tells how far the task is",
        "Yosinski et al. 2014",
    ),
)  # fmt: skip
"""The table, in order of weight."""
