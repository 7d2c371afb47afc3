"""Several devices, each with a process of its own: the same rows, one writer, and nothing left behind."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import Pipe
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from icecore.extract import ExtractReport, Preprocess, ProcessLostError, errors, load_backbone, nvjpeg
from icecore.extract.devices import choose_devices
from icecore.extract.errors import DeviceError, ExtractError, ImageError, NumericsMovedError, SourceLostError
from icecore.extract.precision import Precision
from icecore.extract.worker import Asked, Failure, _listen, _Recent
from icecore.extract.workers import Workers, _without_interrupts, _words, _Worker
from icecore.store import ContractMismatchError, SourceImage, verify_store
from PIL import Image

Extract = Callable[..., ExtractReport]
Matrix = Callable[..., tuple[list[str], np.ndarray]]
TWO = ("cpu", "cpu")
SMALL = Preprocess(resize=32, crop=32)


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one_device(
    extract: Extract,
    matrix: Matrix,
    photos: Path,
    noise: Callable[..., Image.Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for n in range(80):
        noise(33, 33, seed=100 + n).save(photos / f"{n:02}.png")
    (photos / "07.png").write_bytes(b"bad")
    codes: list[int | None] = []
    close = _Worker.close
    monkeypatch.setattr(_Worker, "close", lambda worker: [close(worker), codes.append(worker.process.exitcode)])
    many = extract(device=TWO)
    assert codes == [0, 0]  # not killed while they tidied up
    ids, X = matrix()
    assert (many.device, many.engine, many.source["device"]) == ("cpu, cpu", "eager", "cpu, cpu")
    assert [failure.id for failure in many.failures] == ["07.png"]
    assert many.forwarded + many.linked == len(ids) == 88
    assert 0 < many.busy["forward"] < 1
    assert many.busy["decode"] > 0
    (tmp_path / "store").rename(tmp_path / "apart")
    extract()
    one = matrix()
    assert ids == one[0]
    np.testing.assert_allclose(X, one[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(X[ids.index("a/1.png")], X[ids.index("b/copy.png")])
    assert verify_store(tmp_path / "apart").ok
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_processes_know_the_contents_that_the_store_has(extract: Extract) -> None:
    extract()
    again = extract(device=TWO, rehash=True)
    assert (again.forwarded, again.linked, again.engine) == (0, 9, "")
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_and_the_next_one_goes_on(
    extract: Extract,
    matrix: Matrix,
    photos: Path,
    noise: Callable[..., Image.Image],
) -> None:
    for n in range(300):
        noise(33, 33, seed=100 + n).save(photos / f"{n:03}.png")

    def kill_one(done: int, total: int) -> None:
        for child in multiprocessing.active_children()[:1]:
            if done > 40:
                child.kill()

    with pytest.raises(ProcessLostError, match=r"process of cpu ended before its time \(killed by signal 9"):
        extract(device=TWO, progress=kill_one)
    assert not multiprocessing.active_children()
    report = extract()
    assert 40 < report.plan.unchanged < 309
    assert len(matrix()[0]) == 309


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that cannot be read for a passing reason")
@pytest.mark.parametrize("device", ["cpu", TWO], ids=["one", "two"])
def test_a_source_that_is_lost_ends_the_run_and_what_was_done_is_kept(
    extract: Extract, matrix: Matrix, photos: Path, noise: Callable[..., Image.Image], device: Any
) -> None:
    for n in range(100):
        noise(33, 33, seed=100 + n).save(photos / f"{n:03}.png")
    for n in range(300):
        (photos / f"z{n:03}.png").symlink_to("/proc/self/mem")  # Input/output error
    with pytest.raises(SourceLostError, match="50 files in a row could not be read"):
        extract(device=device)
    assert not multiprocessing.active_children()
    assert len(matrix()[0]) >= 40


@pytest.mark.slow
def test_an_interrupt_keeps_what_was_done_and_leaves_no_process(
    extract: Extract, matrix: Matrix, photos: Path, noise: Callable[..., Image.Image]
) -> None:
    for n in range(300):
        noise(33, 33, seed=100 + n).save(photos / f"{n:03}.png")

    def interrupt(done: int, total: int) -> None:
        if done >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(device=TWO, progress=interrupt)
    assert not multiprocessing.active_children()
    assert extract().plan.unchanged >= 40
    assert len(matrix()[0]) == 309


UNLIKE = """
import os, torch
from torch import nn

