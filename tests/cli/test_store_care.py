"""``icecore store verify | repair``: damage is named with its cure, and after it the next run computes what is lost."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from icecore.store import FeatureStore
from icecore.store.lock import writer_lock

Icecore = Callable[..., Any]
COLUMN = "features.3:avg"
CURE = "keeps what is sound and tells what is to be extracted again; with --dry-run it only tells"


def segment_of(project: Any) -> Path:
    """The oldest segment file."""
    found: list[Path] = sorted(project.store.glob("segments/**/*.h5"), key=lambda path: path.stat().st_mtime_ns)
    return found[0]


def flip(path: Path, *, in_features: bool = True) -> None:
    """Change one bit of a feature, or of the library versions, which are no feature."""
    with h5py.File(path) as file:
        offset = file[f"columns/{COLUMN}"].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset if in_features else data.index(b'"pillow"') + 1] ^= 1
    path.write_bytes(data)


def tree(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm"))]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows_of(project: Any) -> dict[str, bytes]:
    with FeatureStore.open(project.store) as store:
        ids, X = store["photos"].matrix("features.3")
        return {image_id: row.tobytes() for image_id, row in zip(ids, X, strict=True)}


@pytest.fixture
def grown(icecore: Icecore, trained: Any, noisy: Callable[..., Any]) -> Any:
    """A second segment, with two images more."""
    for number in range(2):
        noisy(77 + number).save(trained.photos / "val" / "red" / f"new-{number}.png")
    assert icecore("extract", trained.config, "--json").outcome["forwarded"] == 2
    return trained


def test_a_sound_store_is_told_how_far_it_was_looked_at(icecore: Icecore, trained: Any) -> None:
    size = segment_of(trained).stat().st_size
    full, quick = (icecore("store", "verify", trained.store, *words) for words in ((), ("--quick",)))
    assert (full.code, full.told, quick.code, quick.told) == (0, "", 0, "")
    assert full.text == f"{trained.store}: 1 segment, 18 rows, {size:,} bytes: all sound\n"
    assert quick.text == f"{trained.store}: 1 segment, 18 rows: sizes and headers are right; no row was read\n"
    facts = icecore("store", "verify", trained.store, "--quick", "--json").outcome
    assert (facts["ok"], facts["quick"], facts["segments"], facts["rows"], facts["bytes"]) == (True, True, 1, 18, 0)
    assert (facts["problems"], facts["leftovers"]) == ([], [])


def test_damage_ends_with_3_naming_file_trouble_and_cure(icecore: Icecore, trained: Any) -> None:
    path = segment_of(trained)
    name = path.relative_to(trained.store).as_posix()
    flip(path)
    done = icecore("store", "verify", trained.store)
    assert (done.code, done.out) == (3, b"")
    assert done.told.splitlines() == [
        f"icecore store verify: {trained.store}: 1 problem",
        f"  {name}: bytes changed in columns/{COLUMN}",
        f"`icecore store repair {trained.store}` {CURE}",
    ]
    assert icecore("store", "verify", trained.store, "--quick").code == 0, "no row was read"
    os.truncate(path, 100)
    done = icecore("store", "verify", trained.store, "--quick", "--json")
    assert (done.code, done.outcome["outcome"]) == (3, "store invalid")
    (problem,) = done.outcome["problems"]
    assert problem["path"] == name
    assert problem["what"].startswith("has 100 bytes, should have ")


def test_an_unfinished_file_is_told_and_is_no_damage(icecore: Icecore, trained: Any) -> None:
    path = segment_of(trained).with_name(f"{'0' * 32}.h5.tmp")
    path.write_bytes(b"half")
    done = icecore("store", "verify", trained.store)
    assert done.code == 0
    assert done.text.splitlines()[1] == "1 unfinished file of runs that were cut off or are at work: no damage"
    facts = icecore("store", "verify", trained.store, "--json").outcome
    assert facts["leftovers"] == [path.relative_to(trained.store).as_posix()]


def test_after_a_repair_the_next_extract_computes_exactly_the_lost_images(icecore: Icecore, grown: Any) -> None:
    before, path = rows_of(grown), segment_of(grown)
    name = path.relative_to(grown.store).as_posix()
    flip(path)
    assert icecore("store", "verify", grown.store).code == 3
    done = icecore("store", "repair", grown.store)
    assert (done.code, done.told) == (0, "")
    lines = done.text.splitlines()
    assert lines[:3] == [
        "1 segment is not what the catalog says",
        f"  {name}: bytes changed in columns/{COLUMN}; moved to quarantine/{path.name}",
        f"18 images of photos have lost {COLUMN}:",
    ]
    assert sorted(lines[3:-1]) == sorted(f"  {image_id}" for image_id in before if "new" not in image_id)
    assert lines[-1] == "the next `icecore extract` computes these again"
    assert icecore("store", "verify", grown.store).code == 0
    facts = icecore("extract", grown.config, "--json").outcome
    assert (facts["forwarded"], facts["removed"], facts["failed"]) == (18, 0, 0)
    assert rows_of(grown).keys() == before.keys()
    for image_id, row in rows_of(grown).items():
        np.testing.assert_allclose(np.frombuffer(row, "<f4"), np.frombuffer(before[image_id], "<f4"), rtol=1e-2)
    assert icecore("store", "verify", grown.store).code == 0
    assert icecore("extract", grown.config, "--json").outcome["forwarded"] == 0
    again = icecore("store", "repair", grown.store)
    assert (again.code, again.text) == (0, f"{grown.store}: nothing to repair\n")
    assert icecore("store", "repair", grown.store, "--json").outcome["needed"] is False


def test_damage_outside_the_features_costs_no_forward_pass(icecore: Icecore, trained: Any) -> None:
    before = rows_of(trained)
    flip(segment_of(trained), in_features=False)
    done = icecore("store", "repair", trained.store)
    assert done.code == 0
    (new,) = trained.store.glob("segments/**/*.h5")
    assert done.text.splitlines()[-2:] == [
        f"  {new.relative_to(trained.store).as_posix()}: new, holds what was sound",
        "no live image has lost features",
    ]
    assert rows_of(trained) == before
    assert icecore("extract", trained.config, "--json").outcome["forwarded"] == 0


def test_a_dry_run_tells_the_same_and_changes_nothing(icecore: Icecore, grown: Any) -> None:
    flip(segment_of(grown))
    before = tree(grown.store)
    would = icecore("store", "repair", grown.store, "--dry-run")
    facts = icecore("store", "repair", grown.store, "--dry-run", "--json").outcome
    assert (would.code, facts["dry_run"], facts["needed"]) == (0, True, True)
    assert "; would move to quarantine/" in would.text
    assert would.text.endswith("nothing was changed: this was a dry run\n")
    assert tree(grown.store) == before
    did = icecore("store", "repair", grown.store, "--json").outcome
    assert {key: did[key] for key in ("lost", "moved", "damaged")} == {
        key: facts[key] for key in ("lost", "moved", "damaged")
    }


def test_ids_writes_every_lost_image_and_the_terminal_the_first_twenty(
    icecore: Icecore, trained: Any, noisy: Callable[..., Any], tmp_path: Path
) -> None:
    odd = os.fsdecode(b'a,"\xff\n.png')
    for number, name in enumerate(("b.png", "c.png", odd)):
        noisy(77 + number).save(tmp_path / "image.png")
        (tmp_path / "image.png").rename(trained.photos / "val" / "red" / name)
    segment_of(trained).unlink()
    assert icecore("store", "repair", trained.store, "--accept-loss").code == 0
    assert icecore("extract", trained.config, "--json").outcome["forwarded"] == 21
    flip(segment_of(trained))
    done = icecore("store", "repair", trained.store, "--ids", tmp_path / "lost.csv")
    assert done.text.splitlines()[-3:] == [
        "  and 1 more; --ids FILE writes all",
        "the next `icecore extract` computes these again",
        f"{tmp_path / 'lost.csv'}: 21 rows",
    ]
    with (tmp_path / "lost.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["set"], row["columns"]) for row in rows} == {("photos", COLUMN)}
    assert len(rows) == 21
    assert f"val/red/{odd}" in {row["id"] for row in rows}


def test_ids_of_a_store_that_lacks_nothing_has_no_rows(icecore: Icecore, trained: Any, tmp_path: Path) -> None:
    assert icecore("store", "repair", trained.store, "--ids", tmp_path / "lost.csv").code == 0
    assert (tmp_path / "lost.csv").read_text() == "set,id,columns\n"
    done = icecore("store", "repair", trained.store, "--ids", tmp_path / "nowhere" / "lost.csv")
    assert (done.code, "make it first" in done.told) == (2, True)


def test_without_its_catalog_a_store_is_made_anew_and_the_next_extract_computes_nothing(
    icecore: Icecore, grown: Any
) -> None:
    """What only the catalog knew, that images were deleted, renamed and copied, comes back from the folder."""
    val = grown.photos / "val" / "red"
    (val / "new-0.png").unlink()
    (val / "1.png").rename(val / "renamed.png")
    (val / "copy.png").write_bytes((val / "2.png").read_bytes())
    facts = icecore("extract", grown.config, "--json").outcome
    assert (facts["forwarded"], facts["added"], facts["removed"]) == (0, 2, 2)
    before = rows_of(grown)
    (trained_on,) = {json.loads(card.read_bytes())["version"] for card in grown.store.glob("models/*/*/card.json")}
    for path in grown.store.glob("catalog.sqlite*"):
        path.unlink()
    for words in (("store", "verify", grown.store), ("store", "ls", grown.store), ("extract", grown.config)):
        done = icecore(*words)
        assert done.code == 3
        assert "catalog.sqlite is missing but segments are here; `icecore store repair` makes it anew" in done.told
    done = icecore("store", "repair", grown.store)
    assert (done.code, done.told) == (0, "")
    assert done.text.splitlines() == [
        "catalog.sqlite: is missing",
        "made anew from the segments: 20 images in 1 set",
        "lost with it: the log, tags, old versions, deletions, names given since images were written, failures",
        "run `icecore extract` next: it reads every image file again, and computes only what is in no segment",
    ]
    assert "val/red/new-0.png" in rows_of(grown), "until the next run deleted images are back"
    facts = icecore("extract", grown.config, "--json").outcome
    assert (facts["forwarded"], facts["changed"], facts["linked"], facts["removed"]) == (0, 0, 20, 2)
    assert facts["version"] > trained_on + 1, "no number that a bundle refers to comes to mean something else"
    assert rows_of(grown) == before
    assert icecore("store", "verify", grown.store).code == 0


def test_a_catalog_that_cannot_be_read_is_moved_aside(icecore: Icecore, trained: Any) -> None:
    before, junk = rows_of(trained), b"something else altogether " * 400
    (trained.store / "catalog.sqlite").write_bytes(junk)
    would = icecore("store", "repair", trained.store, "--dry-run")
    assert would.text.startswith("catalog.sqlite: file is not a database\nwould be made anew from the segments: 18 ")
    assert (trained.store / "catalog.sqlite").read_bytes() == junk
    assert icecore("store", "repair", trained.store).code == 0
    assert (trained.store / "quarantine" / "catalog.sqlite").read_bytes() == junk
    assert rows_of(trained) == before


def test_a_set_whose_files_are_all_away_is_not_given_up_unasked(icecore: Icecore, trained: Any) -> None:
    (trained.store / "segments").rename(trained.folder / "away")
    done = icecore("store", "repair", trained.store)
    assert (done.code, done.out) == (3, b"")
    assert "none of the 1 segments of set photos is there: is a disk not mounted?" in done.told
    (trained.folder / "away").rename(trained.store / "segments")
    assert icecore("store", "verify", trained.store).code == 0


def test_a_repair_waits_for_nobody_and_a_dry_run_needs_no_lock(icecore: Icecore, trained: Any) -> None:
    with writer_lock(trained.store, command="nightly"):
        assert icecore("store", "repair", trained.store).code == 7
        assert icecore("store", "repair", trained.store, "--dry-run").code == 0


def test_a_folder_without_a_store_is_left_alone(icecore: Icecore, tmp_path: Path) -> None:
    done = icecore("store", "repair", tmp_path)
    assert (done.code, done.out) == (3, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_backup_keeps_features_bundle_and_champion_and_says_what_was_copied(icecore: Icecore, trained: Any) -> None:
    from icecore.store import champion_of, promote

    copy, bundle = trained.folder / "copy", trained.bundle
    promote(trained.store, "default", bundle, why="first")
    done = icecore("store", "backup", trained.store, copy, "--json")
    assert (done.code, done.outcome["segments"], done.outcome["copied"]) == (0, 1, 1)
    assert icecore("store", "verify", copy).code == 0
    kept = champion_of(copy, "default")
    assert kept is not None
    assert kept.path == copy / "models" / "default" / bundle.name
    assert (
        icecore("predict", kept.path, trained.photos / "val").out
        == icecore("predict", bundle, trained.photos / "val").out
    )
    assert not (copy / "runs").exists()
    again = icecore("store", "backup", trained.store, copy, "--skip-code", "99")
    assert (again.code, again.text) == (99, f"{copy}: 1 segment, 0 of them new, 0 other files new; 0 B copied\n")
    refused = icecore("store", "backup", trained.store, trained.photos)
    assert refused.code == 1
    assert "holds something else than a copy" in refused.told
