"""Champions: a promotion is there whole or not at all, history stays, and a lost catalog loses no champion."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from icecore.store import (
    Column,
    Contract,
    DiskError,
    FeatureStore,
    LockedError,
    RefusedError,
    catalog,
    champion_of,
    champions,
    discard_bundles,
    ledger,
    promote,
    promoting,
    promotions,
    repair_store,
    rollback,
    store_status,
    verify_store,
)
from icecore.store.lock import retrain_lock, writer_lock

Fill = Callable[..., FeatureStore]
Make = Callable[..., Path]
FILES = {f"{i}.jpg": f"picture {i}" for i in range(4)}
GOLDEN = Path(__file__).parents[1] / "golden" / "store-v1"


@pytest.fixture
def folder(fill: Fill) -> Path:
    store = fill(FILES)
    store.close()
    return store.path


@pytest.fixture
def make(folder: Path, bundle: Make) -> Make:
    """Leave a bundle with a model that its card vouches for."""

    def leave(name: str) -> Path:
        with FeatureStore.open(folder) as store:
            path = bundle(store["photos"], name)
        (path / "model.skops").write_text(f"the model of {name}")
        card = json.loads((path / "card.json").read_text())
        del card["card_sha256"]
        card["files"] = {"model.skops": hashlib.sha256((path / "model.skops").read_bytes()).hexdigest()}
        text = json.dumps(card, sort_keys=True, separators=(",", ":"))
        card["card_sha256"] = hashlib.sha256(text.encode()).hexdigest()
        (path / "card.json").write_text(json.dumps(card))
        return path

    return leave


def in_use(folder: Path, name: str = "ants") -> str | None:
    found = champion_of(folder, name)
    return None if found is None else found.bundle


def rows(folder: Path) -> list[tuple[object, ...]]:
    """What stands in the table, by bare sqlite3."""
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db:
        return db.execute(
            "SELECT name, number, kind, bundle, restores FROM promotions ORDER BY name, number"
        ).fetchall()


def ledger_of(folder: Path, name: str = "ants") -> list[int]:
    lines = (folder / "models" / name / "promotions.jsonl").read_text().splitlines()
    return [json.loads(line)["number"] for line in lines if line]


def lose_the_catalog(folder: Path) -> None:
    for path in folder.glob("catalog.sqlite*"):
        path.unlink()


def test_a_promotion_is_recorded_with_who_when_why_and_what_was_measured(folder: Path, make: Make) -> None:
    make("ants/a")
    assert champion_of(folder, "ants") is None
    assert promotions(folder, "ants") == []
    done = promote(
        folder, "ants", "a", why="first", who="me@here", metrics={"gain": 0.5}, config={"seed": 1}, forced=True
    )
    assert (done.name, done.number, done.kind, done.bundle) == ("ants", 1, "promote", "a")
    assert (done.why, done.who, done.forced, done.restores) == ("first", "me@here", True, None)
    assert (done.metrics, done.config) == ({"gain": 0.5}, {"seed": 1})
    assert done.path == folder / "models/ants/a"
    assert done.card_sha256 == json.loads((done.path / "card.json").read_text())["card_sha256"]
    assert champion_of(folder, "ants") == done
    assert promotions(folder, "ants") == [done]


def test_who_is_user_and_host_by_default(folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    make("ants/a")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "ada")
    monkeypatch.setattr("socket.gethostname", lambda: "mill")
    assert promote(folder, "ants", "a", why="first").who == "ada@mill"


def test_names_have_champions_of_their_own(folder: Path, make: Make) -> None:
    for name in ("ants/a", "bees/a", "ants/b"):
        make(name)
        promote(folder, name.split("/")[0], name, why="because")
    assert {name: promotion.bundle for name, promotion in champions(folder).items()} == {"ants": "b", "bees": "a"}
    assert [promotion.number for promotion in promotions(folder, "ants")] == [2, 1]
    assert promotions(folder, "bees")[0].number == 1


def test_rollback_goes_back_one_champion_at_a_time(folder: Path, make: Make) -> None:
    for name in "abc":
        make(f"ants/{name}")
        promote(folder, "ants", name, why="better")
    assert rollback(folder, "ants", why="c fails on Mondays").restores == 2
    assert in_use(folder) == "b"
    assert rollback(folder, "ants", why="b as well").bundle == "a"
    with pytest.raises(RefusedError, match=r"had no champion before a; name one with --to"):
        rollback(folder, "ants", why="and a?")
    assert rollback(folder, "ants", why="c was right", to="c").restores == 3
    assert [row[1:] for row in rows(folder)] == [
        (1, "promote", "a", None), (2, "promote", "b", None), (3, "promote", "c", None),
        (4, "rollback", "b", 2), (5, "rollback", "a", 1), (6, "rollback", "c", 3),
    ]  # fmt: skip
    assert rollback(folder, "ants", why="again").bundle == "b"


def test_a_promotion_after_a_rollback_can_be_rolled_back_to_what_was_in_use_then(folder: Path, make: Make) -> None:
    for name in "abc":
        make(f"ants/{name}")
    promote(folder, "ants", "a", why="1")
    promote(folder, "ants", "b", why="2")
    rollback(folder, "ants", why="3")
    promote(folder, "ants", "c", why="4")
    assert rollback(folder, "ants", why="5").bundle == "a", "b was not in use when c came"


def test_a_rollback_needs_a_champion_that_was(folder: Path, make: Make) -> None:
    with pytest.raises(RefusedError, match="'ants' has no champion to go back from"):
        rollback(folder, "ants", why="?")
    make("ants/a")
    make("ants/b")
    promote(folder, "ants", "a", why="1")
    with pytest.raises(RefusedError, match="b: was never the champion of 'ants'"):
        rollback(folder, "ants", why="?", to="b")
    assert in_use(folder) == "a"


@pytest.mark.parametrize("damage", ["model", "model gone", "card", "card of another", "no files"])
def test_a_damaged_bundle_is_not_put_in_use(folder: Path, make: Make, damage: str) -> None:
    make("ants/a")
    path = make("ants/b")
    promote(folder, "ants", "a", why="first")
    if damage == "model":
        (path / "model.skops").write_text("the model of ants/c")
    elif damage == "model gone":
        (path / "model.skops").unlink()
    elif damage == "card":
        (path / "card.json").write_text((path / "card.json").read_text().replace('"version": 1', '"version": 2'))
    elif damage == "card of another":
        shutil.copy(folder / "models/ants/a/card.json", path / "card.json")
    else:
        card = json.loads((path / "card.json").read_text())
        body = {**{key: value for key, value in card.items() if key != "card_sha256"}, "files": {}}
        seal = hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        (path / "card.json").write_text(json.dumps({**body, "card_sha256": seal}))
    with pytest.raises(RefusedError, match="a damaged bundle is not put in use"):
        promote(folder, "ants", "b", why="?")
    assert in_use(folder) == "a"
    shutil.rmtree(path)
    with pytest.raises(RefusedError, match="no bundle of 'ants': 'b'; there are a"):
        promote(folder, "ants", "b", why="?")


def test_what_is_asked_for_must_be_one_bundle_of_the_name(folder: Path, make: Make) -> None:
    for name in ("ants/2030-a", "ants/2030-b", "bees/2031"):
        make(name)
    for asked, told in {"2030": "2 bundles of 'ants' begin so", "2031": "no bundle of 'ants'", "": "no bundle"}.items():
        with pytest.raises(RefusedError, match=told):
            promote(folder, "ants", asked, why="?")
    for name in ("", "../ants", "a/b", ".ants"):
        with pytest.raises(RefusedError, match="name "):
            promote(folder, name, "2030-a", why="?")
    assert promote(folder, "ants", folder / "models/ants/2030-a", why="by path").bundle == "2030-a"
    assert promote(folder, "ants", "ants/2030-b", why="by name").bundle == "2030-b"
    with pytest.raises(RefusedError, match="is the champion of 'ants' already"):
        promote(folder, "ants", "2030-b", why="again")


def test_of_two_that_compared_with_the_same_champion_the_second_is_refused(folder: Path, make: Make) -> None:
    for name in "abc":
        make(f"ants/{name}")
    promote(folder, "ants", "a", why="first", expected=0)
    promote(folder, "ants", "b", why="second", expected=1)
    with pytest.raises(RefusedError, match=r"promotion 2 of 'ants' came meanwhile \(expected 1\)"):
        promote(folder, "ants", "c", why="third", expected=1)
    assert in_use(folder) == "b"


def test_promotions_at_once_are_all_entered_each_with_a_number(folder: Path, make: Make) -> None:
    names = [f"b{i}" for i in range(12)]
    for name in names:
        make(f"ants/{name}")
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda name: promote(folder, "ants", name, why=name), names))
    assert sorted(promotion.number for promotion in done) == list(range(1, 13))
    entries, damaged = ledger.read_entries(folder / "models/ants/promotions.jsonl")
    assert (len(entries), damaged) == (12, 0)
    assert [row[3] for row in rows(folder)] == [entry.bundle for entry in entries]


def test_a_writer_at_work_does_not_keep_a_promotion_back(folder: Path, make: Make) -> None:
    make("ants/a")
    with writer_lock(folder, command="a long extraction"):
        promote(folder, "ants", "a", why="meanwhile")
    assert in_use(folder) == "a"


def test_a_promotion_changes_nothing_that_readers_of_features_see(folder: Path, make: Make) -> None:
    make("ants/a")
    before = store_status(folder).digest
    promote(folder, "ants", "a", why="first")
    assert store_status(folder).digest == before
    assert verify_store(folder).ok


def drop_table(folder: Path) -> None:
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db, db:
        db.execute("DROP TABLE promotions")


def test_a_store_of_before_there_were_promotions_reads_as_having_none(folder: Path, make: Make) -> None:
    make("ants/a")
    drop_table(folder)
    assert champion_of(folder, "ants") is None
    assert champions(folder) == {}
    assert verify_store(folder).ok
    promote(folder, "ants", "a", why="first")
    assert in_use(folder) == "a"
    assert verify_store(folder).ok


def test_a_catalog_of_format_1_reads_as_having_none_and_takes_a_promotion(tmp_path: Path, bundle: Make) -> None:
    shutil.copytree(GOLDEN, tmp_path / "features")
    assert champion_of(tmp_path / "features", "ants") is None
    with FeatureStore.open(tmp_path / "features") as store:
        ids = store["photos"].ids()
        path = bundle(store["photos"], "ants/a")
    with pytest.raises(RefusedError, match="names no files"):
        promote(tmp_path / "features", "ants", path, why="it has no model")
    with FeatureStore.open(tmp_path / "features") as store:
        assert store["photos"].ids() == ids


def test_a_store_that_may_not_be_written_tells_its_champion(folder: Path, make: Make) -> None:
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    make("ants/a")
    promote(folder, "ants", "a", why="first")
    folder.chmod(0o555)
    try:
        assert in_use(folder) == "a"
    finally:
        folder.chmod(0o755)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["_enter", "_numbered", "empty_log", "append_entries", "fsync_folder", "_stamp"])
def test_killed_at_any_step_the_old_or_the_new_one_is_champion_and_the_next_promotion_works(
    folder: Path, make: Make, step: str, after: bool
) -> None:
    for name in "abc":
        make(f"ants/{name}")
    promote(folder, "ants", "a", why="first")
    (folder / "models/ants/promotions.jsonl").unlink()  # so that a folder's entry is to be fsynced
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(folder), step, str(int(after))], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert in_use(folder) == ("a" if step in {"_enter", "_numbered", "_stamp"} else "b")
    assert verify_store(folder).ok
    promote(folder, "ants", "c", why="third")
    assert in_use(folder) == "c"
    assert ledger_of(folder) == list(range(1, len(promotions(folder, "ants")) + 1)), "the next one noted what was not"
    lose_the_catalog(folder)
    repair_store(folder)
    assert in_use(folder) == "c"


_KILLED = textwrap.dedent("""
    import os, signal, sys
    from icecore.store import catalog, promote, promoting, sealed_lines
    folder, step, after = sys.argv[1], sys.argv[2], sys.argv[3] == "1"
    module = {"empty_log": catalog, "fsync_folder": sealed_lines}.get(step, promoting)
    real = getattr(module, step)
    def die(*args):
        if after:
            real(*args)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, step, die)
    promote(folder, "ants", "b", why="second")
