"""The gate on models of known quality: how often it is wrong, and that each rule tells its numbers and bites."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from icecore.train import TrainError, task_of
from icecore.train.gate import ClassRecall, GateLimits, GateNumbers, Verdict, judge
from icecore.train.paired import align_outputs, bootstrap_p, calibration_error, class_recalls, gain_test, mcnemar_p
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

DRAWS = 1_000
GOOD = GateNumbers("accuracy", 2_000, challenger=0.90, champion=0.87, p_value=0.01, test="a test")
OPEN = GateLimits(max_class_drop=None, max_champion_drop=None)


def hits(
    rng: np.random.Generator, accuracies: tuple[float, float], n: int, correlation: float, draws: int = DRAWS
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows each of two models calls right, (draws, n): a row's difficulty is shared to the degree of
    ``correlation`` (of two normal variables, cut where the accuracies are met)."""
    shared = rng.normal(size=(draws, n)) * np.sqrt(correlation)
    own = (rng.normal(size=(draws, n)) * np.sqrt(1 - correlation) for _ in accuracies)
    first, second = (shared + each < norm.ppf(p) for each, p in zip(own, accuracies, strict=True))
    return first, second


def verdicts(
    accuracies: tuple[float, float], n: int, correlation: float, *, classes: int = 5, seed: int = 0
) -> list[Verdict]:
    """The whole gate with its default limits, on models of these true accuracies: the challenger's first."""
    rng = np.random.default_rng(seed)
    first, second = hits(rng, accuracies, n, correlation)
    y = np.arange(n) % classes
    found = []
    for ours, theirs in zip(first, second, strict=True):
        recalls = {
            str(i): ClassRecall(int((y == i).sum()), float(theirs[y == i].mean()), float(ours[y == i].mean()))
            for i in range(classes)
        }
        p = mcnemar_p(int((ours & ~theirs).sum()), int((theirs & ~ours).sum()))
        numbers = GateNumbers("accuracy", n, float(ours.mean()), float(theirs.mean()), p, "McNemar", classes=recalls)
        found.append(judge(GateLimits(), numbers))
    return found


def promoted(found: list[Verdict]) -> float:
    return sum(verdict.decision == "promote" for verdict in found) / len(found)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("accuracy", [0.7, 0.9])
def test_of_equal_models_at_most_the_level_is_promoted_over_1000_draws(accuracy: float, correlation: float) -> None:
    assert promoted(verdicts((accuracy, accuracy), 500, correlation)) <= 0.05


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
def test_a_model_truly_3_points_better_is_promoted_in_80_percent_at_2000_rows(correlation: float) -> None:
    """From 0.85 to 0.88: with errors that have nothing in common, the hardest case, and with some that go together."""
    assert promoted(verdicts((0.88, 0.85), 2_000, correlation)) >= 0.8


def test_a_model_truly_2_points_worse_is_next_to_never_promoted() -> None:
    assert promoted(verdicts((0.85, 0.87), 1_000, 0.3)) <= 0.005


class Hits:
    """Rows called right or wrong, as accuracy under any weights."""

    def __init__(self, right: NDArray[np.bool_]) -> None:
        self.right, self.work = right.astype(np.float32), len(right)

    def of(self, weights: NDArray[np.float32]) -> Mapping[str, NDArray[np.float64]]:
        return {"accuracy": np.asarray(weights @ self.right / weights.sum(1), dtype=np.float64)}


@pytest.mark.parametrize("n_groups", [20, 100])
def test_of_equal_models_the_bootstrap_promotes_at_most_the_level_also_where_rows_come_in_groups(n_groups: int) -> None:
    """A group of ten rows is right or wrong nearly as one: tested row by row, equal models would pass far too often."""
    rng, per_group, wrong_by_rows, wrong = np.random.default_rng(1), 10, 0, 0
    names = [str(i) for i in np.repeat(np.arange(n_groups), per_group)]
    for _ in range(DRAWS):
        first, second = (np.repeat(rng.random(n_groups) < 0.8, per_group) for _ in range(2))
        p, _, units = bootstrap_p(Hits(first), Hits(second), len(names), "accuracy", groups=names, resamples=300)
        assert units == n_groups
        wrong += p is not None and p <= 0.05
        only = int((first & ~second).sum()), int((second & ~first).sum())
        wrong_by_rows += mcnemar_p(*only) <= 0.05
    # a bootstrap holds its level by and large, where McNemar's test holds it exactly: no more than chance explains
    assert binomtest(wrong, DRAWS, 0.05, alternative="greater").pvalue > 0.01
    assert wrong_by_rows > 0.15 * DRAWS


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (7, 2), (2, 7), (40, 20)])
def test_mcnemar_is_scipys_binomial_test_one_sided(counts: tuple[int, int]) -> None:
    expected = binomtest(counts[0], sum(counts), alternative="greater").pvalue if sum(counts) else 1.0
    assert mcnemar_p(*counts) == pytest.approx(expected, rel=1e-12)


