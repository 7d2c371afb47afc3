"""What can go wrong between an image folder and its features, each with the facts as fields."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "BackboneNotFoundError",
    "CompileError",
    "DeviceError",
    "ExtractError",
    "ImageError",
    "ImageErrorKind",
    "NumericsMovedError",
    "PairError",
    "PreprocessError",
    "ProcessLostError",
    "RemovalRefusedError",
    "SourceLostError",
    "TraceError",
    "TuningDivergedError",
    "TuningError",
    "UnknownLayerError",
    "UnpoolableLayerError",
    "UntraceableError",
    "WatchError",
    "WeightsError",
    "did_you_mean",
    "first_line",
]

ImageErrorKind = Literal["read", "transient", "decode", "too-large", "unsupported", "value"]


class ExtractError(Exception):
    """Anything that extraction refuses or finds wrong; can be pickled, fields and all."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), self.args, self.__dict__)


class PairError(ExtractError, ImportError):
    """torch and torchvision are absent or do not fit together."""


class BackboneNotFoundError(ExtractError, LookupError):
    """No network of this name can be built."""


class WeightsError(ExtractError, ValueError):
    """The weights cannot be read, are not those of the architecture, or lack what the layers need."""


class PreprocessError(ExtractError, ValueError):
    """The preprocessing asked for is unknown or impossible."""


class UnknownLayerError(ExtractError, LookupError):
    """The backbone has no layer that matches."""


class UnpoolableLayerError(ExtractError, ValueError):
    """The layer exists, but its output is not one map, token list or vector an image."""


class TraceError(ExtractError, TypeError):
    """The network cannot be followed from layer to layer."""


class UntraceableError(TraceError):
    """torch.fx cannot follow the network; forward hooks may do."""


class DeviceError(ExtractError, RuntimeError):
    """The device is not there or cannot compute in the precision asked for."""


class ProcessLostError(DeviceError):
    """A process with a device of its own ended before its time, without a word."""


class CompileError(ExtractError, RuntimeError):
    """The network cannot be compiled here, or its compiled form gives other features."""


class TuningError(ExtractError, ValueError):
    """Fine-tuning cannot be done as asked: options, rows or network do not allow it."""


class TuningDivergedError(ExtractError, ArithmeticError):
    """The loss became NaN or infinite; says at which step. What was best before is kept."""


class WatchError(ExtractError, OSError):
    """The log or the heartbeat of a run cannot be written; told before the run begins.

    ``what`` says which of the two: ``log`` or ``heartbeat``.
    """

    def __init__(self, what: str, path: object, exc: OSError) -> None:
        self.what, self.path = what, path
        super().__init__(exc.errno, f"{path}: the {what} cannot be written ({exc.strerror}); nothing was begun")

    def __str__(self) -> str:
        return f"{self.args[1]}: make its folder and let this user write there, or name another file"


class ImageError(ExtractError, ValueError):
    """One image cannot be used; the others can.

    Parameters
    ----------
    kind
        ``read`` (the file system refuses), ``transient`` (it may do so no more in a minute: tried again by every
        run), ``decode`` (not a whole image), ``too-large``, ``unsupported`` (pixels without a policy), or
        ``value`` (a feature that the dtype cannot hold).
    reason
        Short and the same on every run: no addresses, no paths.
    """

    def __init__(self, kind: ImageErrorKind, reason: str) -> None:
        self.kind: ImageErrorKind = kind
        self.reason = reason
        super().__init__(kind, reason)

    def __str__(self) -> str:
        return self.reason


class SourceLostError(ExtractError, OSError):
    """File after file cannot be read, for reasons that lie in the disk or the network, not in the files."""

    def __init__(self, image_id: str, reason: str, *, failures: int) -> None:
        self.image_id, self.reason, self.failures = image_id, reason, failures
        super().__init__(image_id, reason, failures)

    def __str__(self) -> str:
        return (
            f"{self.failures} files in a row could not be read, the last one {self.image_id!r} ({self.reason}): the "
            f"source is not there; what is finished is kept, so run again when it is back"
        )


class NumericsMovedError(ExtractError, RuntimeError):
    """The canaries of a generation give other features than they did: something that computes them has changed.

    Parameters
    ----------
    told
        Which image, which column, by how much.
    then, now
        Versions of the libraries when it was taken, and of this run.
    """

    def __init__(self, told: str, then: Mapping[str, str], now: Mapping[str, str]) -> None:
        self.then, self.now = dict(then), dict(now)
        names = sorted({*then, *now})
        changed = [f"{name} {then.get(name)} -> {now.get(name)}" for name in names if then.get(name) != now.get(name)]
        libraries = ", ".join(changed) or "no library that is recorded, so look at driver, device or system libraries"
        super().__init__(
            f"the canary {told}; no feature was written, because rows of two kinds must not mix; changed since: "
            f"{libraries}; put back what changed, or compute all images anew beside the old ones with `--set set=NAME`"
        )


class RemovalRefusedError(ExtractError, ValueError):
    """So many images vanished from the source that an unmounted disk is likelier than a clean-up.

    ``where`` says where they were looked for: ``under /srv/photos``, ``in images.csv``.
    """

    def __init__(self, set_name: str, where: str, *, gone: int, total: int, limit: float) -> None:
        self.gone, self.total, self.limit = gone, total, limit
        super().__init__(
            f"set {set_name!r}: {gone:,} of its {total:,} images are no longer {where}, more than the share of "
            f"{limit:g} that one run may remove; nothing was changed: check the source, or allow it with "
            f"`--set source.max_removed=1`, or leave them where they are with `--prune keep`"
        )


def _restore(kind: type[ExtractError], args: tuple[Any, ...], facts: Mapping[str, Any]) -> ExtractError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Give ``; did you mean 'x'?`` for a name close to a known one, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(exc: BaseException) -> str:
    """Give what an exception says, up to its first line break; its kind where it says nothing."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
