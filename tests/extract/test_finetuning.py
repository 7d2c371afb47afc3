"""Fine-tuning as a whole: what learns and what does not, going on after a kill, what is kept, what is refused."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import (
    Epoch,
    Preprocess,
    TrainingImage,
    TuningDivergedError,
    TuningError,
    TuningOptions,
    TuningReport,
    finetune_backbone,
    load_backbone,
)
from icecore.extract.tuning_data import cut_validation
from icecore.extract.tuning_step import Stepper
from icecore.extract.weight_files import read_weights
from icecore.store import FormatError, LockedError, read_tuning
from icecore.store.lock import writer_lock
from icecore.train import fit_head
from PIL import Image
from safetensors.torch import save_file

SMALL = Preprocess(resize=32, crop=32)
OPTIONS = TuningOptions(unfreeze=["block2"], epochs=3, batch_size=4, validation=0.25, learning_rate=1e-2, patience=0)
COLOURS = ((200, 40, 40), (40, 40, 200))
CLASSES = ("blue", "red")


@pytest.fixture
def images(tmp_path: Path) -> list[TrainingImage]:
    """24 noisy images of two colours."""
    found = []
    for n in range(24):
        chance = np.random.default_rng(n)
        pixels = np.clip(np.array(COLOURS[n % 2]) + chance.normal(0, 60, (36, 40, 3)), 0, 255)
        path = tmp_path / "images" / f"{n:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        found.append(TrainingImage(path.name, path, n % 2))
    return found


Tune = Callable[..., TuningReport]


@pytest.fixture
def weights(tmp_path: Path, own_net: str) -> Path:
    """Weights of the network with batch norms that are not the identity."""
    network = load_backbone(own_net, preprocess=SMALL).module
    generator = torch.Generator().manual_seed(5)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    for name, value in state.items():
        if "running" in name:
            value += torch.rand(value.shape, generator=generator)
    save_file(state, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def tune(tmp_path: Path, images: list[TrainingImage], own_net: str, weights: Path) -> Tune:
    def tune(store: str = "store", images: Any = images, options: TuningOptions = OPTIONS, **changes: Any) -> Any:
        settings = {"classes": CLASSES, "start_head": fit_head, "workers": 0, "threads": 2, "device": "cpu", **changes}
        backbone = load_backbone(own_net, weights, preprocess=SMALL)
        return finetune_backbone(tmp_path / store, "colours", backbone, images, options=options, **settings)

    return tune


def test_what_is_frozen_stays_bit_equal_what_is_not_changes_and_norms_keep_their_statistics(
    tune: Tune, weights: Path
) -> None:
    report = tune()
    before, after = read_weights(weights), read_weights(report.weights)
    assert set(after) == {name for name in before if not name.startswith("head.")} - {
        name for name in before if "num_batches" in name
    }
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"block2.conv.weight", "block2.conv.bias", "block2.bn.weight", "block2.bn.bias"}
    assert changed == set(report.tuning.unfrozen)
    assert report.tuning.trained_parameters == sum(after[name].numel() for name in changed)


def test_norms_learn_statistics_where_that_is_asked_for(tune: Tune, weights: Path) -> None:
    before = read_weights(weights)
    after = read_weights(tune(options=replace(OPTIONS, batch_norm="train")).weights)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert {"block2.bn.running_mean", "block2.bn.running_var"} <= changed
    assert "block1.bn.running_mean" not in changed


def test_the_file_is_named_after_the_hash_that_extraction_gives_it(tune: Tune, own_net: str) -> None:
    report = tune()
    assert report.weights.stem == load_backbone(own_net, report.weights, preprocess=SMALL).weights_sha256
    assert report.tuning.weights == report.weights.stem


def test_the_record_says_what_was_seen_and_where_it_came_from(
    tune: Tune, images: list[TrainingImage], own_net: str, weights: Path, tmp_path: Path
) -> None:
    told: list[Epoch] = []
    report = tune(split_digest="5" * 64, split="given", version=7, generation="ab" * 16, progress=told.append)
    found = read_tuning(tmp_path / "store", report.weights.stem)
    assert found == report.tuning
    assert found.seen_ids == tuple(image.id for image in images)
    assert found.parent == load_backbone(own_net, weights, preprocess=SMALL).contract()
    assert (found.split_digest, found.version, found.parent_generation) == ("5" * 64, 7, "ab" * 16)
    assert [epoch["epoch"] for epoch in found.epochs] == [epoch.epoch for epoch in told] == [0, 1, 2, 3]
    assert found.best_epoch in (2, 3)  # not 1, in which the head alone learned
    assert found.epochs[0]["train_loss"] is None
    assert not (tmp_path / "store" / "tunings" / found.key).exists()


def test_the_same_tuning_is_not_done_twice(tune: Tune, images: list[TrainingImage]) -> None:
    first, second = tune(), tune(images=list(reversed(images)))
    assert (first.is_new, second.is_new) == (True, False)
    assert second.tuning == first.tuning
    third = tune(again=True)
    assert third.is_new
    assert third.weights == first.weights


def test_a_changed_file_makes_it_another_tuning(tune: Tune, images: list[TrainingImage]) -> None:
    first = tune()
    images[0].path.write_bytes(images[2].path.read_bytes())
    assert tune().is_new
    assert tune().weights != first.weights


class _StopError(Exception):
    """Stands for whatever ends a process between two epochs."""


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS,
        replace(OPTIONS, augment="none"),
        replace(OPTIONS, views=2, average=0.5),
        replace(OPTIONS, batch_norm="train", gradual=1),
        replace(OPTIONS, mixup=0.3, cutmix=0.3),
        replace(OPTIONS, class_weight="balanced", start="random"),
    ],
    ids=["new-views", "no-views", "kept-views", "norms", "mixed", "random-head"],
)
def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(tune: Tune, options: TuningOptions) -> None:
    """Bit-equal, whenever it was cut off."""
    undisturbed = tune("undisturbed", options=options)
    for end in range(3):

        def stop(epoch: Epoch, end: int = end) -> None:
            if epoch.epoch == end:
                raise _StopError

        with pytest.raises(_StopError):
            tune("cut", options=options, progress=stop)
    again = tune("cut", options=options)
    assert again.resumed_after == 2
    assert again.weights.name == undisturbed.weights.name
    assert again.weights.read_bytes() == undisturbed.weights.read_bytes()


def test_kept_activations_give_the_weights_that_computing_them_anew_gives(tune: Tune) -> None:
    options = replace(OPTIONS, views=2)
    kept = tune("kept", options=options)
    anew = tune("anew", options=replace(options, keep_prefix="never"))
    assert (kept.keeps_prefix, anew.keeps_prefix) == (True, False)
    ours, theirs = read_weights(kept.weights), read_weights(anew.weights)
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], atol=1e-4), name


def test_the_head_starts_as_the_logistic_regression(tune: Tune) -> None:
    """Before any epoch the network is right as often as the regression is on the images kept for validation."""
    report = tune()
    assert report.tuning.epochs[0]["validation_accuracy"] >= 0.8
    assert tune("random", options=replace(OPTIONS, start="random")).tuning.epochs[0]["validation_accuracy"] <= 0.7


def test_an_unreadable_image_is_left_out_and_recorded(tune: Tune, images: list[TrainingImage]) -> None:
    images[3].path.write_bytes(b"no image")
    images[5].path.unlink()
    tuning = tune().tuning
    assert set(tuning.skipped) == {"03.png", "05.png"}
    assert "decode" in tuning.skipped["03.png"]
    assert "read" in tuning.skipped["05.png"]
    assert not {"03.png", "05.png"} & set(tuning.seen_ids)
    assert len(tuning.seen_ids) == len(tuning.seen_contents) == 22


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_best(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, right = 0, Stepper._loss

    def spoil(self: Stepper, sums: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += 1
        return right(self, sums, targets) * (float("nan") if taken == 12 else 1)

    monkeypatch.setattr(Stepper, "_loss", spoil)
    with pytest.raises(TuningDivergedError, match=r"epoch 3, step 2 of 5: the loss is nan.*--finish takes it"):
        tune()
    monkeypatch.undo()
    report = tune(finish=True)
    assert report.tuning.best_epoch == 2
    assert report.resumed_after == 2


def test_finish_needs_an_epoch_in_which_the_backbone_learned(tune: Tune, tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="finish: no epoch"):
        tune(finish=True)
    assert not [path for path in (tmp_path / "store/tunings").iterdir() if path.is_dir()]


def test_memory_that_runs_out_halves_what_is_forwarded_at_once_and_gives_nearly_the_same_weights(
    tune: Tune, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, augment="none")
    whole = read_weights(tune("whole", options=options).weights)
    right, sizes = Stepper._loss, []

    def scarce(self: Stepper, sums: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        sizes.append(len(targets))
        if len(targets) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return right(self, sums, targets)

    monkeypatch.setattr(Stepper, "_loss", scarce)
    parts = read_weights(tune("parts", options=options).weights)
    assert sizes[:3] == [4, 2, 2]
    assert max(sizes[1:]) == 2
    for name, value in parts.items():
        assert torch.allclose(value, whole[name], atol=1e-5), name


def test_it_stops_when_no_epoch_has_been_better_for_a_while(tune: Tune) -> None:
    options = replace(OPTIONS, epochs=40, patience=2, learning_rate=0.5, head_learning_rate=0.5, clip=0.0)
    tuning = tune(options=options).tuning
    assert len(tuning.epochs) - 1 == tuning.best_epoch + 2


def test_gradual_unfreezing_lets_blocks_begin_one_after_the_other(tune: Tune) -> None:
    options = replace(OPTIONS, unfreeze="all", gradual=1, epochs=5)
    rates = [epoch["learning_rates"] for epoch in tune(options=options).tuning.epochs[1:]]
    begins = {block: next(n for n, now in enumerate(rates, 1) if now[block] > 0) for block in rates[0]}
    assert begins == {"head": 1, "block2": 2, "block1": 3, "stem": 4}


def test_two_at_once_are_refused_and_extraction_is_not(tune: Tune, tmp_path: Path) -> None:
    (tmp_path / "store/tunings").mkdir(parents=True)
    with writer_lock(tmp_path / "store/tunings", command="icecore finetune other.toml"):
        with pytest.raises(LockedError, match=r"other\.toml"):
            tune()
        with writer_lock(tmp_path / "store"):
            pass


def test_a_network_that_cannot_be_followed_learns_undivided(
    tmp_path: Path, images: list[TrainingImage], own_net: str, weights: Path
) -> None:
    folder = tmp_path / "own"
    source = (folder / "ownnets.py").read_text()
    (folder / "branchy.py").write_text(
        source.replace("        x = self.stem(x)\n", "        x = self.stem(x) if x.sum() < 1e9 else -self.stem(x)\n")
    )
    backbone = load_backbone("branchy:net", weights, preprocess=SMALL)
    report = finetune_backbone(
        tmp_path / "store",
        "colours",
        backbone,
        images,
        classes=CLASSES,
        options=OPTIONS,
        start_head=fit_head,
        workers=0,
    )
    assert "torch.fx cannot follow" in report.why_whole
    before, after = read_weights(weights), read_weights(report.weights)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == set(report.tuning.unfrozen)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"classes": ("red",)}, "classes: two or more"),
        ({"start_head": None}, "needs start_head"),
        ({"classes": ("blue", "green", "red")}, "class 'red': no image of it is left"),
        ({"options": replace(OPTIONS, validation=0.01)}, "validation: a share of 0.01 leaves 0 of 24"),
    ],
)
def test_what_cannot_be_trained_is_told(tune: Tune, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(TuningError, match=told):
        tune(**changes)


def test_images_that_cannot_be_read_at_all_are_told(tune: Tune, images: list[TrainingImage]) -> None:
    shutil.rmtree(images[0].path.parent)
    with pytest.raises(TuningError, match="none of 24 can be read: No such file"):
        tune()


def test_weights_without_the_layers_before_the_head_are_refused(tune: Tune, weights: Path) -> None:
    state = {name: value for name, value in read_weights(weights).items() if not name.startswith("block2.conv")}
    save_file(state, weights)
    with pytest.raises(TuningError, match=r"2 tensors before the head are not in the file, block2\.conv\.bias"):
        tune()


def test_a_checkpoint_that_cannot_be_read_is_told_with_its_folder(tune: Tune, tmp_path: Path) -> None:
    def stop(epoch: Epoch) -> None:
        raise _StopError

    with pytest.raises(_StopError):
        tune(progress=stop)
    [state] = (tmp_path / "store/tunings").glob("*/state.pt")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(TuningError, match=r"not a readable checkpoint .* delete .* to begin anew"):
        tune()


def test_a_record_that_was_altered_is_refused(tune: Tune) -> None:
    record = tune().weights.with_suffix(".json")
    record.write_text(record.read_text().replace("00.png", "99.png"))
    with pytest.raises(FormatError, match="altered"):
        tune()


JOB = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {own!r})
import torch
torch.set_num_threads(1)
from icecore.extract import Preprocess, TrainingImage, TuningOptions, finetune_backbone, load_backbone
from icecore.extract import tuning_step
from icecore.train import fit_head
left = int(sys.argv[1])
take = tuning_step.Stepper.take
def counted(self, *args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, *args, **kwargs)
tuning_step.Stepper.take = counted
folder = Path({images!r})
images = [TrainingImage(path.name, path, n % 2) for n, path in enumerate(sorted(folder.iterdir()))]
options = TuningOptions(unfreeze=["block2"], epochs=3, batch_size=4, validation=0.25, learning_rate=1e-2, patience=0)
backbone = load_backbone("ownnets:net", {weights!r}, preprocess=Preprocess(resize=32, crop=32))
report = finetune_backbone(sys.argv[2], "colours", backbone, images, classes=("blue", "red"), options=options,
                           start_head=fit_head, workers=0, threads=2, device="cpu")
print(report.weights)
"""


