"""`udaseg doctor`: is this machine ready, and if not, what to do. Works when torch is broken or missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from rich.text import Text

from udaseg.console import out, table
from udaseg.data.layouts import DATASETS, data_home, find_root
from udaseg.errors import UserError

PROBE = """
import torch
print("torch", torch.__version__)
print("cuda", torch.version.cuda or "-")
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    memory = f"{p.total_memory / 2**30:.0f} GB"
    print("device", f"{torch.cuda.device_count()} x {p.name}, {memory}, sm_{p.major}{p.minor}, bf16 {bf16}")
    try:
        (torch.ones(8, device="cuda") @ torch.ones(8, device="cuda")).item()
    except Exception as error:
        print("gpu", (str(error).splitlines() or [type(error).__name__])[0])
elif torch.version.cuda:
    print("device", "cpu (this torch has CUDA, but no usable GPU or driver was found)")
else:
    print("device", "cpu")
import torchvision
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print("torchvision", torchvision.__version__)
"""
REMEDY = (
    "torch and torchvision do not belong together. Install both from one index, for example:\n"
    "    pip uninstall -y torch torchvision\n"
    "    pip install torch torchvision"
)

GPU_REMEDY = (
    "This build of torch may not be made for this GPU (too old or too new), or its driver is too old; choose a build\n"
    "at https://pytorch.org/get-started/locally, or train with runtime.device=cpu"
)


class Finding(NamedTuple):
    """One line of the report; ``status`` is ok, note or bad."""

    what: str
    status: str
    detail: str


def examine_and_print() -> None:
    """A table of all findings; exit code 2 if one of them is bad."""
    colours = {"ok": "green", "note": "yellow", "bad": "red"}
    findings = examine()
    table(("", "", "detail"), [[f.what, Text(f.status, colours[f.status]), f.detail] for f in findings], left=3)
    if any(f.status == "bad" for f in findings):
        out.print("something needs fixing, see above")
        sys.exit(2)


def examine() -> list[Finding]:
    """All findings, without raising."""
    return [*versions(), *torch_findings(), *machine(), *data_roots()]


def versions() -> list[Finding]:
    fits = sys.version_info >= (3, 10)
    python = Finding("python", "ok" if fits else "bad", f"{platform.python_version()} ({sys.executable})")
    return [python, Finding("udaseg", "ok", version("udaseg"))]


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def torch_findings() -> list[Finding]:
    """Import torch and torchvision in a process of their own, so that a crash there is a finding here."""
    try:
        answer = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=180)
    except subprocess.TimeoutExpired:
        return [Finding("torch", "bad", "importing torch took more than three minutes")]
    findings = [_finding(*line.split(" ", 1)) for line in answer.stdout.splitlines() if " " in line]
    if answer.returncode == 0:
        return findings
    last = (answer.stderr.strip().splitlines() or ["it died without a word"])[-1]
    if any(finding.what == "torch" for finding in findings):
        pair = f"torch {version('torch')} with torchvision {version('torchvision')}: {last}"
        return [*findings, Finding("torchvision", "bad", f"{pair}\n{REMEDY}")]
    return [*findings, Finding("torch", "bad", f"{last}\n{REMEDY}")]


def _finding(what: str, value: str) -> Finding:
    if what == "gpu":
        return Finding(what, "bad", f"it computes nothing: {value}\n{GPU_REMEDY}")
    return Finding(what, "note" if "no usable GPU" in value else "ok", value)


def machine() -> list[Finding]:
    """Cores, free disk, and whether this folder can be written to."""
    here = Path.cwd()
    free = shutil.disk_usage(here).free / 2**30
    runs, writable = here / "runs", os.access(here, os.W_OK)
    return [
        Finding("cores", "ok", str(os.cpu_count())),
        Finding("disk", "ok" if free > 5 else "note", f"{free:.0f} GB free in {here}"),
        Finding("runs", *(("ok", str(runs)) if writable else ("bad", f"{runs} cannot be written; use --out"))),
    ]


def data_roots() -> list[Finding]:
    """Where each data set is, or that it is not there."""
    origin = "$UDASEG_DATA" if os.environ.get("UDASEG_DATA") else "default"
    findings = [Finding("data home", "ok", f"{data_home()} ({origin})")]
    for name, spec in DATASETS.items():
        try:
            findings.append(Finding(name, "ok", str(find_root(spec, None))))
        except UserError:
            findings.append(Finding(name, "note", "not found"))
    return findings
