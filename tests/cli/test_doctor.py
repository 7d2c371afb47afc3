"""``icecore doctor``: 0 when nothing will break, 1 and the cure when something will."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Icecore = Callable[..., Any]


def test_a_sound_machine_and_store_end_with_0_and_a_table(icecore: Icecore, trained: Any) -> None:
    done = icecore("doctor", trained.store)
    assert (done.code, done.told) == (0, "")
    lines = done.text.splitlines()
    for what in ("Python", "torch", "decoder", "free space", "disk speed", "store is whole"):
        assert any(line.startswith(("ok", "warn")) and f"  {what}  " in line for line in lines), what
    assert lines[-1] == "nothing will break"


def test_json_holds_every_check_with_its_numbers(icecore: Icecore, tmp_path: Path) -> None:
    import h5py
    import numpy as np

    done = icecore("doctor", tmp_path / "none yet", "--json")
    assert (done.code, done.outcome["ok"]) == (0, True)
    found = {check["name"]: check for check in done.outcome["checks"]}
    assert found["numpy"]["facts"]["version"] == np.__version__
    assert found["h5py"]["found"] == f"{h5py.__version__} with HDF5 {h5py.version.hdf5_version}"
    assert found["store"]["found"].startswith("none in")
    assert found["free space"]["facts"]["bytes"] > 0
    assert not (tmp_path / "none yet").exists()


def test_a_damaged_store_ends_with_1_and_names_the_cure(icecore: Icecore, trained: Any) -> None:
    (segment,) = (trained.store / "segments").rglob("*.h5")
    segment.unlink()
    done = icecore("doctor", trained.store)
    assert done.code == 1
    assert "icecore doctor: store is whole: 1 problem, the first: segments/" in done.told
    assert f"bad: store is whole: icecore store repair {trained.store} --dry-run" in done.text
    assert done.text.endswith("1 thing will break\n")


def test_a_library_that_cannot_be_imported_will_break(icecore: Icecore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    done = icecore("doctor", "--json")
    assert (done.code, done.outcome["ok"]) == (1, False)
    found = {check["name"]: check for check in done.outcome["checks"]}["xgboost"]
    assert (found["health"], found["cure"]) == ("bad", "pip install --force-reinstall icecore")
