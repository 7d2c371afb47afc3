"""A folder, or a manifest that lists images: what a user configures, and that no disk that is away empties a store."""

from __future__ import annotations

import builtins
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from icecore.store import FeatureStore

Icecore = Callable[..., Any]
Write = Callable[..., None]


@pytest.fixture
def listed(project: Any, write_photos: Write, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project whose config names a manifest of its eighteen images, with ids, labels and splits."""
    monkeypatch.setattr("icecore.store.commit.RACY_NS", 0)  # else images so fresh are read again for two seconds
    write_photos(project.photos)
    rows = [
        f"{side}/{label}/{n}.png,{side}-{label}-{n},{label},{side}"
        for side, count in (("train", 6), ("val", 3))
        for label in ("red", "blue")
        for n in range(count)
    ]
    write_rows(project, rows)
    project.config.write_text(
        project.config.read_text("utf-8").replace('folder = "photos"', 'manifest = "images.csv"\nfolder = "photos"')
    )
    return project


def write_rows(project: Any, rows: list[str]) -> list[str]:
    (project.folder / "images.csv").write_text("\n".join(["path,id,label,split", *rows]), "utf-8")
    return rows


def rows_of(project: Any) -> list[str]:
    return list((project.folder / "images.csv").read_text("utf-8").splitlines()[1:])


def ids(project: Any) -> list[str]:
    with FeatureStore.open(project.store) as store:
        return list(store["photos"].ids())


def test_one_file_lists_the_images_for_extraction_and_labels_them_for_training(icecore: Icecore, listed: Any) -> None:
    done = icecore("extract", listed.config, "--json")
    assert (done.code, done.outcome["added"], done.outcome["forwarded"]) == (0, 18, 18)
    assert done.outcome["source"]["manifest"] == str(listed.folder / "images.csv")
    assert done.outcome["source"]["folder"] == str(listed.photos)
    assert {"train-red-0", "val-blue-2"} < set(ids(listed))
    assert "nothing to do, 18 images unchanged" in icecore("extract", listed.config).text
    listed.set('\n[labels]\ncsv = "images.csv"\n')
    assert icecore("train", listed.config).code == 0


def test_without_a_folder_paths_start_at_the_manifest(icecore: Icecore, listed: Any) -> None:
    (listed.folder / "images.csv").rename(listed.photos / "images.csv")
    text = (
        listed.config.read_text("utf-8").replace('folder = "photos"\n', "").replace("images.csv", "photos/images.csv")
    )
    listed.config.write_text(text, "utf-8")
    assert icecore("extract", listed.config, "--dry-run", "--json").outcome["added"] == 18


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "job.toml:5: source: folder is missing; name a folder of images, or a manifest that lists them\n"),
        (
            'manifest = "images.txt"',
            "source.manifest: expected a .csv or .parquet file, found 'images.txt'",
        ),
        ('manifset = "images.csv"', "job.toml:6: source.manifset: unknown key; did you mean 'manifest'?"),
        ('folder = "x"\nprune = "delete"', "source.prune: input should be 'tombstone' or 'keep', found 'delete'"),
    ],
)
def test_a_source_that_cannot_be_meant_ends_with_4(icecore: Icecore, project: Any, source: str, message: str) -> None:
    project.config.write_text(project.config.read_text("utf-8").replace('folder = "photos"', source))
    done = icecore("extract", project.config)
    assert done.code == 4
    assert message in done.told
    assert "{" not in done.told
    assert icecore("train", project.config).code == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows + rows[:1], "images.csv:20: id 'train-red-0' is given 2 times, first in line 2"),
        (lambda rows: [*rows, ",x,red,train"], "images.csv:20: empty path"),
        (lambda rows: [], "images.csv: lists no images"),
    ],
)
def test_a_manifest_that_cannot_be_used_ends_with_1_and_changes_nothing(
    icecore: Icecore, listed: Any, change: Callable[[list[str]], list[str]], message: str
) -> None:
    write_rows(listed, change(rows_of(listed)))
    done = icecore("extract", listed.config, "--json")
    assert (done.code, message in done.outcome["error"]) == (1, True), done.told
    assert not listed.store.exists()


def test_a_parquet_manifest_without_pyarrow_ends_with_1_and_the_cure(
    icecore: Icecore, listed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args)

    (listed.folder / "images.parquet").touch()
    monkeypatch.setattr(builtins, "__import__", without)
    done = icecore("extract", listed.config, "--set", "source.manifest=images.parquet")
    assert done.code == 1
    assert "images.parquet: a Parquet manifest needs pyarrow: pip install 'icecore[arrow]'" in done.told


def test_a_listed_file_that_is_missing_is_a_failure_and_ends_with_5(icecore: Icecore, listed: Any) -> None:
    assert icecore("extract", listed.config).code == 0
    (listed.photos / "train/red/0.png").unlink()
    done = icecore("extract", listed.config)
    assert done.code == 5
    assert "  failed: train-red-0: no such file (read)" in done.text
    assert len(ids(listed)) == 18
    again = icecore("extract", listed.config)
    assert (again.code, "1 failed before and were left alone" in again.text) == (5, True)


def test_what_the_manifest_lists_no_more_leaves_or_is_kept(icecore: Icecore, listed: Any) -> None:
    assert icecore("extract", listed.config).code == 0
    write_rows(listed, rows_of(listed)[2:])
    planned = icecore("extract", listed.config, "--dry-run")
    assert "         2  gone from the manifest\n" in planned.text
    assert (
        "         2  gone from the manifest, kept\n"
        in icecore("extract", listed.config, "--dry-run", "--prune", "keep").text
    )
    kept = icecore("extract", listed.config, "--set", "source.prune=keep", "--json").outcome
    assert (kept["gone"], kept["kept"], kept["removed"], kept["prune"]) == (2, 2, 0, "keep")
    told = icecore("extract", listed.config, "--prune", "keep")
    assert (told.code, len(ids(listed))) == (0, 18)
    assert "photos: nothing to do, 16 images unchanged\n" in told.text
    assert "  2 are gone from the source and were kept; --prune tombstone lets them go\n" in told.text
    listed.config.write_text(listed.config.read_text("utf-8").replace("[source]", '[source]\nprune = "keep"'))
    done = icecore("extract", listed.config, "--prune", "tombstone", "--json").outcome
    assert (done["gone"], done["kept"], done["removed"], done["prune"]) == (2, 0, 2, "tombstone")
    assert len(ids(listed)) == 16


# --- a disk that is away ----------------------------------------------------------------------------------------


def test_too_many_images_gone_end_with_1_and_the_counts_and_change_nothing(icecore: Icecore, listed: Any) -> None:
    assert icecore("extract", listed.config).code == 0
    before = {path: path.read_bytes() for path in listed.store.rglob("*.h5")}
    write_rows(listed, rows_of(listed)[12:])
    done = icecore("extract", listed.config, "--json")
    assert (done.code, done.outcome["outcome"], done.outcome["retryable"]) == (1, "failed", False)
    assert (done.outcome["gone"], done.outcome["total"], done.outcome["limit"]) == (12, 18, 0.5)
    told = "set 'photos': 12 of its 18 images are no longer in"
    assert told in done.outcome["error"]
    assert "nothing was changed: check the source, or allow it with `--set source.max_removed=1`" in done.told
    assert len(ids(listed)) == 18
    assert {path: path.read_bytes() for path in listed.store.rglob("*.h5")} == before
    assert icecore("extract", listed.config, "--prune", "keep").code == 0
    assert len(ids(listed)) == 18
    assert icecore("extract", listed.config, "--set", "source.max_removed=0.7").code == 0
    assert len(ids(listed)) == 6


def unmount_below_a_manifest(project: Any) -> str:
    shutil.rmtree(project.photos)
    project.photos.mkdir()
    return "none of the 18 files that it lists is there"


def unmount_a_folder(project: Any) -> str:
    project.config.write_text(project.config.read_text("utf-8").replace('manifest = "images.csv"\n', ""))
    shutil.rmtree(project.photos)
    project.photos.mkdir()
    return "photos: no images (0 other files"


def unmount_behind_links(project: Any) -> str:
    project.config.write_text(project.config.read_text("utf-8").replace('manifest = "images.csv"\n', ""))
    shutil.rmtree(project.photos)
    project.photos.mkdir()
    for n in range(18):
        (project.photos / f"{n}.png").symlink_to("/nowhere/at/all.png")
    return "all that is in it leads nowhere (18 symbolic links)"


@pytest.mark.parametrize("unmount", [unmount_below_a_manifest, unmount_a_folder, unmount_behind_links])
@pytest.mark.parametrize("options", [(), ("--set", "source.max_removed=1"), ("--prune", "keep"), ("--retry-failed",)])
def test_an_unmounted_disk_never_empties_the_store(
    icecore: Icecore, listed: Any, unmount: Callable[[Any], str], options: tuple[str, ...]
) -> None:
    assert icecore("extract", listed.config).code == 0
    before = ids(listed)
    message = unmount(listed)
    done = icecore("extract", listed.config, *options)
    assert done.code == 1
    assert message in done.told
    with FeatureStore.open(listed.store) as store:
        assert list(store["photos"].ids()) == before
        assert list(store["photos"].failures()) == []
        assert store["photos"].matrix("features.3").X.shape == (18, 128)


def test_half_a_disk_that_is_away_costs_no_features(icecore: Icecore, listed: Any) -> None:
    assert icecore("extract", listed.config).code == 0
    (listed.photos / "train").rename(listed.folder / "away")
    done = icecore("extract", listed.config, "--json")
    assert (done.code, len(done.outcome["failures"]), done.outcome["removed"]) == (5, 12, 0)
    assert len(ids(listed)) == 18
    (listed.folder / "away").rename(listed.photos / "train")
    back = icecore("extract", listed.config, "--json").outcome
    assert (back["exit_code"], back["retried"], back["forwarded"]) == (0, 12, 0)
