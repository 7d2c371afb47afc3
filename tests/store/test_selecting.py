"""A selector names one column: by layer, pooling, view and dtype, as far as that is needed."""

from __future__ import annotations

import pytest
from icecore.store import AmbiguousLayerError, Column, LayerNotFoundError, Pooling
from icecore.store.exporting import selector
from icecore.store.selecting import select_column

AVG, GEM = Pooling.parse("avg"), Pooling.parse("gem")
COLUMNS = [
    Column("layer3", AVG, 8),
    Column("layer3", AVG, 8, view="flip"),
    Column("layer3", GEM, 8, view="flip"),
    Column("layer3", GEM, 8, "float32", view="top-left-flip"),
    Column("layer4", AVG, 8, "float32"),
    Column("odd@name", AVG, 8),
]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("layer3", "layer3:avg"),  # the plain image
        ("layer3:avg", "layer3:avg"),
        ("layer3:avg@flip", "layer3:avg@flip"),
        ("layer3:gem@flip", "layer3:gem3@flip"),
        ("layer3@top-left-flip", "layer3:gem3@top-left-flip:float32"),
        ("layer3:@top-left-flip:float32", "layer3:gem3@top-left-flip:float32"),
        ("layer4", "layer4:avg:float32"),
        ("odd@name", "odd@name:avg"),
    ],
)
def test_a_selector_gives_its_column(text: str, name: str) -> None:
    assert select_column("set", text, COLUMNS).name == name


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_a_columns_name_and_its_full_selector_give_it_back(column: Column) -> None:
    assert select_column("set", column.name, COLUMNS) == column
    assert select_column("set", selector(column), COLUMNS) == column


@pytest.mark.parametrize("text", ["layer4@flip", "layer3:avg@flop", "layer3:gem", "layer3:median@flip", "layer5"])
def test_a_selector_that_fits_nothing_lists_what_there_is(text: str) -> None:
    with pytest.raises(LayerNotFoundError, match="it has layer3:avg, layer3:avg@flip, "):
        select_column("set", text, COLUMNS)


def test_a_view_under_two_poolings_must_be_named_in_full() -> None:
    with pytest.raises(AmbiguousLayerError, match="layer3:avg@flip, layer3:gem3@flip"):
        select_column("set", "layer3@flip", COLUMNS)


def test_a_column_without_a_view_is_written_as_it_was_before_there_were_views() -> None:
    plain, flipped = COLUMNS[:2]
    assert "view" not in plain.to_json()
    assert flipped.to_json() == {**plain.to_json(), "view": "flip"}
    assert [Column.from_json(column.to_json(), 8).view for column in (plain, flipped)] == ["full", "flip"]
