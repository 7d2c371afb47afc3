"""Labels are found by image id, and what does not fit is refused with its place."""

from __future__ import annotations

from pathlib import Path

import pytest
from icecore.train import LabelError, labels_from_csv, labels_from_folders
from icecore.train.labels import match_labels


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")
    return path


def test_folders_give_split_and_label() -> None:
    labels = labels_from_folders(["train/ants/x.jpg", "val/deep/bees/y.jpg"])
    assert labels.label == {"train/ants/x.jpg": "ants", "val/deep/bees/y.jpg": "bees"}
    assert labels.split == {"train/ants/x.jpg": "train", "val/deep/bees/y.jpg": "val"}


def test_folders_give_the_label_alone_on_request() -> None:
    labels = labels_from_folders(["ants/x.jpg"], layout="label")
    assert labels.label == {"ants/x.jpg": "ants"}
    assert labels.split == {}


def test_images_outside_the_layout_are_refused_by_name() -> None:
    with pytest.raises(LabelError, match=r"1 of 2 images are not placed as SPLIT/LABEL/IMAGE: 'train/x\.jpg'"):
        labels_from_folders(["train/x.jpg", "train/ants/y.jpg"])


def test_csv_gives_labels_splits_and_groups(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "\ufeffpath,label,split,group,note\na.jpg,ants,train,g1,x\nb.jpg, bees ,val,,y\n")
    labels = labels_from_csv(path)
    assert labels.label == {"a.jpg": "ants", "b.jpg": "bees"}
    assert labels.split == {"a.jpg": "train", "b.jpg": "val"}
    assert labels.group == {"a.jpg": "g1"}


def test_a_manifest_with_labels_names_images_by_its_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "m.csv", "path,id,label,group\n/a/1.jpg,one,ants,g\n../2.jpg,two,bees,\n")
    labels = labels_from_csv(path)
    assert (labels.label, labels.group) == ({"one": "ants", "two": "bees"}, {"one": "g"})
    assert labels_from_csv(write(path, "id,label\none,ants\n")).label == {"one": "ants"}
    for text, message in (
        ("id,label\n,ants\n", "line 2: empty id"),
        ("id,label\na,ants\na,bees\n", "lines 2 and 3: 'a' is there twice"),
        ("id,label,id\n", "column id is there more than once"),
        ("id,class\n", "no column 'label'; found 'id', 'class'"),
    ):
        with pytest.raises(LabelError, match=message):
            labels_from_csv(write(path, text))


def test_csv_finds_names_with_newlines_and_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_bytes(b'path,label\n"two\nlines.jpg",ants\nb\xffd.jpg,bees\n')
    assert labels_from_csv(path).label == {"two\nlines.jpg": "ants", "b\udcffd.jpg": "bees"}


def test_csv_faults_are_all_named_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path / "l.csv",
        'path,label\na.jpg,ants\n"x\ny.jpg",bees\na.jpg,bees\nb.jpg,\n,ants\nc.jpg,ants,more\n',
    )
    with pytest.raises(LabelError) as caught:
        labels_from_csv(path)
    assert str(caught.value).splitlines()[1:] == [
        "  lines 2 and 5: 'a.jpg' is there twice",
        "  line 6: empty label of 'b.jpg'",
        "  line 7: empty path",
        "  line 8: 3 fields, the header has 2",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path' nor 'label'; found an empty file"),
        ("file,class\na,b\n", "no column 'path' nor 'label'; found 'file', 'class'"),
        ("path,label,label\na,b,c\n", "column label is there more than once"),
        ("path,label\n", "a header but no rows"),
        ('path,label\n"a,b\n', "line 2: malformed CSV"),
        ("path,label,split\na,x,train\nb,x,\n", "line 3: empty split of 'b'"),
    ],
)
def test_csv_that_cannot_be_used_says_why(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(LabelError) as caught:
        labels_from_csv(write(tmp_path / "l.csv", text))
    assert message in str(caught.value)
    assert "l.csv" in str(caught.value)


def test_missing_csv_is_a_label_error(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="cannot read the labels"):
        labels_from_csv(tmp_path / "absent.csv")


def test_labels_of_images_that_the_store_lacks_are_refused_or_skipped(tmp_path: Path) -> None:
    rows = "".join(f"extra{i}.jpg,ants\n" for i in range(7))
    labels = labels_from_csv(write(tmp_path / "l.csv", f"path,label\na.jpg,ants\n{rows}"))
    with pytest.raises(LabelError, match=r"7 labelled .*'extra0\.jpg'.* and 2 more.*labels\.unknown"):
        match_labels(labels, ["a.jpg"])
    match = match_labels(labels, ["a.jpg"], unknown="skip")
    assert match.ids == ("a.jpg",)
    assert len(match.unknown) == 7


def test_images_without_a_label_are_refused_or_skipped(tmp_path: Path) -> None:
    labels = labels_from_csv(write(tmp_path / "l.csv", "path,label\na.jpg,ants\n"))
    with pytest.raises(LabelError, match=r"1 images of the store have no label: 'b\.jpg'.*labels\.missing"):
        match_labels(labels, ["a.jpg", "b.jpg"])
    assert match_labels(labels, ["a.jpg", "b.jpg"], missing="skip").missing == ("b.jpg",)


def test_labelled_images_that_failed_are_set_aside_not_unknown(tmp_path: Path) -> None:
    labels = labels_from_csv(write(tmp_path / "l.csv", "path,label\na.jpg,ants\nbroken.jpg,bees\n"))
    match = match_labels(labels, ["a.jpg"], failed=["broken.jpg"])
    assert match.ids == ("a.jpg",)
    assert match.failed == ("broken.jpg",)
    assert match.unknown == ()
