"""Which versions the bundles under ``models/`` rely on: what their cards say, and no more of them.

A card that cannot be trusted is an error, never a bundle less: what gc takes away does not come back.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contract import Column, Contract, canonical_json
from .errors import FormatError

__all__ = ["CARD", "BundleCard", "card_paths", "check_bundle", "read_card"]

CARD = "card.json"
_FORMAT, _VERSIONS = "icecore.bundle", (1, 2)


@dataclass(frozen=True)
class BundleCard:
    """What a bundle was trained on."""

    path: Path
    """its folder"""
    set_name: str
    """feature set"""
    generation: str
    """uuid of the generation"""
    version: int
    """version of the set"""
    contract: Contract
    """base contract"""
    columns: tuple[Column, ...]
    """columns that the model takes, in order"""

    @property
    def name(self) -> str:
        """``NAME/BUNDLE``, as the folder stands under ``models/``."""
        return f"{self.path.parent.name}/{self.path.name}"


def card_paths(folder: Path) -> list[Path]:
    """Give the cards below a store's ``models/``, unfinished bundles' too, in order.

    Raises
    ------
    OSError
        When a folder cannot be listed: a bundle may be in it.
    """
    bundles = (bundle for name in _listed(folder / "models") for bundle in _listed(name))
    return [file for bundle in bundles for file in _listed(bundle) if file.name == CARD]


def read_card(path: Path) -> BundleCard:
    """Read the card of a bundle, given its path or the bundle's folder.

    Raises
    ------
    FormatError
        When it is not readable, altered, or of a format version that this release does not know.
    """
    path = path if path.name == CARD else path / CARD
    try:
        card = json.loads(path.read_bytes())
        return _card(path, card)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        if isinstance(exc, FormatError):
            raise
        raise FormatError(f"{path}: not readable as the card of a bundle ({exc})") from exc


def check_bundle(path: Path) -> str:
    """Compare every file of a bundle with its card; nothing of it is loaded.

    Returns
    -------
    str
        The card's own checksum, 64 hex digits, which stands for the bundle to the byte.

    Raises
    ------
    FormatError
        When the card cannot be read, or a file is missing, altered or damaged.
    """
    read_card(path)
    card = json.loads((path / CARD).read_bytes())
    files = card.get("files")
    if not isinstance(files, dict) or not files:
        raise FormatError(f"{path / CARD}: names no files; a bundle holds a model. Train it again")
    for name, digest in files.items():
        file = path / name
        if file.parent != path or not file.is_file():
            raise FormatError(f"{path}: {name!r} is missing; copy the whole folder again, or train it again")
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != digest:
            raise FormatError(f"{file}: altered since it was written (its sha256 is not the card's); train it again")
    return str(card["card_sha256"])


def _card(path: Path, card: dict[str, Any]) -> BundleCard:
    if card.get("format") != _FORMAT or card.get("format_version") not in _VERSIONS:
        found = f"{card.get('format')!r} {card.get('format_version')!r}"
        raise FormatError(
            f"{path}: its format is {found}, this release reads {_FORMAT!r} {_VERSIONS[0]} to {_VERSIONS[-1]}"
        )
    body = {key: value for key, value in card.items() if key != "card_sha256"}
    if hashlib.sha256(canonical_json(body)).hexdigest() != card.get("card_sha256"):
        raise FormatError(f"{path}: altered since it was written (its checksum does not fit)")
    return BundleCard(
        path=path.parent,
        set_name=str(card["set"]),
        generation=str(card["generation"]),
        version=int(card["version"]),
        contract=Contract.from_json(card["contract"]),
        columns=tuple(Column.from_json(spec, spec["width"]) for spec in card["columns"]),
    )


def _listed(folder: Path) -> list[Path]:
    """List a folder; a file in its place, or one that has gone since, holds nothing."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