""")


def test_the_whole_history_comes_back_when_the_catalog_is_made_anew(folder: Path, make: Make) -> None:
    for name in ("ants/a", "ants/b", "bees/a"):
        make(name)
        promote(folder, name.split("/")[0], name, why="because", metrics={"of": name})
    rollback(folder, "ants", why="worse")
    before = {name: promotions(folder, name) for name in ("ants", "bees")}
    lose_the_catalog(folder)
    assert repair_store(folder).odd_ledgers == ()
    assert {name: promotions(folder, name) for name in ("ants", "bees")} == before
    assert verify_store(folder).ok


def test_what_only_a_damaged_catalog_tells_is_kept_where_the_bundle_bears_it_out(folder: Path, make: Make) -> None:
    """The ledger lacks the last promotion, as after a kill; and a row was made up."""
    for name in "ab":
        make(f"ants/{name}")
        promote(folder, "ants", name, why="because")
    path = folder / "models/ants/promotions.jsonl"
    path.write_bytes(b"\n".join(line for line in path.read_bytes().split(b"\n") if b'"number":2' not in line))
    with closing(sqlite3.connect(folder / "catalog.sqlite")) as db, db:
        db.execute("UPDATE meta SET value = '0' WHERE key = 'next_content'")  # makes the catalog damaged
        db.execute("INSERT INTO promotions SELECT name, 9, kind, bundle, 'other', created, who, why, forced, restores, "
                   "metrics, config FROM promotions WHERE number = 1")  # fmt: skip
    repair_store(folder, dry_run=True)
    assert ledger_of(folder) == [1], "a dry run writes nothing"
    assert repair_store(folder).rebuilt
    assert [row[1:4] for row in rows(folder)] == [(1, "promote", "a"), (2, "promote", "b")]


def test_a_line_of_the_ledger_that_was_altered_or_cut_off_is_left_and_told(folder: Path, make: Make) -> None:
    for name in "abc":
        make(f"ants/{name}")
        promote(folder, "ants", name, why="because")
    path = folder / "models/ants/promotions.jsonl"
    text = path.read_bytes().replace(b'"bundle":"b"', b'"bundle":"c"')
    path.write_bytes(text.rstrip()[:-20])
    lose_the_catalog(folder)
    assert repair_store(folder).odd_ledgers == ("models/ants/promotions.jsonl",)
    assert in_use(folder) == "a"
    promote(folder, "ants", "b", why="again")
    assert ledger.read_entries(path)[0][-1].bundle == "b", "what is added stands on a line of its own"


def test_a_catalog_put_back_from_a_copy_is_given_what_came_since(folder: Path, make: Make, tmp_path: Path) -> None:
    for name in "abc":
        make(f"ants/{name}")
    promote(folder, "ants", "a", why="1")
    shutil.copy(folder / "catalog.sqlite", tmp_path / "copy")
    promote(folder, "ants", "b", why="2")
    lose_the_catalog(folder)
    shutil.copy(tmp_path / "copy", folder / "catalog.sqlite")
    assert promote(folder, "ants", "c", why="3").number == 3
    assert [row[3] for row in rows(folder)] == ["a", "b", "c"]


def test_a_repair_that_replaces_the_catalog_meanwhile_does_not_lose_the_promotion(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("ants/a")
    real, done = promoting.read_promotions, []

    def repaired(db: sqlite3.Connection, *args: object) -> object:
        found = real(db, *args)  # type: ignore[arg-type]
        if found and not done:  # committed, and not yet looked whether the catalog is the same
            done.append(1)
            lose_the_catalog(folder)
            repair_store(folder)
        return found

    monkeypatch.setattr(promoting, "read_promotions", repaired)
    promote(folder, "ants", "a", why="first")
    assert done
    assert in_use(folder) == "a"


def test_a_ledger_that_cannot_be_written_keeps_no_promotion_back_and_says_so(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make("ants/a")
    make("ants/b")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(promoting, "append_entries", full)
        promote(folder, "ants", "a", why="first")
    assert in_use(folder) == "a"
    assert "not yet noted" in caplog.text
    promote(folder, "ants", "b", why="second")
    assert ledger_of(folder) == [1, 2]


def test_a_catalog_that_cannot_be_written_keeps_the_old_champion(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make("ants/a")
    make("ants/b")
    promote(folder, "ants", "a", why="first")
    connect = catalog.connect

    def read_only(path: Path, *, write: bool = False) -> sqlite3.Connection:
        db = connect(path, write=write)
        db.execute("PRAGMA query_only=ON")
        return db

    monkeypatch.setattr(catalog, "connect", read_only)
    with pytest.raises(DiskError, match="readonly"):
        promote(folder, "ants", "b", why="second")
    assert (in_use(folder), ledger_of(folder)) == ("a", [1])


def age(path: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(path / "card.json", (then, then))


def test_bundles_go_that_are_neither_in_use_nor_lately_used_nor_new(folder: Path, make: Make) -> None:
    for name in ("a", "b", "c", "old", "new"):
        age(make(f"ants/{name}"), 1 if name == "new" else 100)
    age(make("bees/only"), 100)
    for name in "abc":
        promote(folder, "ants", name, why="better")
    rollback(folder, "ants", why="worse")
    would = discard_bundles(folder, keep_promotions=2, keep_days=30, dry_run=True)
    assert [(one.name, one.bundle) for one in would] == [("ants", "a"), ("ants", "old"), ("bees", "only")]
    assert (folder / "models/ants/a").is_dir(), "a dry run deletes nothing"
    expected = sum(file.stat().st_size for file in (folder / "models/ants/a").iterdir())
    assert would[0].bytes == expected > 0
    assert [one.bundle for one in discard_bundles(folder, "ants", keep_promotions=2, keep_days=30)] == ["a", "old"]
    assert sorted(path.name for path in (folder / "models/ants").iterdir() if path.is_dir()) == ["b", "c", "new"]
    assert [one.bundle for one in discard_bundles(folder, keep_promotions=1, keep_days=0)] == ["c", "new", "only"]
    assert in_use(folder) == "b"


def test_what_bundles_are_not_to_be_deleted_must_be_said_in_numbers_that_can_be(folder: Path, make: Make) -> None:
    make("ants/a")
    for wrong in ({"keep_promotions": 0}, {"keep_days": -1.0}):
        with pytest.raises(RefusedError, match="1 promotion or more is kept, and 0 to 36,500 days"):
            discard_bundles(folder, **wrong)  # type: ignore[arg-type]
    with pytest.raises(RefusedError, match="no bundles under the name 'bees'; there are ants"):
        discard_bundles(folder, "bees")


def test_features_of_a_bundle_stay_until_it_goes(
    fill: Fill, folder: Path, make: Make, contract: Contract, columns: tuple[Column, Column]
) -> None:
    path = make("ants/a")
    fill({**FILES, "new.jpg": "new"}).close()
    with FeatureStore.open(folder) as store:
        assert [kept.version for kept in store.collect().sets[0].kept] == [2, 1]
        age(path, 1)
        discard_bundles(folder, keep_days=0)
        assert [kept.version for kept in store.collect().sets[0].kept] == [2]


def test_the_lock_of_a_retraining_names_its_holder_and_keeps_no_writer_waiting(folder: Path, make: Make) -> None:
    home = make("ants/a").parent
    with retrain_lock(home, command="icecore retrain"), writer_lock(folder, command="icecore extract"):
        told = rf"ants: being retrained by pid {os.getpid()} on .*\(icecore retrain\)"
        with pytest.raises(LockedError, match=told), retrain_lock(home):
            pass
        promote(folder, "ants", "a", why="meanwhile")
    with retrain_lock(home):
        pass
    assert not (home / "retrain.json").exists()


def test_the_digest_of_a_version_is_that_of_the_status(fill: Fill, folder: Path) -> None:
    with FeatureStore.open(folder) as store:
        first = store["photos"].digest()
        assert first == store_status(folder).sets[0].summary.digest
        fill({**FILES, "new.jpg": "new"}).close()
        assert store["photos"].digest() == store_status(folder).sets[0].summary.digest != first
        assert store["photos"].as_of(1).digest() == first
