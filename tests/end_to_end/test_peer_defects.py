"""What went wrong in other feature extractors, tried on ours from end to end.

The witness is the plain way: Pillow, torchvision, one image at a time, hooks on the network.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torchvision
from icecore.extract import ImageError, Preprocess, extract_images, features_of, load_backbone
from icecore.store import FeatureStore, StoreDamagedError, verify_store
from PIL import Image
from torchvision.transforms import functional

RESIZE, CROP = 80, 72
"""Smaller than the weights' own 256 and 224: a tenth of the arithmetic."""
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LAYERS = ("features.2", "features.5")
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 2e-5}
"""For float32 sums of some hundred products in another order: measured 2e-6, on values up to 40."""

Draw = Callable[..., Image.Image]
Extract = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Two threads on two busy cores wait for each other after every small layer, and take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def extract(assets: Path, jobs: Any, photos: Path, tmp_path: Path) -> Extract:
    """Runs an extraction of ``photos`` into ``store``, in segments of six rows."""

    def extract(**changes: Any) -> dict[str, Any]:
        options = {
            "store_path": str(tmp_path / "store"),
            "set_name": "photos",
            "source": str(photos),
            "backbone_name": "squeezenet1_1",
            "weights": str(assets / "weights/squeezenet1_1.pth"),
            "layers": list(LAYERS),
            "dtype": "float32",
            "preprocess_changes": {"resize": RESIZE, "crop": CROP},
            "batch_size": 4,
            "threads": 2,
        }
        said: dict[str, Any] = jobs.extract(**{**options, **changes})
        return said

    return extract


@pytest.fixture(scope="module")
def plain(assets: Path) -> Callable[..., dict[str, np.ndarray]]:
    """Gives the features of pictures, one pass a picture, with mean over height and width where there are any."""
    network = torchvision.models.squeezenet1_1()
    network.load_state_dict(torch.load(assets / "weights/squeezenet1_1.pth", weights_only=True))
    network.eval()

    def plain(pictures: list[Image.Image], layers: tuple[str, ...] = LAYERS) -> dict[str, np.ndarray]:
        seen: dict[str, list[np.ndarray]] = {layer: [] for layer in layers}
        hooks = [
            network.get_submodule(layer).register_forward_hook(
                # A copy: the next module may be one that works in place.
                lambda module, inputs, output, layer=layer: seen[layer].append(output.mean((2, 3))[0].numpy().copy())
            )
            for layer in layers
        ]
        with torch.no_grad():
            for picture in pictures:
                small = functional.center_crop(functional.resize(picture.convert("RGB"), RESIZE), [CROP, CROP])
                network(functional.normalize(functional.to_tensor(small), MEAN, STD)[None])
        for hook in hooks:
            hook.remove()
        return {layer: np.stack(rows) for layer, rows in seen.items()}

    return plain


def opened(photos: Path, ids: list[str]) -> list[Image.Image]:
    return [Image.open(photos / image).convert("RGB") for image in ids]


