"""The short form of ``benchmarks/kill_loop.py``: a few kills of real jobs, and nothing lost, doubled or shifted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_loop.py"


@pytest.mark.slow
def test_a_few_kills_lose_nothing() -> None:
    done = subprocess.run(
        [sys.executable, SCRIPT, "--kills", "5", "--seed", "3", "--json", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["kills"] == 5
    assert facts["rows compared"] > 100
    assert sum(facts[f"killed in {phase}"] for phase in ("commit", "compact", "collect")) >= 1, "where it matters"
    assert sum(facts[name] for name in ("lost", "doubled", "shifted", "not opened", "not sound", "left behind")) == 0
    assert facts["unequal"] == 0
