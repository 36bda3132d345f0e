"""Progress: a bar on a terminal that messages do not garble, now and then a line in a log."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from typing import Any

import pytest

from udaseg import console

SCRIPT = """
import time
from udaseg.console import Counting, Watching, out
with Counting("reading") as progress:
    for done in range(1, 6):
        out.print(f"message {done}")
        time.sleep(0.15)  # bars are drawn ten times a second
        progress(done, 5)
watch = Watching("training", images_per_step=2)
watch.note("warning")
watch.begin(10, 20)
time.sleep(0.15)
watch.advance(15)
watch.row({"iteration": 15, "confusion": None, "miou": 50.0})
watch.end()
"""
LINES = [*(f"message {i}" for i in range(1, 6)), "warning", "training: continuing at iteration 10 of 20",
         "     15  validation mIoU 50.00"]  # fmt: skip


def on_a_terminal(script: str) -> str:
    """What a program writes to a terminal of 80 columns."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # Linux: the other end is closed
            break
        if not part:
            break
        written += part
    assert process.wait() == 0
    os.close(ours)
    return written.decode()


def visible(written: str) -> list[str]:
    """The lines that remain on the screen: a carriage return goes back and what follows overwrites."""
    lines = []
    for line in written.replace("\r\n", "\n").split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_a_terminal_shows_a_bar_and_messages_stay_whole() -> None:
    written = on_a_terminal(SCRIPT)
    assert "reading: 100%|" in written and " 5/5 [" in written
    assert "training:  75%|" in written and " 15/20 [" in written
    assert visible(written) == [*LINES, ""]


def test_a_pipe_gets_messages_only() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == LINES and done.stderr == ""


def test_counted_work_in_a_log_says_every_ten_seconds_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with console.Counting("reading") as progress:
        for done in range(1, 31):
            clock[0] += 1.0
            progress(done, 30)
    assert capsys.readouterr().err.splitlines() == ["reading: 11/30", "reading: 22/30"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "n/a"), (0.123456, "0.1235"), (12345.6, "1.235e+04"), (float("nan"), "nan")]
)
def test_losses_as_text(value: Any, text: str) -> None:
    assert console.number(value) == text


def test_times_as_text() -> None:
    assert console.duration(59.6) == "1 min 00 s" and console.duration(3661) == "1 h 01 min"
