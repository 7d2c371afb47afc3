"""The examples in the docstrings are true."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("module", ["layers", "preprocess"])
def test_the_examples_of_a_module_give_what_they_say(module: str) -> None:
    found = doctest.testmod(importlib.import_module(f"icecore.extract.{module}"))
    assert found.attempted > 0
    assert found.failed == 0