def net():
    torch.manual_seed(os.getpid())
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
"""


@pytest.mark.slow
def test_a_network_that_is_another_in_each_process_is_refused(extract: Extract, own_net: str, tmp_path: Path) -> None:
    (tmp_path / "own" / "unlike.py").write_text(UNLIKE)
    with pytest.raises((DeviceError, ContractMismatchError), match="not the backbone asked for"):
        extract(device=TWO, backbone_name="unlike:net", layers=["0"])


CHILD = """
import multiprocessing, sys, torch
from icecore.extract import Preprocess, extract_images

def tell(done, total):
    if children := multiprocessing.active_children():
        print(*(child.pid for child in children), flush=True)

if __name__ == "__main__":
    torch.set_num_threads(2)
    extract_images(sys.argv[1], "photos", sys.argv[2], backbone_name="ownnets:net", weights=None, layers=["block*"],
        preprocess=Preprocess(resize=32, crop=32), device=["cpu", "cpu"], batch_size=4, threads=2, progress=tell)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks for processes under /proc")
def test_when_the_run_is_killed_its_processes_end_by_themselves(
    photos: Path, tmp_path: Path, own_net: str, noise: Callable[..., Image.Image]
) -> None:
    for n in range(400):
        noise(33, 33, seed=100 + n).save(photos / f"{n:03}.png")
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    paths = os.pathsep.join([str(tmp_path / "own"), *filter(None, sys.path)])
    command = [sys.executable, str(script), str(tmp_path / "store"), str(photos)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}) as run:
        assert run.stdout is not None
        pids = [int(pid) for pid in run.stdout.readline().split()]
        run.send_signal(signal.SIGKILL)
    assert len(pids) == 2
    end = time.monotonic() + 20
    while any(_lives(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(_lives(pid) for pid in pids)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_too_few_images_for_two_processes_are_done_in_this_one(extract: Extract, forwards: list[int]) -> None:
    assert extract(device=TWO, batch_size=9).forwarded == 8
    assert sum(forwards) == 8


def test_devices_are_named_one_by_one_or_all() -> None:
    assert choose_devices("cpu") == (torch.device("cpu"),)
    assert choose_devices(TWO) == (torch.device("cpu"),) * 2
    with pytest.raises(DeviceError, match="no device is named"):
        choose_devices([])
    with pytest.raises(DeviceError, match="no device 'gpu'"):
        choose_devices(["cpu", "gpu"])
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="torch finds 0 CUDA devices"):
            choose_devices("cuda:all")


def test_a_backbone_is_pickled_as_what_describes_it(own_net: str) -> None:
    backbone = load_backbone(own_net, preprocess=SMALL, arguments={"width": 4}, views=["flip"])
    packed = pickle.dumps(backbone)
    again = pickle.loads(packed)
    assert again.contract() == backbone.contract()
    assert again.source == backbone.source
    assert len(packed) < 5_000
    for before, now in zip(backbone.module.parameters(), again.module.parameters(), strict=True):
        assert torch.equal(before, now)


def test_a_pickled_backbone_whose_weights_file_was_changed_is_refused(own_net: str, tmp_path: Path) -> None:
    module = load_backbone(own_net, preprocess=SMALL).module
    path = tmp_path / "w.pth"
    torch.save(module.state_dict(), path)
    packed = pickle.dumps(load_backbone(own_net, path, preprocess=SMALL))
    torch.save({name: tensor + 1 for name, tensor in module.state_dict().items()}, path)
    with pytest.raises(ContractMismatchError, match="not the backbone asked for"):
        pickle.loads(packed)


class Given:
    """What a process has sent before it ended; nothing takes what is sent to it."""

    def __init__(self, *messages: Any) -> None:
        (its_inbox, inbox), (outbox, its_outbox) = Pipe(duplex=False), Pipe(duplex=False)
        its_inbox.close()
        for message in messages:
            its_outbox.send(message)
        self.process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,), daemon=True)
        self.process.start()
        self.process.join()
        self.its_outbox = its_outbox
        self.worker = _Worker("cpu", self.process, inbox, outbox)


def workers(given: Given, monkeypatch: pytest.MonkeyPatch) -> Workers:
    found = Workers.__new__(Workers)
    found._workers = [given.worker]
    monkeypatch.setattr(found, "_begin", lambda: None)
    return found


def an_image(n: int = 0) -> SourceImage:
    return SourceImage(id=f"{n}.png", path=Path(f"{n}.png"), size=1, mtime_ns=1, ctime_ns=1)