@pytest.mark.slow
def test_killed_at_five_moments_it_ends_with_the_weights_of_an_undisturbed_run(
    tmp_path: Path, images: list[TrainingImage], own_net: str, weights: Path
) -> None:
    job = JOB.format(own=str(tmp_path / "own"), images=str(images[0].path.parent), weights=str(weights))

    def run(store: str, left: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", job, str(left), str(tmp_path / store)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    undisturbed = run("undisturbed", 0)
    assert undisturbed.returncode == 0, undisturbed.stderr
    for left in (1, 4, 6, 5, 9):
        assert run("killed", left).returncode == -9
    done = run("killed", 0)
    assert done.returncode == 0, done.stderr
    ours, theirs = (Path(each.stdout.strip()) for each in (done, undisturbed))
    assert ours.name == theirs.name
    assert ours.read_bytes() == theirs.read_bytes()


def test_weights_that_overflow_in_the_last_step_of_an_epoch_are_never_the_best(tune: Tune, tmp_path: Path) -> None:
    """The loss of every step is a number, and that of the validation is not."""
    options = replace(
        OPTIONS, epochs=1, head_epochs=0, batch_size=64, learning_rate=1e30, head_learning_rate=1e30, clip=0.0
    )
    with pytest.raises(TuningDivergedError, match=r"epoch 1, validation: the loss is .*lower learning_rate"):
        tune(options=options)
    assert not list((tmp_path / "store").glob("weights/*"))
    with pytest.raises(TuningError, match="finish: no epoch"):
        tune(options=options, finish=True)


def test_a_validation_part_of_which_nothing_can_be_read_is_refused(tune: Tune, images: list[TrainingImage]) -> None:
    for image, held in zip(images, cut_validation(images, OPTIONS.validation, OPTIONS.seed), strict=True):
        if held:
            image.path.write_bytes(b"no image")
    with pytest.raises(TuningError, match=r"validation: none of its 6 images can be read \(.*decode.*take a larger"):
        tune()


def test_an_image_that_is_lost_after_it_was_seen_is_recorded_as_seen(tune: Tune, images: list[TrainingImage]) -> None:
    held = cut_validation(images, OPTIONS.validation, OPTIONS.seed)
    lost = images[int(np.flatnonzero(~held)[0])]
    digest = hashlib.sha256(lost.path.read_bytes()).hexdigest()

    def lose(epoch: Epoch) -> None:
        if epoch.epoch == 1:
            lost.path.write_bytes(b"another file")

    tuning = tune(progress=lose).tuning
    assert "changed" in tuning.skipped[lost.id]
    assert dict(zip(tuning.seen_ids, tuning.seen_contents, strict=True))[lost.id] == digest
    assert len(tuning.seen_ids) == 24


def test_what_could_not_be_kept_of_a_view_is_no_zeros_after_a_kill(
    tune: Tune, images: list[TrainingImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image is away while a view is kept, and back when the run goes on: its place there is empty."""
    options = replace(OPTIONS, views=2)
    held = cut_validation(images, OPTIONS.validation, OPTIONS.seed)
    away = images[int(np.flatnonzero(~held)[0])]
    contents = away.path.read_bytes()

    def lose(epoch: Epoch) -> None:
        away.path.unlink(missing_ok=True)

    def stop(*_: Any, **__: Any) -> float:
        raise _StopError

    with monkeypatch.context() as patched:
        patched.setattr(Stepper, "take", stop)
        with pytest.raises(_StopError):
            tune(options=options, progress=lose)
    away.path.write_bytes(contents)
    tuning = tune(options=options).tuning
    assert list(tuning.skipped) == [away.id]
    assert "read" in tuning.skipped[away.id]


def test_another_limit_of_pixels_makes_it_another_tuning(tune: Tune, images: list[TrainingImage]) -> None:
    Image.new("RGB", (80, 80)).save(images[0].path)
    first = tune(max_pixels=2000)
    assert set(first.tuning.skipped) == {images[0].id}
    second = tune()
    assert second.is_new
    assert not second.tuning.skipped


def test_weights_that_did_not_change_never_replace_the_record_of_those_they_started_from(
    tune: Tune, images: list[TrainingImage], own_net: str, tmp_path: Path
) -> None:
    first = tune()
    tuned = load_backbone(own_net, first.weights, preprocess=SMALL)
    with pytest.raises(TuningError, match="unfreeze: nothing of the backbone changed"):
        finetune_backbone(
            tmp_path / "store", "colours", tuned, images[:12], classes=CLASSES, start_head=fit_head, workers=0,
            options=replace(OPTIONS, unfreeze=0, epochs=1), device="cpu",
        )  # fmt: skip
    assert read_tuning(tmp_path / "store", first.weights.stem) == first.tuning


def test_nothing_is_left_of_a_run_that_ended_while_it_wrote_its_weights(
    tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("icecore.extract.finetuning.publish", full)
        with pytest.raises(OSError, match="No space"):
            tune()
    assert list((tmp_path / "store/weights").iterdir()) == []
    with monkeypatch.context() as patched:
        patched.setattr("icecore.extract.finetuning.shutil.rmtree", full)
        with pytest.raises(OSError, match="No space"):
            tune()
    job = tmp_path / "store/tunings" / tune().tuning.key
    assert not job.exists()


def test_blocks_that_never_began_to_learn_are_not_recorded_as_trained(tune: Tune, weights: Path) -> None:
    options = replace(OPTIONS, unfreeze="all", gradual=2)
    report = tune(options=options)
    before, after = read_weights(weights), read_weights(report.weights)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert set(report.tuning.unfrozen) == changed
    assert report.tuning.trained_parameters == sum(after[name].numel() for name in changed)


def test_views_that_must_be_kept_and_have_no_room_are_refused(tune: Tune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icecore.extract.tuning_cache.SHARE", 0.0)
    options = replace(OPTIONS, views=2)
    assert not tune("auto", options=options).keeps_prefix
    with pytest.raises(TuningError, match=r"keep_prefix: .*no room.*auto"):
        tune("always", options=replace(options, keep_prefix="always"))
