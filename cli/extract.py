"""``icecore extract``: bring a feature set up to date with an image folder or a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .app import command as make_command
from .drifting import drift_facts, drift_of_run, drift_text, version_of
from .exits import Exit, Outcome
from .options import config_argument, set_option
from .running import exit_code_of
from .table import one_line
from .watching import show_progress, watch_run

if TYPE_CHECKING:
    from icecore.extract import ExtractReport, Watch
    from icecore.extract.preprocess import Decode
    from icecore.extract.report import Prune
    from icecore.store import Scan

    from .config import ExtractConfig, Source

__all__ = ["command", "extract_from_config", "local_path", "scan_of_config"]


@make_command(example="icecore extract configs/nightly.toml --dry-run", tells_events=True)
@config_argument
@set_option
@click.option("--dry-run", is_flag=True, help="Print the sync plan and write nothing.")
@click.option("--rehash", is_flag=True, help="Read every file, whatever its size and times say.")
@click.option("--retry-failed", is_flag=True, help="Try recorded failures again although their files are as they were.")
@click.option(
    "--prune",
    type=click.Choice(["tombstone", "keep"]),
    help="What becomes of images that the source has no more: they leave the current version, or stay. "
    "By default source.prune of CONFIG.",
)
@click.option(
    "--decode",
    type=click.Choice(["exact", "fast", "nvjpeg"]),
    help="Every pixel by Pillow; a fraction of large JPEG files; or JPEG files on the CUDA device. By default "
    "preprocess.decode of CONFIG.",
)
def extract(
    config: Path,
    overrides: tuple[str, ...],
    dry_run: bool,
    rehash: bool,
    retry_failed: bool,
    prune: Prune | None,
    decode: Decode | None,
) -> Outcome:
    """Push new and changed images through the frozen network of CONFIG and store what its layers give."""
    from .config import ExtractConfig, load_config

    loaded = load_config(ExtractConfig, config, overrides)
    before = version_of(loaded) if loaded.drift is not None and not dry_run else None
    with watch_run(loaded, quiet=dry_run, command=f"icecore extract {config}") as watch:
        report = extract_from_config(
            loaded,
            config.parent,
            watch=watch,
            dry_run=dry_run,
            rehash=rehash,
            retry_failed=retry_failed,
            prune=prune,
            decode=decode,
            command=f"icecore extract {config}",
        )
        failed = len(report.failures) + report.plan.failed
        compared = drift_of_run(loaded, before) if loaded.drift is not None and not dry_run else None
        code = Exit.SOME_IMAGES_FAILED if failed and not dry_run else Exit.DONE
        if compared is not None and compared.fails:
            code = Exit.DRIFTED
        facts, text = _facts(report), _plan_text(report) if dry_run else _done_text(report)
        if compared is not None:
            facts |= {"drift": drift_facts(compared.verdict), "drift_not_compared": compared.why_not}
            text += "\n" + (drift_text(compared.verdict) if compared.verdict else f"  drift: {compared.why_not}")
        outcome = Outcome(code, facts, text, nothing_to_do=_is_nothing(report))
        watch.exit_code = exit_code_of(outcome)
    return outcome


def extract_from_config(
    config: ExtractConfig, folder: Path, *, prune: Prune | None = None, watch: Watch | None = None, **options: Any
) -> ExtractReport:
    """Run the extraction that a config describes; ``folder`` is where the config lies, and ``watch`` listens to it."""
    from icecore.extract import extract_images

    backbone, compute = config.backbone, config.compute
    scan = scan_of_config(config.source)
    with show_progress("extract", watch) as events:
        return extract_images(
            config.store,
            config.set,
            scan,
            backbone_name=backbone.name,
            weights=local_path(backbone.weights, folder),
            layers=backbone.layers,
            poolings=backbone.pooling,
            dtype=backbone.dtype,
            preprocess=config.preprocess.like,
            preprocess_changes=config.preprocess.changes(),
            arguments=backbone.arguments,
            views=config.preprocess.views,
            store_views=config.preprocess.store_views,
            device=compute.device,
            precision=compute.precision,
            batch_size=compute.batch_size,
            compilation=compute.compilation,
            threads=compute.threads,
            max_pixels=compute.max_pixels,
            prune=prune or config.source.prune,
            max_removed=config.source.max_removed,
            events=events,
            **options,
        )


def scan_of_config(source: Source) -> Scan:
    """Give the source of images that a config names."""
    from icecore.store import scan_manifest, scan_source

    if source.manifest is not None:
        return scan_manifest(source.manifest, root=source.folder, extensions=source.extensions)
    assert source.folder is not None  # one of the two is there, says the config
    return scan_source(source.folder, extensions=source.extensions)


def local_path(weights: str | None, folder: Path) -> str | Path | None:
    """Take weights for a file, relative to ``folder``, where they look like one; else for a torchvision name."""
    if weights is not None and (weights.endswith((".pth", ".pt", ".safetensors")) or "/" in weights):
        return folder / Path(weights).expanduser()
    return weights


def _facts(report: ExtractReport) -> dict[str, Any]:
    plan = report.plan
    return {
        "set": report.set_name,
        "dry_run": report.dry_run,
        "version": report.version,
        **{name: getattr(plan, name) for name in _COUNTS},
        "to_read": plan.to_read,
        "gone": plan.vanished,
        "uncovered": report.uncovered,
        "forwarded": report.forwarded,
        "linked": report.linked,
        "removed": report.removed,
        "kept": report.kept,
        "prune": report.prune,
        "failures": [{"id": f.id, "kind": f.kind, "reason": f.reason} for f in report.failures],
        "columns": [{"name": c.name, "width": c.width} for c in report.columns],
        "contract_hash": report.contract_hash,
        "differences": [{"field": d.field, "before": d.theirs, "now": d.ours} for d in plan.differences],
        "device": report.device,
        "precision": report.precision,
        "precision_why": report.precision_why,
        "decode": report.decode,
        "decoder": report.decoder,
        "decoded": dict(report.decoded),
        "source": dict(report.source),
        "seconds": round(report.seconds, 3),
        "images_per_second": round(report.images_per_second, 2),
        "batch_size": report.batch_size,
        "batch_size_why": report.batch_size_why,
        "engine": report.engine,
        "why_not_compiled": report.why,
        "busy": {stage: round(share, 3) for stage, share in report.busy.items()},
        "bound_by": report.bound_by,
    }


_COUNTS = ("added", "changed", "racy", "backfill", "retried", "failed", "unchanged")


def _plan_text(report: ExtractReport) -> str:
    plan = report.plan
    lines = [*_differences(report), f"{report.set_name}: {plan.to_read:,} files to read, {plan.unchanged:,} unchanged"]
    told = {
        "added": "new",
        "changed": "changed on disk",
        "racy": "too fresh to trust their times, or read on request",
        "backfill": "unchanged on disk, but lack features asked for",
        "retried": "failed before, tried again",
        "failed": "failed before, left alone (--retry-failed tries them)",
    }
    lines += [f"  {getattr(plan, name):>8,}  {meaning}" for name, meaning in told.items() if getattr(plan, name)]
    if plan.broken:
        lines.append(f"  {len(plan.broken):>8,}  links or special files that cannot be read")
    if plan.vanished:
        source = "manifest" if "manifest" in report.source else "folder"
        lines.append(f"  {plan.vanished:>8,}  gone from the {source}{', kept' if report.kept else ''}")
    columns = ", ".join(f"{column.name} ({column.width})" for column in report.columns)
    lines += _hooks(report)
    how = f"{report.device}, {report.precision}{_decoding(report)}"
    return "\n".join([*lines, f"  columns: {columns}", f"  on {how}; nothing was written"])


def _is_nothing(report: ExtractReport) -> bool:
    """Say whether the source is as it was."""
    plan = report.plan
    return not (plan.to_read or plan.broken or (plan.gone and report.prune != "keep"))


def _decoding(report: ExtractReport) -> str:
    return {"fast": ", decoded fast", "nvjpeg": ", decoded by nvJPEG"}.get(report.decode, "")


def _differences(report: ExtractReport) -> list[str]:
    """Say that this is another contract than the one that readers saw before the run."""
    if not report.plan.differences:
        return []
    lines = [f"{report.set_name}: the contract is not the one that readers see, so features are computed anew:"]
    lines += [f"  {d.field}: {d.theirs!r} -> {d.ours!r}" for d in report.plan.differences]
    return [*lines, "  readers move once every image is covered; `--set set=NAME` keeps both"]


def _hooks(report: ExtractReport) -> list[str]:
    """Say how the layers are taken, where that is not the usual way."""
    told = report.source.get("layers")
    return [f"  layers by {one_line(told)}"] if told else []


def _done_text(report: ExtractReport) -> str:
    plan, lines = report.plan, _differences(report)
    if _is_nothing(report):
        lines.append(f"{report.set_name}: nothing to do, {plan.unchanged:,} images unchanged")
    else:
        parts = [
            f"{report.forwarded:,} forwarded",
            f"{report.linked:,} known by content",
            f"{plan.unchanged:,} unchanged",
        ]
        parts += [f"{report.removed:,} removed"] if report.removed else []
        lines.append(f"{report.set_name}: {', '.join(parts)}; version {report.version}")
        if report.forwarded:
            rate = f"{report.images_per_second:.1f} images/s"
            engine = report.engine + (f" ({one_line(report.why)})" if report.why else "")
            how = f"{report.device}, {report.precision}, batches of {report.batch_size}, {engine}{_decoding(report)}"
            lines.append(f"  {report.seconds:.1f} s, {rate} on {how}")
            if report.decoded:
                counts = report.decoded
                lines.append(f"  decoded on the device: {counts['device']:,}, by Pillow: {counts['pillow']:,}")
            if report.batch_size_why:
                lines.append(f"  batch size {report.batch_size_why}")
            if report.precision_why:
                lines.append(f"  {one_line(report.precision_why)}")
            busy = ", ".join(f"{stage} {share:.0%}" for stage, share in report.busy.items())
            lines.append(f"  at work: {busy}; bound by {report.bound_by}")
            lines += _hooks(report)
    if report.kept:
        lines.append(f"  {report.kept:,} are gone from the source and were kept; --prune tombstone lets them go")
    if report.uncovered:
        lines.append(f"  readers stay at what they saw before: {report.uncovered:,} images lack features of this run")
    if plan.failed:
        lines.append(f"  {plan.failed:,} failed before and were left alone; --retry-failed tries them again")
    lines += [f"  failed: {one_line(f.id)}: {f.reason} ({f.kind})" for f in report.failures[:20]]
    if len(report.failures) > 20:
        lines.append(f"  ... and {len(report.failures) - 20:,} more: icecore store show")
    return "\n".join(lines)


command = extract
