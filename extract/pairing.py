"""Do the installed torch and torchvision fit together? Says so in one line, before anything else fails.

Every torchvision release is compiled against one torch release. Beside another one it fails late and
obscurely (``operator torchvision::nms does not exist``). ``python -m icecore.extract.pairing`` is silent and
exits 0 where the pair works, and prints one line and exits 1 where it does not.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata

from .errors import PairError

__all__ = ["require_pair"]

_INSTALL = "pip install 'icecore[extract]'"
_CURE = "install both with `pip install -c constraints.txt torch torchvision`"


@cache
def require_pair() -> None:
    """Return when torch and torchvision are installed, fit together and can be imported.

    The metadata are compared first, which costs milliseconds; then both are imported, which proves it.

    Raises
    ------
    PairError
        In one line: what is missing, or both versions and the cure.
    """
    torch, torchvision = _version("torch"), _version("torchvision")
    wanted = _wanted_torch(torch)
    if wanted is not None:
        raise PairError(f"torchvision {torchvision} needs torch {wanted}, found torch {torch}: {_CURE}")
    for name in ("torch", "torchvision"):
        try:
            importlib.import_module(name)
        except Exception as exc:
            found = f"torch {torch} and torchvision {torchvision}"
            raise PairError(f"{found} do not work together ({_first_line(exc)}): {_CURE}") from exc


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as exc:
        raise PairError(f"{package} is not installed, and extraction needs it: {_INSTALL}") from exc


def _wanted_torch(found: str) -> str | None:
    """Give the torch that torchvision declares when ``found`` is not it, else None."""
    try:
        from packaging.requirements import Requirement
    except ImportError as exc:
        raise PairError(f"packaging is not installed, and extraction needs it: {_INSTALL}") from exc
    for line in metadata.requires("torchvision") or ():
        wanted = Requirement(line)
        applies = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if wanted.name == "torch" and applies and not wanted.specifier.contains(found, prereleases=True):
            return str(wanted.specifier)
    return None


def _first_line(exc: BaseException) -> str:
    text = str(exc).strip() or type(exc).__name__
    return text.splitlines()[0]


def _main() -> None:
    try:
        require_pair()
    except PairError as exc:
        raise SystemExit(str(exc)) from exc


if __name__ == "__main__":
    _main()
