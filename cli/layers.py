"""``icecore layers``: what can be extracted from a network."""

from __future__ import annotations

import click

from .app import command as make_command
from .exits import Exit, Outcome
from .table import table

__all__ = ["command"]


@make_command(example="icecore layers resnet18 'layer*'", reads_only=True)
@click.argument("backbone")
@click.argument("patterns", nargs=-1)
@click.option("--size", type=click.IntRange(1, 8192), help="Side of the input in pixels; the weights' own by default.")
@click.option("--all", "everything", is_flag=True, help="Also what cannot be pooled, with the reason.")
def layers(backbone: str, patterns: tuple[str, ...], size: int | None, everything: bool) -> Outcome:
    """List the layers of BACKBONE with their shapes and pooled widths, in the order of the network.

    PATTERNS are names or globs: * stays within one dotted part of a name, ** crosses dots.
    """
    from icecore.extract import list_layers, resolve_layers

    found = list_layers(backbone, size=size)
    if patterns:
        names = set(resolve_layers(found, patterns, backbone=backbone))
        found = tuple(layer for layer in found if layer.name in names)
    elif not everything:
        found = tuple(layer for layer in found if layer.poolable)
    rows = [
        {
            "name": layer.name,
            "shape": list(layer.shape),
            "layout": layer.layout,
            "width": layer.width,
            "poolings": list(layer.poolings),
            "why_not": layer.why_not,
            "hooks": layer.hooks,
        }
        for layer in found
    ]
    lines = [[r["name"], "x".join(map(str, layer.shape)), r["layout"], r["width"] or "",
              " ".join(layer.poolings) or r["why_not"]]
             for r, layer in zip(rows, found, strict=True)]  # fmt: skip
    text = table(["layer", "shape", "layout", "pooled width", "poolings"], lines)
    if any(layer.hooks for layer in found):
        text += "\ntaken by forward hooks, because torch.fx cannot follow the network: layers are modules only"
    return Outcome(Exit.DONE, {"backbone": backbone, "layers": rows}, text)


command = layers
