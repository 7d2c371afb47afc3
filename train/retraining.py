"""One retraining from the key to the decision, in the order in which a kill is harmless.

Bundle, promotion, record: each is looked for before it is made, and each tells what came before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from icecore.store import Contract, FeatureSet, FeatureStore, Promotion, catalog, promote, promotions, read_tuning

from .bundle import Bundle, load_bundle, read_card
from .bundle_write import sweep_strays
from .contest import Contest, hold_contest
from .decisions import Decided, Decision, find_decision, record_decision
from .errors import BundleError, ReportError, TrainError
from .frozen import Frozen, freeze_sides
from .gate import GateLimits, Verdict, judge
from .job import conclude
from .labels import LabelSource
from .plan import CellPlan
from .progress import Progress
from .retrain_key import Keys, find_trained, keys_of
from .row_list import RowList, read_row_list
from .run import train_rows
from .shared import share_rows
from .splits import SplitRule

__all__ = ["Retrained", "Retraining", "Told"]

Outcome = Literal["promoted", "kept", "undecided", "nothing new"]
Told = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Retrained:
    """How a retraining ended."""

    name: str
    """name of the model"""
    decided: Outcome
    """promoted; kept: the champion stays; undecided: the held-out rows are doubtful, the champion stays; nothing new"""
    why: str
    """in a line"""
    key: str
    """sha256, in hex, of all inputs"""
    recorded: bool
    """whether an earlier run decided this of the same inputs, and nothing was done now"""
    dry_run: bool
    """whether a promotion, and the record of the decision, were left out"""
    forced: bool
    """whether it was promoted against the gate"""
    challenger: Path | None
    """its bundle; None where there is nothing new"""
    reused: bool
    """whether an earlier run, which was cut off or dry, had trained it"""
    champion: Path | None
    """the bundle in use now"""
    number: int
    """number of its promotion; 0 where there is none"""
    numbers: Mapping[str, Any]
    """what was measured"""
    rules: tuple[Mapping[str, Any], ...]
    """each rule of the gate with its numbers"""
    notes: tuple[str, ...]
    """what a reader should know"""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        paths = {name: None if (path := getattr(self, name)) is None else str(path) for name in _PATHS}
        rest = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in _PATHS}
        return {**rest, **paths, "rules": list(self.rules), "notes": list(self.notes)}


_PATHS = ("challenger", "champion")


@dataclass(frozen=True)
class Retraining:
    """One retraining, whose lock is held; see ``retrain.retrain_model``."""

    store: FeatureStore
    """the open store"""
    features: FeatureSet
    """the set as of one version"""
    name: str
    """name of the model"""
    folder: Path
    """``models/<name>``"""
    layers: tuple[str | Sequence[str], ...]
    """what is tried"""
    plan: CellPlan
    """how"""
    labels: LabelSource | None
    """where the labels are"""
    split: SplitRule | None
    """how rows are divided that were not before"""
    limits: GateLimits
    """what a challenger must fulfil"""
    metric: str
    """the score that is compared"""
    report: bool
    """whether to write a report"""
    images: Path | str | None
    """the image folder, for the report"""
    config: Mapping[str, Any] | None
    """kept in card and history"""
    progress: Callable[[Progress], None] | None
    """called by the training"""
    told: Told
    """called with each event"""

    def run(self, *, dry_run: bool, force: bool, who: str) -> Retrained:
        """Do it; the parameters are those of ``retrain_model``."""
        keys = keys_of(
            self.features,
            self.plan,
            layers=self.layers,
            labels=self.labels,
            split=self.split,
            limits=self.limits,
            gate_metric=self.metric,
        )
        history = promotions(self.store.path, self.name)
        champion = history[0] if history else None
        if (known := self._known(keys, history, force=force, dry_run=dry_run)) is not None:
            self.told(known.decided, {"recorded": known.recorded, "why": known.why})
            return known
        frozen, listed = self._rows(history)
        bundle, reused, notes = self._challenger(keys, frozen)
        contest = self._compare(bundle, champion, frozen, listed)
        verdict = judge(self.limits, contest.numbers)
        self.told("compared", {"decision": verdict.decision, "numbers": contest.numbers.to_json()})
        goes = verdict.decision == "promote" or force
        forced = goes and verdict.decision != "promote"
        outcome: Decided = "promoted" if goes else "kept" if verdict.decision == "keep" else "undecided"
        why = f"forced, against the gate: {verdict.why}" if forced else verdict.why
        decision = Decision(
            keys.decision, outcome, why, bundle.path.name, _bundle_of(champion), forced,
            catalog.now(), who, contest.numbers.to_json(), _rules(verdict), (*notes, *contest.notes),
        )  # fmt: skip
        now = champion
        if not dry_run:
            now = self._decide(decision, champion) if goes else champion
            record_decision(self.folder, decision)
        self.told(outcome, {"why": why, "dry_run": dry_run, "challenger": str(bundle.path)})
        return replace(_told(self.name, self.folder, decision, now), dry_run=dry_run, reused=reused)

    def _known(self, keys: Keys, history: Sequence[Promotion], *, force: bool, dry_run: bool) -> Retrained | None:
        """Give what was decided of the same inputs, or that there is nothing new; None where there is work to do."""
        champion = history[0] if history else None
        decision = find_decision(self.folder, keys.decision)
        if decision is None:  # cut off between promotion and record?
            decision = next((found for each in history if (found := _noted(each, keys.decision))), None)
            if decision is not None and not dry_run:
                record_decision(self.folder, decision)
        if decision is not None and decision.decided != "promoted" and decision.champion != _bundle_of(champion):
            decision = None  # it was held against another champion than that of now
        if decision is not None and not (force and decision.decided != "promoted"):
            return replace(_told(self.name, self.folder, decision, champion), recorded=True, dry_run=dry_run)
        if champion is None or not _is_made_of(champion, keys):
            return None
        why = f"the champion {champion.bundle} was trained on these very rows, labels and settings"
        return Retrained(
            self.name, "nothing new", why, keys.decision, False, dry_run, False, None, False, champion.path,
            champion.number, {}, (), (),
        )  # fmt: skip

    def _rows(self, history: Sequence[Promotion]) -> tuple[Frozen, RowList | None]:
        """Give the rows on the sides that they keep, and the champion's own."""
        lists = {each.bundle: read_row_list(each.path) for each in reversed(history) if each.path.is_dir()}
        rows = share_rows(self.features, self.layers, labels=self.labels, split=self.split, task=self.plan.task)
        listed = lists.get(history[0].bundle) if history else None
        if history and listed is None:
            card = read_card(history[0].path)
            if not rows.split.description.startswith("hash") or card["rows"]["split"] != rows.split.description:
                raise TrainError(
                    f"{history[0].path}: the champion does not list its training rows, as bundles of earlier releases, "
                    f"and its split ({card['rows']['split']}) is not by the same hash as that of now "
                    f"({rows.split.description}), so that it may have learned what it would be compared on; train "
                    "a model and put it in use with `icecore models promote`"
                )
        seen = [image for contract in self._contracts(history) for image in _seen(self.store.path, contract.weights)]
        return freeze_sides(rows, [each for each in lists.values() if each is not None], listed, seen), listed

    def _contracts(self, history: Sequence[Promotion]) -> list[Contract]:
        """Give how the features of the challenger, and of the champion, are computed."""
        theirs = [Contract.from_json(read_card(each.path)["contract"]) for each in history[:1]]
        return [self.features.contract, *theirs]

    def _challenger(self, keys: Keys, frozen: Frozen) -> tuple[Bundle, bool, tuple[str, ...]]:
        """Give the challenger, whether an earlier run has trained it, and what its training told."""
        notes = frozen.notes()
        found = find_trained(self.folder, keys.training, frozen.rows)
        if found is not None:
            self.told("trained", {"bundle": str(found.path), "reused": True})
            return found, True, notes
        self.told("training", {"layers": len(self.layers), "rows": int(frozen.rows.train.sum())})
        sweep_strays(self.folder)
        run = train_rows(
            self.features, frozen.rows, self.layers, plan=self.plan, with_plots=self.report, progress=self.progress
        )
        try:
            result = conclude(
                run,
                self.plan,
                run.kept[:1],
                folder=self.folder,
                store_path=self.store.path,
                report=self.report,
                images=self.images,
                config=self.config,
                entries={"retrain": keys.to_json()},
            )
        except ReportError as exc:  # the model is there, and is what matters here
            result = exc.result
        self.told("trained", {"bundle": str(result.bundles[0]), "reused": False})
        return load_bundle(result.bundles[0]), False, (*notes, *result.notes)

    def _compare(
        self, challenger: Bundle, champion: Promotion | None, frozen: Frozen, listed: RowList | None
    ) -> Contest:
        try:
            theirs = None if champion is None else load_bundle(champion.path)
        except BundleError as exc:
            raise BundleError(
                f"{exc}; it is the champion of {self.name!r}: put it back, or go back with `icecore models rollback`"
            ) from exc
        return hold_contest(
            self.store,
            self.features,
            frozen.rows,
            challenger,
            theirs,
            metric=self.metric,
            listed=listed,
            seed=self.plan.options.seed,
        )

    def _decide(self, decision: Decision, champion: Promotion | None) -> Promotion:
        return promote(
            self.store.path,
            self.name,
            decision.challenger,
            why=decision.why,
            who=decision.who,
            metrics={"decision": decision.to_json()},
            config=self.config,
            forced=decision.forced,
            expected=champion.number if champion else 0,
        )


