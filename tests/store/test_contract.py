from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from icecore.store import Column, Contract, FormatError, Pooling

steps = st.lists(
    st.dictionaries(st.sampled_from(["op", "size", "mean"]), st.integers() | st.text() | st.lists(st.floats(0, 1))),
    max_size=3,
)
contracts = st.builds(
    Contract,
    architecture=st.text(max_size=8),
    arguments=st.dictionaries(st.text(max_size=4), st.integers() | st.booleans() | st.text(max_size=4), max_size=2),
    weights=st.sampled_from(["0" * 64, "a" * 64]),
    preprocess=steps.map(tuple),
    decoder=st.sampled_from(["pillow", "torchcodec"]),
    views=st.sampled_from([("full",), ("full", "flip")]),
    precision=st.sampled_from(["fp32", "bf16"]),
)


@given(contracts)
def test_a_contract_survives_json(contract: Contract) -> None:
    again = Contract.from_json(json.loads(json.dumps(contract.to_json())))
    assert again == contract
    assert again.hash == contract.hash
    assert again.diff(contract) == ()


@given(contracts, contracts)
def test_hashes_are_equal_exactly_when_no_field_differs(ours: Contract, theirs: Contract) -> None:
    assert (ours.hash == theirs.hash) == (not ours.diff(theirs)) == (ours.to_json() == theirs.to_json())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "torchvision.models.resnet34"),
        ("arguments", {"transform_input": True}),
        ("weights", "1" * 64),
        ("preprocess", ({"op": "resize", "size": 232},)),
        ("decoder", "torchcodec"),
        ("views", ("full", "flip")),
        ("precision", "bf16"),
    ],
)
def test_every_field_is_covered_by_the_hash(contract: Contract, field: str, value: Any) -> None:
    other = dataclasses.replace(contract, **{field: value})
    assert other.hash != contract.hash
    assert all(difference.field.startswith(field) for difference in contract.diff(other))


def test_the_hash_is_that_of_the_format_page() -> None:
    contract = Contract("m", {}, "0" * 64, ({"op": "resize", "size": 256},), "pillow", ("full",), "fp32")
    text = (
        '{"architecture":"m","arguments":{},"decoder":"pillow","precision":"fp32",'
        '"preprocess":[{"op":"resize","size":256}],"views":["full"],"weights":"' + "0" * 64 + '"}'
    )
    import hashlib

    assert contract.hash == hashlib.sha256(text.encode()).hexdigest()


def test_the_diff_names_the_step_and_both_values(contract: Contract, other_contract: Contract) -> None:
    (difference,) = contract.diff(other_contract)
    assert difference.field == "preprocess[0:resize].size"
    assert (difference.ours, difference.theirs) == (256, 232)


def test_a_contract_with_a_field_too_many_is_refused(contract: Contract) -> None:
    with pytest.raises(FormatError, match="surprise"):
        Contract.from_json({**contract.to_json(), "surprise": 1})


def test_the_column_hash_covers_layer_pooling_dtype_layout_and_view_but_not_the_width() -> None:
    column = Column("layer4", Pooling.parse("avg"), 512)
    others = [
        Column("layer3", Pooling.parse("avg"), 512),
        Column("layer4", Pooling.parse("gem"), 512),
        Column("layer4", Pooling.parse("gem(4)"), 512),
        Column("layer4", Pooling.parse("avg"), 512, "float32"),
        Column("layer4", Pooling.parse("avg"), 512, "float16", "NHWC"),
        Column("layer4", Pooling.parse("avg"), 512, view="flip"),
        Column("layer4", Pooling.parse("avg"), 512, view="top-left"),
    ]
    assert len({column.hash, *(other.hash for other in others)}) == 8
    assert Column("layer4", Pooling.parse("avg"), 99).hash == column.hash


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("avg", "avg"),
        ("max", "max"),
        ("flat", "flat"),
        ("gem", "gem3"),
        ("gem(2.5)", "gem2.5"),
        ("cls", "cls"),
        ("mean", "mean"),
        ("gem2.12345678", "gem2.12345678"),
    ],
)
def test_poolings_are_read_and_named(text: str, name: str) -> None:
    assert Pooling.parse(text).name == name
    assert Pooling.parse(name) == Pooling.parse(text)


@pytest.mark.parametrize("text", ["", "median", "cls3", "gem(-1)", "gem0", "AVG", "gem(3", "gem3)", "gem()", "gem1000"])
def test_an_unknown_pooling_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ValueError, match="avg, max, gem"):
        Pooling.parse(text)