def test_the_test_that_fits_the_metric_is_taken() -> None:
    rng, task = np.random.default_rng(0), task_of("classification")
    y = rng.integers(0, 3, 300)
    good = np.eye(3)[y] * 0.9 + 0.05 + rng.random((300, 3)) * 0.2
    poor = np.eye(3)[y] * 0.2 + 0.05 + rng.random((300, 3)) * 0.8
    good, poor = (each / each.sum(1, keepdims=True) for each in (good, poor))
    groups = [str(i // 3) for i in range(300)]
    told = {
        (metric, bool(grouped)): gain_test(task, metric, y, good, poor, groups=groups if grouped else None)
        for metric in ("accuracy", "macro_f1", "log_loss")
        for grouped in (False, True)
    }
    assert "McNemar" in told["accuracy", False][1]
    assert all("bootstrap" in text for key, (_, text) in told.items() if key != ("accuracy", False))
    assert all("100 groups" in text for (_, grouped), (_, text) in told.items() if grouped)
    assert all(p is not None and p < 0.01 for p, _ in told.values())
    for metric in ("accuracy", "macro_f1", "log_loss"):
        p, _ = gain_test(task, metric, y, poor, good)
        assert p is not None
        assert p > 0.99


def test_numbers_are_tested_in_their_own_metrics() -> None:
    rng, task = np.random.default_rng(0), task_of("regression")
    y = rng.normal(size=200) * 10
    good, poor = y + rng.normal(size=200), y + rng.normal(size=200) * 3
    for metric in ("rmse", "mae", "r2"):
        p, _ = gain_test(task, metric, y, good, poor)
        back, _ = gain_test(task, metric, y, poor, good)
        assert p is not None
        assert back is not None
        assert (p < 0.01, back > 0.99) == (True, True)
    assert gain_test(task, "r2", np.ones(20), np.ones(20), np.zeros(20))[0] is None, "R2 is undefined there"


def test_two_models_that_are_the_same_are_not_told_apart() -> None:
    y, proba = np.array([0, 1] * 20), np.tile([0.6, 0.4], (40, 1))
    task = task_of("classification")
    for metric in ("accuracy", "log_loss", "macro_f1"):
        assert gain_test(task, metric, y, proba, proba)[0] == 1.0


RULES: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"min_rows": 2_001}, {}, "min_rows", "2,000 held-out rows, at least 2,001 needed"),
    ({"min_gain": 0.031}, {}, "min_gain", r"accuracy 0.9000 against the champion's 0.8700, gain \+0.0300"),
    ({}, {"challenger": 0.87}, "min_gain", r"gain \+0.0000, at least \+0 and above 0 needed"),
    ({}, {"challenger": None}, "min_gain", "accuracy is undefined on these rows"),
    ({"level": 0.005}, {}, "level", "a test: p = 0.01, at most 0.005 allowed"),
    ({}, {"p_value": None}, "level", "a test: p = undefined"),
    (
        {"max_class_drop": 0.05},
        {"classes": {"ants": ClassRecall(50, 0.9, 0.8), "bees": ClassRecall(50, 0.8, 0.9)}},
        "max_class_drop",
        r"'ants' recall 0.9000 to 0.8000 \(50 rows\), a fall of at most 0.05 allowed$",
    ),
    ({"max_calibration_error": 0.05}, {"calibration_error": 0.06}, "max_calibration_error", "0.06, at most 0.05"),
    ({"max_calibration_error": 0.05}, {}, "max_calibration_error", "not defined for this model; leave the rule out"),
    ({"max_latency_ms": 1.0}, {"latency_ms": 1.5}, "max_latency_ms", "time 1.5 ms an image, at most 1 ms an image"),
    ({"max_megabytes": 2.0}, {"megabytes": 2.5}, "max_megabytes", "size 2.5 MB, at most 2 MB"),
]


@pytest.mark.parametrize(("limits", "numbers", "name", "told"), RULES, ids=[rule[2] for rule in RULES])
def test_each_rule_alone_keeps_the_champion_and_tells_its_numbers(
    limits: dict[str, Any], numbers: dict[str, Any], name: str, told: str
) -> None:
    assert judge(OPEN, GOOD).decision == "promote"
    verdict = judge(replace(OPEN, **limits), replace(GOOD, **numbers))
    assert verdict.decision == "keep"
    assert name in [rule.name for rule in verdict.rules if not rule.passed]
    (rule,) = [rule for rule in verdict.rules if rule.name == name]
    assert re.search(told, rule.told), rule.told
    assert rule.told in verdict.why


