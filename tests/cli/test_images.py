"""Every kind of image file is read, or named as failed with its reason and exit code; the rest of the job goes on."""

from __future__ import annotations

import ctypes
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from icecore.store import FeatureStore
from PIL import Image

Icecore = Callable[..., Any]
Noisy = Callable[..., Image.Image]
Encoded = Callable[..., bytes]

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # by these root reads what the mode of a file forbids


def features(project: Any) -> dict[str, np.ndarray]:
    with FeatureStore.open(project.store) as store:
        ids, X = store["photos"].matrix("features.3")
        return dict(zip(ids, X, strict=True))


# --- what is read -----------------------------------------------------------------------------------------------


def odd_kinds(noisy: Noisy, encoded: Encoded) -> dict[str, tuple[bytes, Image.Image]]:
    """File name -> its bytes, and the plain RGB image that it must be taken for, made by Pillow alone."""
    image = noisy(1)
    alpha = image.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    over_white = Image.new("RGBA", image.size, "white")
    over_white.alpha_composite(alpha)
    palette = image.quantize(16)
    cmyk = encoded(image.convert("CMYK"), "JPEG", quality=95)
    deep = np.asarray(image.convert("L")).astype(np.uint16) * 256 + 13
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter to the left
    turned = encoded(image, "JPEG", quality=95, exif=exif)
    frames = [noisy(2).quantize(8), noisy(3, (200, 10, 10)).quantize(8)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return {
        "rgba.png": (encoded(alpha, "PNG"), over_white.convert("RGB")),
        "palette.png": (encoded(palette, "PNG"), palette.convert("RGB")),
        "cmyk.jpg": (cmyk, Image.open(io.BytesIO(cmyk)).convert("RGB")),
        "deep.png": (encoded(Image.fromarray(deep), "PNG"), image.convert("L").convert("RGB")),
        "grey.png": (encoded(image.convert("L"), "PNG"), image.convert("L").convert("RGB")),
        "turned.jpg": (turned, Image.open(io.BytesIO(turned)).transpose(Image.Transpose.ROTATE_270)),
        "moving.gif": (gif, frames[0].convert("RGB")),
        "upper.JPG": (cmyk, Image.open(io.BytesIO(cmyk)).convert("RGB")),
    }


def test_odd_kinds_are_read_as_the_plain_image_that_they_show(
    icecore: Icecore, project: Any, noisy: Noisy, encoded: Encoded
) -> None:
    kinds = odd_kinds(noisy, encoded)
    for name, (data, plain) in kinds.items():
        (project.photos / name).write_bytes(data)
        plain.save(project.photos / f"{name}.plain.png")
    done = icecore("extract", project.config, "--json")
    assert (done.code, done.outcome["outcome"], done.outcome["failures"]) == (0, "done", [])
    found = features(project)
    assert len(found) == 2 * len(kinds)
    for name in kinds:
        # The same pixels at another place of the batch: sums may be ordered otherwise, and float16 rounds.
        np.testing.assert_allclose(found[name], found[f"{name}.plain.png"], rtol=2e-3, atol=2e-3)
    assert not np.allclose(found["turned.jpg"], found["palette.png"], rtol=2e-3, atol=2e-3)


NAMES = [
    b"two words.png",
    b"two\nlines.png",
    "Zürich-東京-🐜.png".encode(),
    b"caf\xe9.png",
    b"$(touch x);'\".png",
    b"-x.png",
]


def write_named(folder: Path, name: bytes, data: bytes) -> str:
    """Write a file of any name; give its id. Skips where the file system takes UTF-8 only."""
    try:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(data)
    except OSError as exc:
        pytest.skip(f"this file system refuses the name {name!r}: {exc}")
    return os.fsdecode(name)


def test_any_file_name_survives_into_store_and_json(
    icecore: Icecore, project: Any, noisy: Noisy, encoded: Encoded
) -> None:
    ids = [write_named(project.photos, name, encoded(noisy(n), "PNG")) for n, name in enumerate(NAMES)]
    bad = write_named(project.photos, b"b\xe9d\n\x1b[31m.png", b"text")
    done = icecore("extract", project.config)
    assert done.code == 5
    assert b"  failed: b\xe9d\\n\\x1b[31m.png: not an image: first bytes b'text' (decode)\n" in done.out
    assert sorted(features(project), key=os.fsencode) == sorted(ids, key=os.fsencode)
    shown = icecore("store", "show", project.store, "photos", "--json").outcome
    assert [failure["id"] for failure in shown["failures"]] == [bad]
    told = icecore("store", "show", project.store, "photos").out
    assert b"\nb\xe9d\\n\\x1b[31m.png  decode" in told
    assert b"\x1b" not in told


# --- what fails -------------------------------------------------------------------------------------------------


def bad_files(noisy: Noisy, encoded: Encoded) -> dict[str, tuple[bytes, str, str]]:
    """File name -> its bytes, and kind and reason of its failure."""
    image = noisy(0)
    jpeg, png = encoded(image, "JPEG"), encoded(image, "PNG")
    return {
        "text.jpg": (b"hello world", "decode", "not an image: first bytes b'hello wo'"),
        "page.png": (b"<!doctype html><html></html>", "decode", "not an image: first bytes b'<!doctyp'"),
        "cut.jpg": (jpeg[:-60], "decode", "image file is truncated"),
        "cut.png": (png[: len(png) // 2], "decode", "image file is truncated"),
        "empty.jpg": (b"", "decode", "empty file"),
        "float.tif": (encoded(Image.new("F", (9, 9)), "TIFF"), "unsupported", "floating-point pixels (mode F)"),
        "large.png": (encoded(Image.new("L", (300, 300)), "PNG"), "too-large", "300x300 is 90,000 pixels"),
    }


@pytest.fixture
def mixed(project: Any, noisy: Noisy, encoded: Encoded) -> dict[str, tuple[bytes, str, str]]:
    """Three good images and all bad ones in the project's folder; gives the bad ones."""
    bad = bad_files(noisy, encoded)
    for name, (data, _, _) in bad.items():
        (project.photos / name).write_bytes(data)
    for number in range(3):
        noisy(number).save(project.photos / f"good{number}.png")
    project.config.write_text(project.config.read_text().replace("[compute]", "[compute]\nmax_pixels = 80000"))
    return bad


def test_bad_files_are_named_with_their_reason_and_the_job_ends_with_5(
    icecore: Icecore, project: Any, mixed: dict[str, tuple[bytes, str, str]]
) -> None:
    done = icecore("extract", project.config, "--json")
    assert (done.code, done.outcome["outcome"]) == (5, "done, but some images failed")
    assert done.outcome["retryable"] is False
    failures = {failure["id"]: failure for failure in done.outcome["failures"]}
    assert failures.keys() == mixed.keys()
    for name, (_, kind, reason) in mixed.items():
        assert failures[name]["kind"] == kind
        assert reason in failures[name]["reason"]
    assert sorted(features(project)) == ["good0.png", "good1.png", "good2.png"]
    shown = icecore("store", "show", project.store, "photos")
    assert shown.code == 0
    assert "photos: 3 images, 7 failed" in shown.text
    for name, (_, kind, reason) in mixed.items():
        (line,) = [line for line in shown.text.splitlines() if line.startswith(f"{name} ")]
        assert kind in line
        assert reason in line


def test_failures_are_told_to_people_too(icecore: Icecore, project: Any, mixed: object) -> None:
    done = icecore("extract", project.config)
    assert done.code == 5
    assert "photos: 3 forwarded, 0 known by content, 0 unchanged; version 1" in done.text
    assert "  failed: empty.jpg: empty file (decode)" in done.text
    assert "  failed: large.png: 300x300 is 90,000 pixels, the limit is 80,000 (too-large)" in done.text


def test_known_failures_are_left_alone_until_asked_or_changed(
    icecore: Icecore, project: Any, mixed: object, noisy: Noisy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icecore.store.commit.RACY_NS", 0)  # else images so fresh are read again for two seconds
    icecore("extract", project.config)
    again = icecore("extract", project.config)
    assert again.code == 5
    assert "nothing to do, 3 images unchanged" in again.text
    assert "7 failed before and were left alone; --retry-failed tries them again" in again.text
    plan = icecore("extract", project.config, "--dry-run")
    assert plan.code == 0
    assert "7  failed before, left alone (--retry-failed tries them)" in plan.text
    retried = icecore("extract", project.config, "--retry-failed", "--json").outcome
    assert (retried["retried"], len(retried["failures"]), retried["forwarded"]) == (7, 7, 0)
    shown = icecore("store", "show", project.store, "photos", "--json").outcome
    assert {failure["attempts"] for failure in shown["failures"]} == {2}
    noisy(9).save(project.photos / "text.jpg")
    mended = icecore("extract", project.config, "--json").outcome
    assert (mended["retried"], mended["forwarded"], mended["failed"], mended["exit_code"]) == (1, 1, 6, 5)
    assert "text.jpg" in features(project)


def test_when_every_bad_file_is_mended_or_gone_the_job_ends_with_0(
    icecore: Icecore, project: Any, noisy: Noisy
) -> None:
    for number in range(3):
        noisy(number).save(project.photos / f"good{number}.png")
    (project.photos / "bad.png").write_bytes(b"")
    (project.photos / "worse.png").write_bytes(b"")
    assert icecore("extract", project.config).code == 5
    (project.photos / "bad.png").unlink()
    noisy(3).save(project.photos / "worse.png")
    assert icecore("extract", project.config).code == 0
    assert sorted(features(project)) == ["good0.png", "good1.png", "good2.png", "worse.png"]


def test_where_every_image_fails_the_failures_can_still_be_seen(
    icecore: Icecore, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project.photos / "bad.png").write_bytes(b"")
    monkeypatch.setattr("icecore.store.commit.RACY_NS", 0)  # else fresh failures are tried again for two seconds
    done = icecore("extract", project.config)
    assert done.code == 5
    assert "0 forwarded" in done.text
    assert "  failed: bad.png: empty file (decode)" in done.text
    again = icecore("extract", project.config)
    assert again.code == 5
    assert "1 failed before and were left alone" in again.text
    shown = icecore("store", "show", project.store, "photos")
    assert shown.code == 0
    assert "bad.png" in shown.text


# --- links, folders, rights -------------------------------------------------------------------------------------


def test_links_that_go_in_circles_or_nowhere_are_failures_and_good_links_are_read(
    icecore: Icecore, project: Any, noisy: Noisy, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy(1).save(project.photos / "good.png")
    (project.photos / "below").mkdir()
    (project.photos / "below" / "up").symlink_to(project.photos)
    (project.photos / "self.png").symlink_to("self.png")
    (project.photos / "nowhere.png").symlink_to("missing.png")
    (project.photos / "link.png").symlink_to("good.png")
    monkeypatch.setattr("icecore.store.commit.RACY_NS", 0)  # else fresh failures are tried again for two seconds
    done = icecore("extract", project.config, "--json")
    assert done.code == 5
    assert {(failure["id"], failure["kind"], failure["reason"]) for failure in done.outcome["failures"]} == {
        ("below/up", "read", "symbolic link to a folder above it"),
        ("self.png", "read", os.strerror(40 if sys.platform == "linux" else 62)),
        ("nowhere.png", "read", "symbolic link that leads nowhere"),
    }
    assert (done.outcome["forwarded"], done.outcome["linked"]) == (1, 1)
    assert sorted(features(project)) == ["good.png", "link.png"]
    again = icecore("extract", project.config)
    assert again.code == 5
    assert "3 failed before and were left alone" in again.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "photos: no images (0 other files; looked for .bmp, .gif"),
        (lambda folder: (folder / "notes.txt").write_text("x"), "photos: no images (1 other files"),
        (lambda folder: folder.rmdir(), "photos: no such image folder"),
    ],
    ids=["empty", "other files", "missing"],
)
def test_a_folder_without_images_ends_with_1_and_makes_no_store(
    icecore: Icecore, project: Any, make: Callable[[Path], object], message: str
) -> None:
    make(project.photos)
    for options in ((), ("--dry-run",)):
        done = icecore("extract", project.config, "--json", *options)
        assert done.code == 1
        assert message in done.told
        assert message in done.outcome["error"]
        assert not project.store.exists()


def test_an_emptied_folder_does_not_empty_the_store(icecore: Icecore, trained: Any) -> None:
    """An unmounted disk looks like this."""
    photos = trained.photos.rename(trained.folder / "elsewhere")
    trained.photos.mkdir()
    assert icecore("extract", trained.config).code == 1
    (photos / "train" / "red" / "0.png").rename(trained.photos / "0.png")
    done = icecore("extract", trained.config)
    assert done.code == 1
    assert "18 of its 18 images are no longer under" in done.told
    assert "--set source.max_removed=1" in done.told
    assert len(features(trained)) == 18
    assert icecore("extract", trained.config, "--set", "source.max_removed=1").code == 0
    assert sorted(features(trained)) == ["0.png"]


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def bound_by_file_modes() -> Iterator[None]:
    """Let file modes bind this process as they bind everybody, also where it is root's: Linux capabilities(7)."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root reads everything here")
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(0x20080522, 0), (_Sets * 2)()
    if libc.capget(ctypes.byref(header), sets):
        pytest.skip("the capabilities of this process cannot be read")
    before = sets[0].effective
    sets[0].effective = before & ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    if libc.capset(ctypes.byref(header), sets):
        pytest.skip("the capabilities of this process cannot be given up")
    try:
        yield
    finally:
        sets[0].effective = before
        assert libc.capset(ctypes.byref(header), sets) == 0


def test_a_file_without_read_permission_is_a_failure(icecore: Icecore, project: Any, noisy: Noisy) -> None:
    noisy(1).save(project.photos / "good.png")
    noisy(2).save(project.photos / "secret.png")
    (project.photos / "secret.png").chmod(0)
    with bound_by_file_modes():
        done = icecore("extract", project.config, "--json")
    assert done.code == 5
    assert done.outcome["failures"] == [{"id": "secret.png", "kind": "read", "reason": "Permission denied"}]
    assert list(features(project)) == ["good.png"]
    (project.photos / "secret.png").chmod(0o600)
    assert icecore("extract", project.config).code == 0  # a change of mode is a change: it is tried again
    assert sorted(features(project)) == ["good.png", "secret.png"]


def test_a_folder_that_cannot_be_listed_stops_the_job_and_removes_nothing(icecore: Icecore, trained: Any) -> None:
    (trained.photos / "train").chmod(0)
    try:
        with bound_by_file_modes():
            done = icecore("extract", trained.config)
    finally:
        (trained.photos / "train").chmod(0o700)
    assert done.code == 1
    assert "train: cannot be listed (Permission denied); nothing was changed" in done.told
    assert len(features(trained)) == 18


def test_failures_that_are_gone_do_not_count_as_images_of_the_set_that_vanished(
    icecore: Icecore, project: Any, noisy: Noisy
) -> None:
    noisy(1).save(project.photos / "good.png")
    (project.photos / "bad.png").write_bytes(b"")
    assert icecore("extract", project.config).code == 5
    (project.photos / "bad.png").unlink()
    assert icecore("extract", project.config).code == 0