def _seen(store: Path, weights: str) -> Iterator[str]:
    """Give the images that fine-tuned weights have seen, and those that they were made from."""
    while (tuning := read_tuning(store, weights)) is not None:
        yield from tuning.seen_ids
        weights = tuning.parent.weights


def _rules(verdict: Verdict) -> tuple[Mapping[str, Any], ...]:
    return tuple(dict(rule) for rule in verdict.to_json()["rules"])


def _noted(promotion: Promotion, key: str) -> Decision | None:
    """Give the decision that a promotion was made by, where it is the one on these inputs."""
    body = promotion.metrics.get("decision")
    if promotion.kind != "promote" or not isinstance(body, Mapping) or body.get("key") != key:
        return None
    return Decision(**{**body, "rules": tuple(body["rules"]), "notes": tuple(body["notes"])})


def _bundle_of(champion: Promotion | None) -> str | None:
    return None if champion is None else champion.bundle


def _is_made_of(champion: Promotion, keys: Keys) -> bool:
    card = read_card(champion.path) if champion.path.is_dir() else {}
    return bool(card.get("retrain", {}).get("training") == keys.training)


def _told(name: str, folder: Path, decision: Decision, champion: Promotion | None) -> Retrained:
    return Retrained(
        name, decision.decided, decision.why, decision.key, False, False, decision.forced,
        folder / decision.challenger, False, champion.path if champion else None, champion.number if champion else 0,
        decision.numbers, decision.rules, decision.notes,
    )  # fmt: skip