def test_a_class_of_few_rows_is_not_judged_and_that_is_told() -> None:
    classes = {"ants": ClassRecall(100, 0.9, 0.92), "wasps": ClassRecall(5, 1.0, 0.0)}
    verdict = judge(replace(OPEN, max_class_drop=0.05), replace(GOOD, classes=classes))
    assert verdict.decision == "promote"
    (rule,) = [rule for rule in verdict.rules if rule.name == "max_class_drop"]
    assert rule.told.endswith("; 1 with fewer than 20 held-out rows not judged")


def test_a_loss_gains_where_it_is_less() -> None:
    numbers = replace(GOOD, metric="rmse", challenger=2.0, champion=2.5)
    assert numbers.gain == pytest.approx(0.5)
    assert judge(replace(OPEN, min_gain=0.4), numbers).decision == "promote"
    assert judge(OPEN, replace(numbers, challenger=2.6)).decision == "keep"


def test_a_first_model_needs_to_beat_the_baseline_and_the_rules_without_a_champion() -> None:
    first = replace(GOOD, is_first=True, champion=0.5)
    assert judge(replace(OPEN, min_gain=0.6), first).decision == "promote", "there is no champion to gain 0.6 on"
    assert "better than the baseline" in judge(OPEN, first).why
    assert judge(OPEN, replace(first, p_value=0.2)).decision == "keep"
    assert judge(replace(OPEN, min_rows=3_000), first).decision == "keep"
    assert judge(replace(OPEN, max_megabytes=1.0), replace(first, megabytes=3.0)).decision == "keep"


def test_a_champion_that_fell_on_its_own_rows_leaves_it_undecided_and_names_the_labels() -> None:
    limits = replace(OPEN, max_champion_drop=0.05)
    numbers = replace(GOOD, champion_then=0.92, champion_now=0.80, champion_rows=400, relabelled=61)
    verdict = judge(limits, numbers)
    assert verdict.decision == "undecided"
    assert "on 400 held-out rows of its promotion was 0.9200 and is 0.8000 now; 61 of them" in verdict.why
    assert "look at these labels" in verdict.why
    assert judge(limits, replace(numbers, champion_now=0.87)).decision == "promote", "at the limit is allowed"
    assert judge(limits, replace(numbers, champion_now=None)).decision == "promote", "nothing is recorded"
    loss = replace(numbers, metric="rmse", challenger=9.0, champion=10.0, champion_then=9.0)
    assert judge(limits, replace(loss, champion_now=9.4)).decision == "promote", "a share of an error in a unit"
    assert judge(limits, replace(loss, champion_now=9.5)).decision == "undecided"


@pytest.mark.parametrize(
    "limits", [{"level": 0.0}, {"level": 1.0}, {"min_rows": -1}, {"max_class_drop": 1.5}, {"max_latency_ms": -0.1}]
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(TrainError, match=f"gate: {next(iter(limits))}"):
        GateLimits(**limits)


def test_outputs_are_put_in_the_order_of_other_classes() -> None:
    task, proba = task_of("classification"), np.array([[0.7, 0.3], [0.1, 0.9]])
    aligned = align_outputs(proba, ["bees", "wasps"], ["ants", "bees", "wasps"], task)
    np.testing.assert_array_equal(aligned, [[0, 0.7, 0.3], [0, 0.1, 0.9]])
    np.testing.assert_array_equal(align_outputs(proba, ["a", "b"], ["a", "b"], task), proba)
    with pytest.raises(TrainError, match="the champion tells a, b, and the challenger a, c"):
        align_outputs(proba, ["a", "b"], ["a", "c"], task_of("multilabel"))


def test_recalls_are_those_of_classes_that_the_champion_knows_and_rows_have() -> None:
    y = np.array([0, 0, 1, 2])
    champion, challenger = np.eye(4)[[0, 1, 1, 1]], np.eye(4)[[0, 0, 0, 2]]
    found = class_recalls(y, champion, challenger, list("abcd"), list("ab"), task_of("classification"))
    assert found == {"a": ClassRecall(2, 0.5, 1.0), "b": ClassRecall(1, 1.0, 0.0)}
    labels = np.array([[1, 0], [1, 1]])
    found = class_recalls(labels, labels * 0.9, labels[:, ::-1] * 0.9, ["x", "y"], ["x", "y"], task_of("multilabel"))
    assert found == {"x": ClassRecall(2, 1.0, 0.5), "y": ClassRecall(1, 1.0, 1.0)}
    assert class_recalls(y * 1.0, y * 1.0, y * 1.0, ["age"], ["age"], task_of("regression")) == {}


def test_calibration_is_measured_of_class_probabilities() -> None:
    y, proba = np.array([0, 1, 0, 1]), np.tile([0.75, 0.25], (4, 1))
    assert calibration_error(task_of("classification"), y, proba) == pytest.approx(0.25)
    assert calibration_error(task_of("regression"), y, proba[:, 0]) is None
