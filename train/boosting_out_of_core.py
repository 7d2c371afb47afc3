"""Search and fit XGBoost out of core: rows binned into pages that lie in files.

The bins are cut by quantiles of a sample of its rows, so
that no sketch of all of them is needed. XGBoost keeps the binned rows in a file and reads them page by page, for each
level of each tree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import clear_frames
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .block_task import BlockTask
from .blocks import Positions
from .boosting import ROUNDS, boost, estimator_params, objective_of, trees_of
from .frames import Frame, pca_of, scaler_of
from .linear_search import class_weights
from .models import ModelSpec
from .settings import params_of

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

__all__ = ["LEAST_CUT", "LEAST_ROWS", "BoostingOutOfCore", "page_rows", "working_bytes"]

Floats = NDArray[np.float32]
CUT_BY, LEAST_CUT = 4_096, 512
"""Rows whose quantiles are the borders of the bins: at most, and where memory is short."""
CUT_BYTES = 42
"""What a value of such a row takes, with its sketch."""
CUT_SHARE = 0.2
"""Part of the memory that they may take."""
PAGES = 5
"""Pages that XGBoost holds at once, at most, counting those that it reads ahead."""
PAGE_SHARE = 0.4
"""Part of the memory that pages may take."""
MOST_ROWS, LEAST_ROWS = 1 << 16, 512
"""Rows of a page."""


def page_rows(left: int, width: int) -> int:
    """Give the rows of a page: two bytes a binned value of each page, and eight while it is made."""
    return int(np.clip(PAGE_SHARE * left / (width * (2 * PAGES + 8)), LEAST_ROWS, MOST_ROWS))


def cut_rows(left: int, width: int) -> int:
    """Give the rows whose quantiles are the borders of the bins."""
    return int(np.clip(CUT_SHARE * left / (width * CUT_BYTES), LEAST_CUT, CUT_BY))


def working_bytes(rows: int, width: int, classes: int, depth: int, page: int, cut: int) -> int:
    """Estimate what a run of XGBoost holds: gradients, scores, histograms, quantiles, pages."""
    columns = 1 if classes == 2 else classes
    histograms = (1 << min(depth, 16)) * width * 32 * 16
    return (
        rows * (20 * columns + 24)
        + 2 * histograms
        + width * CUT_BYTES * min(rows, cut)
        + page * width * (2 * PAGES + 8)
    )


class BoostingOutOfCore:
    """XGBoost on one selection of layers."""

    def __init__(self, task: BlockTask, spec: ModelSpec, values: Sequence[Any]) -> None:
        self._task, self._spec = task, spec
        self._points = [params_of(spec, value) for value in values]
        steps = task.options.steps
        self._frames = task.frames(min(steps.pca, task.blocks.n_features), whiten=steps.whiten)

    def scores(self) -> Iterator[Floats]:
        """Train for all folds, and give the out-of-fold scores of one point after the other, (m, columns) float32.

        The array is the same each time; between folds the scores lie in files.
        """
        from threadpoolctl import threadpool_limits

        task = self._task
        with threadpool_limits(1), ThreadPoolExecutor(self._at_once()) as pool:
            paths = list(pool.map(self._search_fold, range(len(task.folds))))
        scores = np.empty((len(task.training), 1 if task.k == 2 else task.k), dtype=np.float32)
        for at in range(len(self._points)):
            for path, (_, test) in zip(paths, task.folds, strict=True):
                scores[test] = np.load(path, mmap_mode="r")[at]
            yield scores

    def fit(self, which: int) -> tuple[Pipeline, tuple[str, ...]]:
        """Fit on all training rows with one of the points."""
        from sklearn.pipeline import Pipeline

        steps, point = self._task.options.steps, self._points[which]
        frame = self._frames[-1]
        with _Binned(self._task, frame, -1, self._max_bin) as matrix:
            model = self._spec.build(self._task.options).set_params(**estimator_params(point, frame.width))
            booster = boost(model, matrix.data, objective_of(model, self._task.rows.y_train))
        model.load_model(booster.save_raw("json"))
        before = [("scale", scaler_of(frame, steps))]
        if frame.turn is not None:
            before.append(("pca", pca_of(frame, steps)))
        return Pipeline([*before, ("model", model)]), ()

    def notes(self) -> tuple[str, ...]:
        """There is nothing to know of the search."""
        return ()

    @property
    def _max_bin(self) -> int:
        return int(self._spec.build(self._task.options).max_bin)

    def _at_once(self) -> int:
        """Give how many folds may be at work: each has a run of its own."""
        task, width = self._task, self._frames[-1].width
        depth = int(max(point.get("max_depth", 6) for point in self._points))
        page = page_rows(task.left, width)
        one = working_bytes(len(task.training), width, task.k, depth, page, cut_rows(task.left, width))
        return int(np.clip(task.left // one, 1, min(task.threads, len(task.folds))))

    def _search_fold(self, which: int) -> Path:
        """Train a run for all numbers of rounds, as ``boosting`` does, and keep the scores of the other rows."""
        task, points = self._task, self._points
        test = task.training[task.folds[which][1]]
        found = np.empty((len(points), len(test), 1 if task.k == 2 else task.k), dtype=np.float32)
        order = sorted(range(len(points)), key=lambda i: (trees_of(points[i]), points[i][ROUNDS]))
        frame, boosters = self._frames[which], {}
        with _Binned(task, frame, which, self._max_bin) as matrix:
            for _, run in groupby(order, key=lambda i: trees_of(points[i])):
                indices = list(run)  # the last has the most rounds
                model = self._spec.build(task.options)
                model.set_params(**estimator_params(points[indices[-1]], frame.width))
                boosters[tuple(indices)] = boost(model, matrix.data, objective_of(model, task.rows.y_train))
        self._score(found, frame, boosters, test)
        path = task.folder / f"scores-{which}.npy"
        np.save(path, found)
        return path

    def _score(self, found: Floats, frame: Frame, boosters: dict[tuple[int, ...], Any], test: Positions) -> None:
        place = np.empty(len(self._task.place), dtype=np.intp)
        place[test] = np.arange(len(test))
        for chunk, rows in _inputs(self._task, frame, test):
            for indices, booster in boosters.items():
                for i in indices:
                    rounds = (0, int(self._points[i][ROUNDS]))
                    margin = booster.inplace_predict(rows, iteration_range=rounds, predict_type="margin")
                    found[i, place[chunk]] = margin.reshape(len(chunk), -1)


def _inputs(task: BlockTask, frame: Frame, positions: Positions) -> Iterator[tuple[Positions, Floats]]:
    """Give the inputs of rows block by block, with their positions."""
    for chunk in task.blocks.chunks(positions):
        Z = task.blocks.read(chunk)
        Z -= frame.shift
        yield chunk, frame.inputs(Z)


class _Binned:
    """The binned rows of a learner, in files that are gone when it is left."""

    def __init__(self, task: BlockTask, frame: Frame, without: int, max_bin: int) -> None:
        self._task, self._frame, self._without, self._max_bin = task, frame, without, max_bin

    def __enter__(self) -> _Binned:
        import xgboost

        task = self._task
        kept = task.training[task.part[task.training] != self._without]
        weights = class_weights(task.rows.y[kept], task.k, task.options)
        weigh = None if task.options.class_weight is None else lambda y: weights[y].astype(np.float32)
        most = cut_rows(task.left, self._frame.width)
        sample = kept[np.linspace(0, len(kept) - 1, min(len(kept), most)).astype(np.intp)]
        parts = list(_inputs(task, self._frame, sample))
        rows, y = np.vstack([part for _, part in parts]), task.rows.y[np.concatenate([chunk for chunk, _ in parts])]
        del parts
        cuts = xgboost.QuantileDMatrix(
            rows, y, weight=None if weigh is None else weigh(y), max_bin=self._max_bin, nthread=1
        )
        del rows
        self._folder = TemporaryDirectory(dir=task.folder)
        try:
            pages = _pages(task, self._frame, kept, weigh, str(Path(self._folder.name) / "rows"))
            self.data = xgboost.ExtMemQuantileDMatrix(pages, max_bin=self._max_bin, ref=cuts, nthread=1)
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(self, kind: object, error: object, trace: TracebackType | None) -> None:
        clear_frames(trace)  # what failed must not keep the matrix: it removes its file itself, before the folder goes
        del self.data
        self._folder.cleanup()


def _pages(
    task: BlockTask,
    frame: Frame,
    positions: Positions,
    weigh: Callable[[NDArray[np.int64]], Floats] | None,
    prefix: str,
) -> Any:
    """Give the iterator from which XGBoost takes its pages."""
    import xgboost

    size = max(page_rows(task.left, frame.width), task.blocks.plan.rows)

    class Pages(xgboost.DataIter):
        def __init__(self) -> None:
            self._source = _inputs(task, frame, positions)
            super().__init__(cache_prefix=prefix, release_data=True)

        def reset(self) -> None:
            self._source = _inputs(task, frame, positions)

        def next(self, input_data: Callable[..., None]) -> bool:
            page = np.empty((min(size, len(positions)), frame.width), dtype=np.float32)
            chunks, filled = [], 0
            while filled + task.blocks.plan.rows <= len(page) or not filled:
                chunk, rows = next(self._source, (None, None))
                if chunk is None or rows is None:
                    break
                page[filled : filled + len(chunk)] = rows
                chunks.append(chunk)
                filled += len(chunk)
            if not filled:
                return False
            y = task.rows.y[np.concatenate(chunks)]
            input_data(data=page[:filled], label=y, weight=None if weigh is None else weigh(y))
            return True

    return Pages()
