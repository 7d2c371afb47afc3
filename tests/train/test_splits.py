"""No image changes sides as the data grows, and no group is on both."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from icecore.train import GivenSplit, HashSplit, SplitError, split_rows
from icecore.train.splits import hash_share

IDS = [f"img{i}.jpg" for i in range(2_000)]


def test_hash_split_holds_out_about_its_share() -> None:
    held_out = (~split_rows(HashSplit(0.25), IDS).train).mean()
    assert 0.22 < held_out < 0.28  # three standard deviations of 2,000 draws


def test_hash_share_is_the_leading_bits_of_sha256() -> None:
    number = int(hashlib.sha256(b"x/\xff.jpg").hexdigest()[:14], 16) / 16**14
    assert hash_share("x/\udcff.jpg") == pytest.approx(number, abs=1e-12)


@given(st.sets(st.text(min_size=1), min_size=50, max_size=80), st.integers(25, 49))
def test_hash_split_never_moves_an_image_as_the_data_grows(ids: set[str], n: int) -> None:
    everything = sorted(ids)
    few = everything[:n]
    try:
        before, after = split_rows(HashSplit(0.5), few), split_rows(HashSplit(0.5), everything)
    except SplitError:  # a side may happen to be empty
        return
    assert after.train[:n].tolist() == before.train.tolist()


def test_hash_split_keeps_groups_together() -> None:
    groups = {image: f"patient{i % 40}" for i, image in enumerate(IDS)}
    split = split_rows(HashSplit(0.3), IDS, groups=groups)
    sides = {(groups[image], side) for image, side in zip(IDS, split.train.tolist(), strict=True)}
    assert len(sides) == 40


def test_given_split_reads_the_usual_names() -> None:
    names = {"a": "train", "b": "VAL", "c": "test", "d": "Training", "e": "valid", "f": "validation"}
    split = split_rows(GivenSplit(), list(names), names=names)
    assert split.train.tolist() == [True, False, False, True, False, False]


def test_given_split_refuses_unknown_names() -> None:
    with pytest.raises(SplitError, match="unknown names 'holdout'"):
        split_rows(GivenSplit(), ["a", "b"], names={"a": "train", "b": "holdout"})


def test_given_split_without_names_says_what_to_do() -> None:
    with pytest.raises(SplitError, match="add a split column"):
        split_rows(GivenSplit(), ["a"])


def test_given_split_with_a_group_on_both_sides_is_refused() -> None:
    with pytest.raises(SplitError, match=r"1 groups have rows on both sides.*'patient7'"):
        split_rows(
            GivenSplit(), ["a", "b"], names={"a": "train", "b": "val"}, groups={"a": "patient7", "b": "patient7"}
        )


@pytest.mark.parametrize("side", ["train", "val"])
def test_an_empty_side_is_refused(side: str) -> None:
    with pytest.raises(SplitError, match="none of the 2 rows"):
        split_rows(GivenSplit(), ["a", "b"], names={"a": side, "b": side})


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(SplitError, match="between 0 and 1"):
        split_rows(HashSplit(share), IDS)


def test_digest_depends_on_sides_and_not_on_order() -> None:
    names = {"a": "train", "b": "val", "c": "train"}
    digest = split_rows(GivenSplit(), ["a", "b", "c"], names=names).digest
    assert split_rows(GivenSplit(), ["c", "b", "a"], names=names).digest == digest
    assert split_rows(GivenSplit(), ["a", "b", "c"], names={**names, "c": "val"}).digest != digest
