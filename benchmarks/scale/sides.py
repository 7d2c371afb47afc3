"""Run one side of store_scale.py, icecore's or that of NumPy, h5py or os.scandir, in this process.

    python -m scale.sides NAME JSON

Every side gives seconds and what else it found; the parent holds them against each other.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from . import reading, syncing, writing
from .common import Run
from .rows import peak_mib


def side(name: str) -> Callable[..., Run]:
    """Give a side by its name."""
    (found,) = [getattr(module, name) for module in (reading, syncing, writing) if hasattr(module, name)]
    function: Callable[..., Run] = found
    return function


if __name__ == "__main__":
    result = side(sys.argv[1])(**json.loads(sys.argv[2]))
    print(json.dumps({**result, "peak_mib": peak_mib()}))
