"""Whether to fine-tune, before any GPU hour is spent: the rules of ``advice_rules`` over measured facts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .advice_facts import Facts
from .advice_rules import RULES, Action

__all__ = ["Advice", "Reason", "advise"]


@dataclass(frozen=True)
class Reason:
    """A rule that applied."""

    rule: str
    """its name"""
    action: Action | None
    """what it advises"""
    text: str
    """why"""
    source: str
    """where it comes from"""


@dataclass(frozen=True)
class Advice:
    """What to do, and why."""

    action: Action
    """what the first rule that applies advises"""
    reasons: tuple[Reason, ...]
    """that rule, and those that agree with it"""
    against: tuple[Reason, ...]
    """rules that advise something else, which the first one outweighs"""
    warnings: tuple[Reason, ...]
    """what to mind whatever is done"""
    facts: Facts
    """what it is based on"""

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {
            "action": self.action,
            **{name: [asdict(reason) for reason in getattr(self, name)] for name in ("reasons", "against", "warnings")},
            "facts": self.facts.to_json(),
        }


def advise(facts: Facts) -> Advice:
    """Give the advice that the rules have for some facts; exactly one of the last four always applies."""
    told = [Reason(r.name, r.action, r.because(facts), r.source) for r in RULES if r.applies(facts)]
    deciding = [reason for reason in told if reason.action is not None]
    action = deciding[0].action
    assert action is not None
    return Advice(
        action=action,
        reasons=tuple(reason for reason in deciding if reason.action == action),
        against=tuple(reason for reason in deciding if reason.action != action),
        warnings=tuple(reason for reason in told if reason.action is None),
        facts=facts,
    )