def test_why_a_process_ended_is_told_although_it_had_asked_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(Asked(), Failure(SourceLostError("9.png", "Input/output error", failures=50), "its trace"))
    given.its_outbox.close()
    with pytest.raises(SourceLostError, match=r"9\.png") as caught:
        list(workers(given, monkeypatch).through([an_image()]))
    assert "its trace" in caught.value.__notes__[0]
    given.worker.close()


def test_a_process_that_is_killed_in_the_middle_of_a_message_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given()
    os.write(given.its_outbox.fileno(), (1000).to_bytes(4, "big") + b"half")
    given.its_outbox.close()
    with pytest.raises(ProcessLostError, match=r"process of cpu ended before its time \(exit code 0; "):
        list(workers(given, monkeypatch).through([an_image()]))
    given.worker.close()


@pytest.mark.parametrize("part", [b"", (1000).to_bytes(4, "big") + b"half"], ids=["before", "within"])
def test_a_process_ends_when_the_run_is_killed_before_or_within_a_message(
    part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr("icecore.extract.worker.os._exit", ended.append)
    inbox, outbox = Pipe(duplex=False)
    os.write(outbox.fileno(), part)
    outbox.close()
    _listen(inbox, SimpleQueue())
    assert ended == [1]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at /proc")
def test_an_interrupt_does_not_reach_a_process_that_is_beginning() -> None:
    with _without_interrupts():
        worker = _Worker.begin("cpu", b"")
    blocked = re.search(r"^SigBlk:\s*(\w+)$", Path(f"/proc/{worker.process.pid}/status").read_text(), re.M)
    worker.process.kill()
    worker.close()
    assert blocked is not None
    assert int(blocked[1], 16) & 1 << (signal.SIGINT - 1)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_memory_of_the_first_device_is_given_back_before_processes_begin(
    extract: Extract, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def begin(device: str, order: bytes) -> Any:
        called.append(f"begin {device}")
        raise DeviceError("enough")

    monkeypatch.setattr("icecore.extract.workers._Worker.begin", begin)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: called.append("empty"))
    monkeypatch.setattr("icecore.extract.job.guard_numerics", lambda *_: called.append("guard"))
    with pytest.raises(DeviceError, match="enough"):
        extract(device=TWO)
    assert called == ["guard", "empty", "begin cpu"]


def test_a_precision_that_one_of_the_devices_lacks_is_refused_before_the_store_is_made(
    extract: Extract, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("icecore.extract.job.settle_precision", lambda *_, **__: Precision("fp16", ""))  # of a GPU
    with pytest.raises(DeviceError, match="fp16 needs a CUDA device"):
        extract(device=TWO, precision="auto")
    assert not (tmp_path / "store").exists()


def test_a_device_beside_the_first_that_cannot_decode_is_refused_before_the_store_is_made(
    extract: Extract, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "icecore.extract.job.choose_devices", lambda *_, **__: (torch.device("cuda", 0), torch.device("cpu"))
    )
    ours = nvjpeg.platform_for
    monkeypatch.setattr(nvjpeg, "platform_for", lambda where: None if where.type == "cuda" else ours(where))
    with pytest.raises(DeviceError, match="the device is cpu"):
        extract(decode="nvjpeg")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "signal 9: was there too little memory?"), (-15, "signal 15"), (1, "around its calls"), (None, "not answer")],
)
def test_only_a_process_that_was_killed_may_have_lacked_memory(code: int | None, words: str) -> None:
    assert _words(code).endswith(words)


EXAMPLES: list[ExtractError] = [
    SourceLostError("a.jpg", "Input/output error", failures=50),
    ImageError("decode", "empty file"),
    NumericsMovedError("'a.jpg' gives other features", {"torch": "1"}, {"torch": "2"}),
    errors.RemovalRefusedError("photos", "under /srv", gone=5, total=9, limit=0.5),
    errors.WatchError("log", "/srv/log", PermissionError(13, "Permission denied")),
    DeviceError("no device"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_errors_reach_other_processes_with_their_words_and_fields(error: ExtractError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.args) == (type(error), str(error), error.args)
    assert vars(again) == vars(error)


def test_every_error_can_be_pickled() -> None:
    kinds: list[Any] = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert all(issubclass(kind, ExtractError) for kind in kinds)


def test_what_was_given_last_is_known_and_older_contents_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icecore.extract.worker._RECENT", 3)
    recent = _Recent()
    recent.add(iter([b"a", b"b", b"a", b"c"]))
    assert all(content in recent for content in (b"a", b"b", b"c"))
    recent.add(iter([b"d"]))
    assert b"a" not in recent
    assert b"d" in recent
