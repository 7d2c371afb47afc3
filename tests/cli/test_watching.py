"""``icecore extract`` watched: quiet where nobody looks, a line on a terminal, a log, a heartbeat."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Icecore = Callable[..., Any]
Write = Callable[..., None]
ICECORE = str(Path(sys.executable).with_name("icecore"))


@pytest.fixture
def photos(project: Any, write_photos: Write) -> Any:
    """The project with eight images, one of which is none."""
    write_photos(project.photos, train=3, val=1)
    (project.photos / "val" / "red" / "0.png").write_bytes(b"no image")
    return project


def events(text: str) -> list[str]:
    return [json.loads(line)["event"] for line in text.splitlines() if line.startswith("{")]


def test_without_a_terminal_a_run_is_quiet(icecore: Icecore, photos: Any) -> None:
    assert icecore("extract", photos.config).told == ""


def test_options_write_a_log_and_a_heartbeat_with_the_exit_code(icecore: Icecore, photos: Any) -> None:
    log, beat = photos.folder / "run.jsonl", photos.folder / "beat.json"
    done = icecore("extract", photos.config, "--log-json", log, "--heartbeat", beat)
    assert done.code == 5
    assert events(log.read_text("utf-8")) == ["started", "planned", "failure", "progress", "committed", "finished"]
    found = json.loads(beat.read_bytes())
    assert (found["state"], found["exit_code"], found["failed"]) == ("finished", 5, 1)
    assert found["command"] == f"icecore extract {photos.config}"
    assert found["store"] == str(photos.store)


def test_the_config_names_them_relative_to_itself_and_options_win(icecore: Icecore, photos: Any) -> None:
    photos.set('\n[watch]\nlog = "run.jsonl"\nheartbeat = "beat.json"\nevery = 60\n')
    assert icecore("extract", photos.config, "--heartbeat", photos.folder / "other.json").code == 5
    assert (photos.folder / "run.jsonl").is_file()
    assert (photos.folder / "other.json").is_file()
    assert not (photos.folder / "beat.json").exists()


def test_a_dash_logs_to_stderr_and_stdout_stays_the_result(icecore: Icecore, photos: Any) -> None:
    done = icecore("extract", photos.config, "--log-json", "-", "--json")
    assert events(done.told)[-1] == "finished"
    assert done.outcome["forwarded"] == 7
    again = icecore("extract", photos.config, "--set", "watch.log='-'")
    assert events(again.told)[:2] == ["started", "planned"]


def test_a_dry_run_leaves_the_heartbeat_of_a_run_at_work_alone(icecore: Icecore, photos: Any) -> None:
    beat = photos.folder / "beat.json"
    assert icecore("extract", photos.config, "--dry-run", "--heartbeat", beat).code == 0
    assert not beat.exists()


def test_a_run_that_fails_tells_why_in_both(icecore: Icecore, photos: Any) -> None:
    log, beat = photos.folder / "run.jsonl", photos.folder / "beat.json"
    files = ("--log-json", log, "--heartbeat", beat)
    done = icecore("extract", photos.config, "--set", "backbone.layers=['features.99']", *files)
    assert done.code == 4
    found = json.loads(beat.read_bytes())
    assert (found["state"], found["exit_code"]) == ("failed", 4)
    assert "has no layer 'features.99'" in found["error"]
    assert events(log.read_text("utf-8")) == ["started", "failed"]
    missing = icecore("extract", photos.config, "--set", "source.folder=nosuch", *files)
    assert json.loads(beat.read_bytes())["exit_code"] == missing.code == 1


@pytest.mark.parametrize(("option", "key"), [("--log-json", "log"), ("--heartbeat", "heartbeat")])
def test_a_file_in_a_folder_that_is_not_there_is_refused_before_anything_is_done(
    icecore: Icecore, photos: Any, option: str, key: str
) -> None:
    done = icecore("extract", photos.config, option, photos.folder / "nosuch" / "file")
    assert done.code == 2
    assert "there is no folder" in done.told
    named = icecore("extract", photos.config, "--set", f"watch.{key}=nosuch/file")
    assert named.code == 1
    assert "nosuch/file: the " in named.told
    assert "nothing was begun: make its folder" in named.told
    assert not photos.store.exists()


def test_on_a_terminal_one_line_shows_images_rate_and_failures(photos: Any) -> None:
    """As a shell sees it: stderr is a terminal, stdout a file."""
    ours, theirs = pty.openpty()  # the other side stays open: some systems drop what is unread when it closes
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    shown = b""
    with subprocess.Popen(
        [ICECORE, "extract", str(photos.config), "--set", "compute.batch_size=1"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TQDM_MININTERVAL": "0"},
    ) as run:
        while run.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.1)[0]:
                shown += os.read(ours, 4096)
        out = run.communicate()[0]
    for end in (ours, theirs):
        os.close(end)
    assert run.returncode == 5
    assert b"extract: 100%" in shown
    assert b"8/8" in shown
    assert b" images/s" in shown
    assert b"1 failed" in shown
    assert b"7 forwarded" in out


@pytest.mark.slow
def test_a_killed_run_leaves_a_heartbeat_that_grows_old(
    project: Any, noisy: Callable[..., Image.Image], encoded: Callable[..., bytes]
) -> None:
    """The documented check finds it: a state that says running in a file that nobody rewrites."""
    png = encoded(noisy(0), "PNG")
    for number in range(800):
        (project.photos / f"{number:05}.png").write_bytes(png + number.to_bytes(4, "big"))
    beat = project.folder / "beat.json"
    command = [ICECORE, "extract", str(project.config), "--heartbeat", str(beat), "--set", "watch.every=0.01"]
    command += ["--set", "compute.compilation='never'"]
    with subprocess.Popen([*command, "--set", "compute.batch_size=1"], stderr=subprocess.PIPE) as run:
        deadline = time.monotonic() + 120
        while not (beat.exists() and json.loads(beat.read_bytes())["done"]):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        run.wait(timeout=60)
    found = json.loads(beat.read_bytes())
    assert (found["state"], found["pid"], found["total"]) == ("running", run.pid, 800)
    check = ["find", str(beat), "-mmin", "+5", "-exec", "grep", "-l", '"state": "running"', "{}", "+"]
    assert subprocess.run(check, capture_output=True, check=True).stdout == b""
    os.utime(beat, (time.time() - 600,) * 2)
    assert subprocess.run(check, capture_output=True, check=True, text=True).stdout.strip() == str(beat)