def assert_own_rows(X: np.ndarray, expected: np.ndarray) -> None:
    """Every row is its own image's, and that is no matter of tolerance: all other images are farther."""
    np.testing.assert_allclose(X, expected, **TOLERANCE)
    distances = np.linalg.norm(X[:, None] - expected[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 100 * np.linalg.norm(X - expected, axis=1).max()


# Defect 1: an unreadable image takes a neighbour's vector, or shifts the rows.


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param([0, 3, 4, 7, 8, 21], id="first, last, and both sides of every boundary"),
        pytest.param([4, 5, 6, 7, 8, 9, 10, 11], id="two whole batches"),
        pytest.param([*range(1, 21)], id="all but the ends"),
    ],
)
def test_unreadable_images_neither_shift_rows_nor_take_a_neighbours(
    bad: list[int], extract: Extract, photos: Path, draw: Draw, plain: Any, rows: Any, tmp_path: Path
) -> None:
    names = [f"{n:02}.jpg" for n in range(22)]
    for n, name in enumerate(names):
        draw(n).save(photos / name, quality=90)
    whole = (photos / names[bad[0]]).read_bytes()
    for n, data in zip(bad, (b"", b"text", whole[: len(whole) // 2], whole[:100]) * 5, strict=False):
        (photos / names[n]).write_bytes(data)
    said = extract()
    broken = [names[n] for n in bad]
    good = [name for name in names if name not in broken]
    assert [failure[0] for failure in said["failures"]] == broken
    assert said["forwarded"] == len(good)
    ids, X = rows(tmp_path / "store", "features.5")
    assert ids == good
    assert_own_rows(X, plain(opened(photos, good))["features.5"])
    with FeatureStore.open(tmp_path / "store") as store:
        assert [failure.id for failure in store["photos"].failures()] == broken


def test_prediction_gives_unreadable_images_no_vector_at_all(
    assets: Path, photos: Path, draw: Draw, plain: Any, extract: Extract, tmp_path: Path
) -> None:
    for n in range(8):
        draw(n).save(photos / f"{n}.jpg", quality=90)
    extract()
    for n in (0, 3, 4, 7):
        (photos / f"{n}.jpg").write_bytes(b"no picture")
    backbone = load_backbone(
        "squeezenet1_1", assets / "weights/squeezenet1_1.pth", preprocess=Preprocess(resize=RESIZE, crop=CROP)
    )
    with FeatureStore.open(tmp_path / "store") as store:
        columns = store["photos"].columns
    order = [7, 2, 0, 1, 3, 5, 4, 6]
    found = list(
        features_of(backbone, columns, [photos / f"{n}.jpg" for n in order], device="cpu", batch_size=2, threads=2)
    )
    assert [path.name for path, _ in found] == [f"{n}.jpg" for n in order]
    assert [isinstance(features, ImageError) for _, features in found] == [n in (0, 3, 4, 7) for n in order]
    good = [n for n in order if n not in (0, 3, 4, 7)]
    X = np.stack([features[columns[1]] for _, features in found if not isinstance(features, ImageError)])
    assert_own_rows(X, plain(opened(photos, [f"{n}.jpg" for n in good]))["features.5"])


# Defect 2: several layers in several files, loaded in the order of their names, come out permuted.


def test_layers_of_many_segments_are_aligned_and_in_order(
    extract: Extract, photos: Path, draw: Draw, plain: Any, rows: Any, tmp_path: Path
) -> None:
    names = [f"{n}.png" for n in range(70)]  # 0, 1, 10, 11, ..., 2, 20: the order of bytes, not of numbers
    for n, name in enumerate(names):
        draw(n).save(photos / name)
    assert extract(batch_size=3, rows=5)["forwarded"] == 70
    assert len(list((tmp_path / "store/segments").rglob("*.h5"))) >= 12
    # A second wave lands between the first rows, in later segments.
    late = [f"{n}x.png" for n in range(0, 70, 7)]
    for n, name in enumerate(late):
        draw(1000 + n).save(photos / name)
    assert extract(batch_size=3, rows=5)["forwarded"] == 10
    ordered = sorted([*names, *late], key=os.fsencode)
    expected = plain(opened(photos, ordered))
    for layer in LAYERS:
        ids, X = rows(tmp_path / "store", layer)
        assert ids == ordered
        assert_own_rows(X, expected[layer])
    ids, joined = rows(tmp_path / "store", "features.5", "features.2")
    assert ids == ordered
    np.testing.assert_allclose(joined, np.hstack([expected["features.5"], expected["features.2"]]), **TOLERANCE)


# Defect 4: RGBA raises, any layer but the last raises, grey is spread over three channels without a word.


def test_rgba_and_grey_images_give_what_their_rgb_twins_give_at_any_layer(
    extract: Extract, photos: Path, draw: Draw, plain: Any, rows: Any, tmp_path: Path
) -> None:
    picture = draw(1)
    alpha = np.asarray(draw(2).convert("L"))
    opaque = picture.copy()
    opaque.putalpha(255)
    glassy = picture.copy()
    glassy.putalpha(Image.fromarray(alpha))
    over_white = Image.new("RGBA", picture.size, "white")
    over_white.alpha_composite(glassy)
    pictures = {
        "glassy.png": (glassy, over_white.convert("RGB")),
        "grey.jpg": (picture.convert("L"), None),
        "grey.png": (picture.convert("L"), picture.convert("L").convert("RGB")),
        "opaque.png": (opaque, picture),
        "rgb.png": (picture, picture),
    }
    for name, (image, _) in pictures.items():
        image.save(photos / name)
    layers = ("features.0", "features.4", "features.12", "classifier.1")
    said = extract(layers=list(layers))
    assert (said["status"], said["failures"]) == (0, [])
    twins = [twin or Image.open(photos / name).convert("RGB") for name, (_, twin) in pictures.items()]
    expected = plain(twins, layers)
    for layer in layers:
        ids, X = rows(tmp_path / "store", layer)
        assert ids == list(pictures)
        np.testing.assert_allclose(X, expected[layer], **TOLERANCE)
    with FeatureStore.open(tmp_path / "store") as store:
        (colour,) = (step for step in store["photos"].contract.preprocess if step["op"] == "colour")
    assert (colour["grey"], colour["alpha"]) == ("replicated", "over white")  # said, and part of the contract


def test_a_wide_image_is_cropped_and_not_squashed(
    extract: Extract, photos: Path, draw: Draw, plain: Any, rows: Any, tmp_path: Path
) -> None:
    draw(3, 400, 90).save(photos / "wide.png")
    extract()
    _, X = rows(tmp_path / "store", "features.5")
    picture = Image.open(photos / "wide.png")
    squashed = picture.resize((RESIZE, RESIZE), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(X, plain([picture])["features.5"], **TOLERANCE)
    assert np.abs(X - plain([squashed])["features.5"]).max() > 0.1


# Defect 5: names cut at the first dot collide.


def test_names_that_share_a_stem_are_images_of_their_own(
    extract: Extract, photos: Path, draw: Draw, plain: Any, rows: Any, tmp_path: Path
) -> None:
    names = ["a.b/img.0001.jpg", "a.b/img.0002.jpg", "a/img.jpg", "b/img.jpg", "img.0001.jpg", "img.0002.jpg"]
    names += [
        "a.jpg",
        "a-b/img.jpg",
        "a!/img.jpg",
        "a0/img.jpg",
        "a0.jpg",
    ]  # "/" sorts after "-" and "." and before "0"
    names += ["img.0002.jpg.png", "img.JPG", "img.bmp", "img.jpeg", "img.jpg", "img.png", "img.v1.0.png"]
    for n, name in enumerate(names):
        (photos / name).parent.mkdir(exist_ok=True)
        draw(n).save(photos / name)
    assert extract()["forwarded"] == len(names)
    ids, X = rows(tmp_path / "store", "features.5")
    assert ids == sorted(names, key=os.fsencode)
    assert_own_rows(X, plain(opened(photos, ids))["features.5"])
    again = extract()
    assert (again["forwarded"], again["linked"] <= len(names), again["removed"]) == (0, True, 0)
    (photos / "a/img.jpg").unlink()
    assert (extract()["removed"], rows(tmp_path / "store", "features.5")[0]) == (
        1,
        [i for i in ids if i != "a/img.jpg"],
    )


# Defect 6: a file that exists is taken for one that is whole.


@pytest.fixture
def first_segment(extract: Extract, photos: Path, draw: Draw, tmp_path: Path) -> Path:
    for n in range(20):
        draw(n).save(photos / f"{n:02}.png")
    assert extract()["forwarded"] == 20
    (segment,) = (
        path for path in (tmp_path / "store/segments").rglob("*.h5") if b"00.png" in bytes(h5py.File(path)["ids"][()])
    )
    return segment


@pytest.mark.parametrize("left", [0.0, 0.1, 0.5])
def test_a_segment_cut_short_is_refused_by_readers_and_named_by_verify(
    left: float, first_segment: Path, rows: Any, jobs: Any, tmp_path: Path
) -> None:
    os.truncate(first_segment, int(first_segment.stat().st_size * left))
    with pytest.raises(StoreDamagedError, match=first_segment.name):
        rows(tmp_path / "store", *LAYERS)
    report = verify_store(tmp_path / "store")
    assert [problem.path for problem in report.problems] == [first_segment.relative_to(tmp_path / "store").as_posix()]
    checked = jobs.command(["store", "verify", "store"], tmp_path)
    assert checked.code == 3
    assert first_segment.name in checked.out + checked.err


@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_a_run_over_a_store_with_a_damaged_segment_does_not_say_that_all_is_well(
    harm: str, first_segment: Path, extract: Extract
) -> None:
    if harm == "cut":
        os.truncate(first_segment, first_segment.stat().st_size // 2)
    else:
        first_segment.unlink()
    said = extract()
    assert said["status"] != 0 or said["forwarded"] > 0


def test_a_segment_that_was_never_committed_is_not_read(first_segment: Path, rows: Any, tmp_path: Path) -> None:
    before = rows(tmp_path / "store", *LAYERS)
    stranger = first_segment.with_name("0" * 32 + ".h5")
    stranger.write_bytes(first_segment.read_bytes()[:5000])
    ids, X = rows(tmp_path / "store", *LAYERS)
    assert (ids, X.tobytes()) == (before[0], before[1].tobytes())
    assert [problem.path.rsplit("/")[-1] for problem in verify_store(tmp_path / "store").problems] == [stranger.name]


# Defect 11: a memory knob in the fingerprint invalidates everything; a network left in training mode.


def test_batch_size_and_threads_are_no_part_of_what_is_stored(
    extract: Extract, photos: Path, draw: Draw, tmp_path: Path
) -> None:
    for n in range(12):
        draw(n).save(photos / f"{n:02}.png")
    first = extract(batch_size=4, threads=2)
    assert first["forwarded"] == 12
    assert set(first["convolutions"].values()) == {5, 10}  # with 8 canaries; twin blocks count twice
    bytes_before = {path: path.read_bytes() for path in tmp_path.glob("store/segments/**/*.h5")}
    for batch_size, threads in ((7, 0), (64, 1), (1, 3)):
        said = extract(batch_size=batch_size, threads=threads, rehash=True)  # however long ago they were drawn
        assert (said["status"], said["forwarded"], said["linked"], said["convolutions"]) == (0, 0, 12, {})
    assert {path: path.read_bytes() for path in tmp_path.glob("store/segments/**/*.h5")} == bytes_before
    assert len({path.parent for path in bytes_before}) == 1


def test_an_images_features_do_not_depend_on_the_others_in_its_batch(
    assets: Path, jobs: Any, photos: Path, draw: Draw, rows: Any, tmp_path: Path
) -> None:
    """MobileNetV2 is full of batch normalisation: in training mode a neighbour would move every value."""
    options: dict[str, Any] = {
        "set_name": "photos",
        "backbone_name": "mobilenet_v2",
        "weights": str(assets / "weights/mobilenet_v2_features.pth"),
        "layers": ["features.3", "features.18"],
        "dtype": "float32",
        "preprocess_changes": {"resize": RESIZE, "crop": CROP},
        "threads": 0,
        "batch_size": 4,
    }
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    draw(0).save(photos / "0.png")
    draw(0).save(lonely / "0.png")
    for n in range(1, 4):
        draw(n).point(lambda value, n=n: min(255, value // n)).save(photos / f"{n}.png")
    jobs.extract(store_path=str(tmp_path / "many"), source=str(photos), **options)
    jobs.extract(store_path=str(tmp_path / "one"), source=str(lonely), **options)
    for layer in options["layers"]:
        # The same shape of batch, so the same sums: equal to the last bit.
        np.testing.assert_array_equal(rows(tmp_path / "many", layer)[1][0], rows(tmp_path / "one", layer)[1][0])


def test_dropout_is_off(extract: Extract, photos: Path, draw: Draw, plain: Any, rows: Any, tmp_path: Path) -> None:
    for n in range(4):
        draw(n).save(photos / f"{n}.png")
    layers = ("classifier.0", "classifier.1")  # the dropout and what follows
    extract(layers=list(layers))
    expected = plain(opened(photos, [f"{n}.png" for n in range(4)]), layers)
    for layer in layers:
        np.testing.assert_allclose(rows(tmp_path / "store", layer)[1], expected[layer], **TOLERANCE)


# Knobs and chance: batch size, threads, the order of the folder.


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, draw: Draw) -> Path:
    """30 pictures, two unreadable files and a copy, made in an order that is not that of their names."""
    folder = tmp_path_factory.mktemp("many")
    numbers = list(range(30))
    random.Random(3).shuffle(numbers)
    for n in numbers:
        path = folder / "cab"[n % 3] / f"{n}.png"
        path.parent.mkdir(exist_ok=True)
        draw(n, 60 + n, 100 - n).save(path)
    (folder / "a/10bad.png").write_bytes(b"")
    (folder / "c/0bad.png").write_bytes(b"bad")
    (folder / "b/copy.png").write_bytes((folder / "c/15.png").read_bytes())
    return folder


@pytest.fixture(scope="module")
def many_rows(many: Path, plain: Any) -> tuple[list[str], dict[str, np.ndarray]]:
    found = (path.relative_to(many).as_posix() for path in many.rglob("*.png") if "bad" not in path.name)
    names = sorted(found, key=os.fsencode)
    return names, plain(opened(many, names))


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_every_batch_size_and_number_of_threads_gives_the_same_rows(
    batch_size: int, threads: int, many: Path, many_rows: Any, extract: Extract, rows: Any, tmp_path: Path
) -> None:
    said = extract(source=str(many), batch_size=batch_size, threads=threads)
    names, expected = many_rows
    assert (said["forwarded"], said["linked"]) == (30, 1)
    assert [failure[0] for failure in said["failures"]] == ["a/10bad.png", "c/0bad.png"]
    for layer in LAYERS:
        ids, X = rows(tmp_path / "store", layer)
        assert ids == names
        np.testing.assert_allclose(X, expected[layer], **TOLERANCE)


def test_threads_do_not_change_a_single_bit(many: Path, extract: Extract, rows: Any, tmp_path: Path) -> None:
    found = []
    for threads in (0, 1, 3):
        extract(source=str(many), threads=threads, store_path=str(tmp_path / f"store{threads}"))
        found.append(rows(tmp_path / f"store{threads}", *LAYERS))
    assert found[0][0] == found[1][0] == found[2][0]
    assert found[0][1].tobytes() == found[1][1].tobytes() == found[2][1].tobytes()


class _Entries(list[os.DirEntry[str]]):
    """What ``os.scandir`` gives, in an order of our choice."""

    def __enter__(self) -> _Entries:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def test_nothing_depends_on_the_order_in_which_the_file_system_lists_a_folder(
    many: Path, assets: Path, rows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings: dict[str, list[str]] = {}
    found, reports = [], []
    scandir = os.scandir
    for order in ("forwards", "backwards", "shuffled"):

        def listed(path: Any = ".", order: str = order) -> _Entries:
            entries = _Entries(sorted(scandir(path), key=lambda entry: entry.name, reverse=order == "backwards"))
            if order == "shuffled":
                random.Random(11).shuffle(entries)
            if os.fsdecode(path).startswith(str(many)):
                listings.setdefault(order, []).extend(os.fsdecode(entry.name) for entry in entries)
            return entries

        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", listed)
            report = extract_images(
                tmp_path / order,
                "photos",
                many,
                backbone_name="squeezenet1_1",
                weights=assets / "weights/squeezenet1_1.pth",
                layers=LAYERS,
                dtype="float32",
                preprocess_changes={"resize": RESIZE, "crop": CROP},
                device="cpu",
                batch_size=4,
                threads=1,
            )
        found.append(rows(tmp_path / order, *LAYERS))
        reports.append([failure.id for failure in report.failures])
    assert len({tuple(names) for names in listings.values()}) == 3
    assert reports[0] == reports[1] == reports[2]
    assert found[0][0] == found[1][0] == found[2][0]
    assert found[0][1].tobytes() == found[1][1].tobytes() == found[2][1].tobytes()
