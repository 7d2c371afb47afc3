"""The parts of store_scale.py; its docstring tells their goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .bench import Bench, Outcome, Run, Side, remove
from .page_cache import files_below, warm
from .rows import WIDTH

TAKEN, TAKES = 100, 7
"""Rows of a sparse take, and how often it is done cold."""
NIGHT_ROWS = 100
COLD = 0.01
"""Most of the pages that may be in memory still when a read is called cold."""
GROWTH, GROWTH_MIB = 1.10, 128
"""What memory may grow by for ten times the rows: until a segment's 64 MiB and SQLite's cache of 64 MiB are full."""


def _opening(bench: Bench) -> Iterator[Outcome]:
    path, ids = bench.npy
    for state, store in bench.states():
        got = bench.race(
            Side("icecore, array and ids", "open_icecore", {"store": store}),
            Side("icecore, matrix and ids", "matrix_icecore", {"store": store}),
            Side("np.load, mapped", "open_npy", {"path": path}),
            Side("np.load, mapped, and ids.txt", "open_npy", {"path": path, "ids": ids}),
        )
        alone, fair = (got[side]["seconds"] for side in ("np.load, mapped", "np.load, mapped, and ids.txt"))
        found = "; ".join(
            f"{label.removeprefix('icecore, ')}: {alone / run['seconds']:.4f} of np.load's speed, "
            f"{fair / run['seconds']:.3f} of np.load's and ids.txt's"
            for label, run in list(got.items())[:2]
        )
        yield Outcome("a", f"open, {state}", got, found)


def _full_read(bench: Bench) -> Iterator[Outcome]:
    path, _ = bench.npy
    for state, store in bench.states():
        got = bench.race(
            Side("icecore", "read_icecore", {"store": store}),
            Side("np.load.astype", "read_npy", {"path": path}),
            Side("np.load(mmap).astype", "read_npy", {"path": path, "mapped": True}),
        )
        ratios = {label: _ratio(got, label) for label in list(got)[1:]}
        yield Outcome(
            "b",
            f"full read to float32, {state}",
            got,
            _told(ratios),
            {"at least 0.9 of np.load.astype": ratios["np.load.astype"] >= 0.9},
        )


def _random_tenth(bench: Bench) -> Iterator[Outcome]:
    path, _ = bench.npy
    for state, store in bench.states():
        got = bench.race(
            Side("icecore", "tenth_icecore", {"store": store}),
            Side("np.load(mmap)[rows]", "tenth_npy", {"path": path}),
        )
        got |= bench.race(Side("h5py", "tenth_h5py", {"store": store}))
        mapped, shuffled = (_ratio(got, "np.load(mmap)[rows]", key) for key in ("seconds", "shuffled_s"))
        h5py = _ratio(got, "h5py")
        yield Outcome(
            "c",
            f"a random tenth of the rows, {state}",
            got,
            f"{h5py:.0f} times h5py ; of the map's speed {mapped:.2f} with "
            f"ascending rows, {shuffled:.2f} with shuffled ones",
            {"at least 20 times h5py": h5py >= 20, "at least 0.8 of a mapped .npy": min(mapped, shuffled) >= 0.8},
        )


def _sparse_take(bench: Bench) -> Iterator[Outcome]:
    options = {"count": TAKEN, "rounds": TAKES}
    for state, store in bench.states():
        got = bench.race(
            Side("icecore", "take_icecore", {"store": store, **options}),
            bench.lance("take", dataset=bench.dataset, **options),
            rounds=1,
        )
        if max(run["left_in_memory"] for run in got.values()) > COLD:
            raise RuntimeError(f"the page cache did not get cold: {got}; is the folder on a disk?")
        cold, warmed = (_ratio(got, "lance", key) for key in ("cold_s", "warm_s"))
        yield Outcome(
            "d",
            f"{TAKEN} random rows, {state}",
            got,
            f"{cold:.1f} times Lance cold, {warmed:.1f} times warm",
            {"cold no slower than Lance": cold >= 1, "warm at least 10 times Lance": warmed >= 10},
        )


def _against_lance(bench: Bench) -> Iterator[Outcome]:
    for state, store in bench.states():
        warm(files_below(bench.dataset))
        got = bench.race(Side("icecore", "read_icecore", {"store": store}), bench.lance("scan", dataset=bench.dataset))
        ratio = _ratio(got, "lance")
        goals = {"scan at least 4 times Lance": ratio >= 4}
        yield Outcome("e", f"full scan to float32, {state}", got, f"{ratio:.1f} times Lance", goals)
    again = bench.folder / "again"
    got = bench.race(
        Side("icecore", "append_icecore", {"store": again, "rows": bench.rows}, again),
        bench.lance("write", npy=bench.npy[0], dataset=bench.folder / "lance-again"),
        rounds=min(bench.rounds, 2),
    )
    remove(again)
    remove(bench.folder / "lance-again")
    ratio = _ratio(got, "lance")
    found = f"{ratio:.2f} times Lance; without its fsync {got['lance']['unsynced_s'] / got['icecore']['seconds']:.2f}"
    yield Outcome("e", "write of all rows", got, found, {"write at least 4 times Lance": ratio >= 4})


def _catalog_open(bench: Bench) -> Iterator[Outcome]:
    got = bench.race(Side("icecore", "open_icecore", {"store": bench.written}))
    spent = got["icecore"]["open_s"]
    yield Outcome("f", "open the catalog", got, f"{spent * 1000:.1f} ms", {"under 0.3 s": spent < 0.3})


def _idle_sync(bench: Bench) -> Iterator[Outcome]:
    files, store, _ = bench.synced(bench.rows)
    facts = {"folder": files, "files": bench.rows}
    Side("", "walk_bare", facts).run()  # brings the folders into memory
    got = bench.race(Side("icecore", "plan_icecore", {**facts, "store": store}), Side("os.scandir", "walk_bare", facts))
    times = got["icecore"]["seconds"] / got["os.scandir"]["seconds"]
    title = f"sync of {bench.rows:,} files with nothing to do"
    yield Outcome("g", title, got, f"{times:.2f} of the bare walk's time", {"at most twice the bare walk": times <= 2})


def _append(bench: Bench) -> Iterator[Outcome]:
    store, raw = bench.folder / "appended", bench.folder / "raw.h5"
    got = bench.race(
        Side("icecore", "append_icecore", {"store": store, "rows": bench.rows}, store),
        Side("h5py", "append_h5py", {"path": raw, "rows": bench.rows}, raw),
    )
    remove(store)
    remove(raw)
    ratio = _ratio(got, "h5py")
    spent = (got["icecore"]["seconds"] - got["h5py"]["seconds"]) / bench.rows * 1e6
    found = f"{ratio:.2f} of h5py's speed; catalog, ids and checksums cost {spent:.1f} us a row"
    yield Outcome("h", "append, durable", got, found, {"at least 0.8 of raw h5py": ratio >= 0.8})


def _memory(bench: Bench) -> Iterator[Outcome]:
    counts = [bench.rows // 100, bench.rows // 10, bench.rows]
    syncs: list[float] = []
    idles: list[float] = []
    got: dict[str, Run] = {}
    for rows in counts:
        files, store, sync = bench.synced(rows)
        idle = Side("", "plan_icecore", {"folder": files, "store": store, "files": rows}).run()
        got |= {f"first sync, {rows:,}": sync, f"nothing to do, {rows:,}": idle}
        syncs.append(sync["peak_mib"])
        idles.append(idle["peak_mib"])
    found = "; ".join(
        f"{name}: {', '.join(f'{peak:.0f}' for peak in peaks)} MiB at {', '.join(f'{n:,}' for n in counts)} rows"
        for name, peaks in (("first sync", syncs), ("nothing to do", idles))
    )
    goals = {f"memory of {name} is flat": _is_flat(peaks) for name, peaks in (("sync", syncs), ("idle sync", idles))}
    yield Outcome("i", "peak memory by number of rows", got, found, goals)


def _disk(bench: Bench) -> Iterator[Outcome]:
    payload = bench.rows * WIDTH * 2
    got = {"icecore": Side("", "sizes", {"store": bench.written}).run()}
    kinds = {"segments": got["icecore"]["segments"], "catalog": got["icecore"]["catalog"]}
    share = {kind: size / payload for kind, size in kinds.items()}
    total = sum(share.values())
    words = f"segments {share['segments']:.3f}, catalog {share['catalog']:.3f}, total {total:.3f} of the payload"
    each = ", ".join(
        f"{kind} {(size - (payload if kind == 'segments' else 0)) / bench.rows:.0f}" for kind, size in kinds.items()
    )
    goals = {"segments at most 1.05 of the payload": share["segments"] <= 1.05, "total at most 1.05": total <= 1.05}
    yield Outcome("j", "bytes on disk", got, f"{words}; bytes a row beyond it: {each}", goals)


def _nights(bench: Bench) -> Iterator[Outcome]:
    for merging in (False, True):
        store = bench.folder / f"nightly-{merging}"
        facts = {"store": store, "nights": bench.nights, "rows": NIGHT_ROWS, "merging": merging}
        filled = Side("", "nightly", facts, store).run()
        before = bench.race(Side("before", "read_nightly", {"store": store}), rounds=5)["before"]
        merged = Side("", "compact_icecore", {"store": store}).run()
        after = bench.race(Side("after", "read_nightly", {"store": store}), rounds=5)["after"]
        if before["digest"] != after["digest"]:
            raise RuntimeError("compaction changed what is read")
        faster = before["seconds"] / after["seconds"]
        yield Outcome(
            "k",
            f"{bench.nights} nights of {NIGHT_ROWS} rows, {'merging by itself' if merging else 'without merging'}",
            {"before": {**filled, **before}, "compacted, collected": {**merged, **after}},
            f"{filled['live_segments']:.0f} segments of {filled['files']:.0f} files are read; after compact and gc "
            f"{merged['live_segments']:.0f} of {merged['files']:.0f}, {faster:.1f} times as fast to read; "
            f"a night {filled['night_s'] * 1000:.0f} ms, the slowest {filled['slowest_night_s'] * 1000:.0f}",
        )
        remove(store)


def _ratio(got: dict[str, Run], label: str, key: str = "seconds") -> float:
    return got[label][key] / got["icecore"][key]


def _told(ratios: dict[str, float]) -> str:
    return "; ".join(f"{ratio:.2f} of the speed of {label}" for label, ratio in ratios.items())


def _is_flat(peaks: Sequence[float]) -> bool:
    return peaks[-1] <= max(peaks[-2] * GROWTH, peaks[-2] + GROWTH_MIB)


PARTS: dict[str, Callable[[Bench], Iterator[Outcome]]] = {
    "a": _opening,
    "b": _full_read,
    "c": _random_tenth,
    "d": _sparse_take,
    "e": _against_lance,
    "f": _catalog_open,
    "g": _idle_sync,
    "h": _append,
    "i": _memory,
    "j": _disk,
    "k": _nights,
}
ORDER = "hfjabcde gik"
"""Disk is freed at the space."""
NEED_LANCE = "de"
