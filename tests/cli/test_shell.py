"""What the shell asks for: the version, and what may follow a word. Neither may wait for torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import udaseg

HEAVY = ("torch", "torchvision", "timm", "matplotlib", "sklearn", "safetensors")
SCRIPT = "from udaseg.cli import main\nimport sys\ntry: main()\nfinally: print(*sorted(sys.modules), file=sys.stderr)\n"


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program `udaseg`, as an installation leaves it, that tells at its end what it imported."""
    path = tmp_path_factory.mktemp("bin") / "udaseg"
    path.write_text(f"#!{sys.executable}\n{SCRIPT}")
    path.chmod(0o755)
    return path


def call(command: Path, *arguments: str, **environment: str) -> tuple[str, set[str]]:
    """What it prints, and which heavy modules it imported."""
    package = str(Path(udaseg.__file__).parents[1])
    done = subprocess.run(
        [str(command), *arguments], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": package, **environment},
    )  # fmt: skip
    return done.stdout, set(HEAVY) & set(done.stderr.split())


def after_tab(command: Path, line: str) -> list[str]:
    """What bash would offer at the end of a line."""
    words = line.split(" ")
    found, heavy = call(
        command, _UDASEG_COMPLETE="complete_bash", COMP_WORDS="\n".join(words), COMP_CWORD=str(len(words) - 1)
    )
    assert not heavy, heavy
    return found.split()


def test_the_version(command: Path) -> None:
    assert call(command, "--version") == (f"udaseg {udaseg.__version__}\n", set())


@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("udaseg ", {"train", "demo", "recipe"}, {"daformer"}),
        ("udaseg tr", {"train"}, {"demo"}),
        ("udaseg recipe ", {"ls", "show", "cp", "validate"}, {"train"}),
        ("udaseg train --rec", {"--recipe"}, {"--resume"}),
        ("udaseg train --recipe daf", {"daformer", "daformer_dlv2"}, {"hrda", "gta5_cityscapes"}),
        ("udaseg train -r daformer -b gta", {"gta5_cityscapes"}, {"daformer"}),
        ("udaseg recipe show mi", {"mic", "mic_dlv2"}, {"daformer"}),
        ("udaseg check str", {"streets", "streets_camvid"}, {"gta5_cityscapes"}),
        ("udaseg ablate stre", {"streets_dg"}, {"streets"}),
        ("udaseg report streets_dg stre", {"streets_dg"}, set()),
        ("udaseg prepare ", {"gta5", "cityscapes", "streets", "dark_zurich"}, {"streets_source", "streets_target"}),
        ("udaseg submit ", {"cityscapes", "acdc", "dark-zurich"}, {"gta5"}),
        ("udaseg evaluate run --protocol syn", {"synthia13", "synthia16"}, {"all"}),
    ],
)
def test_completion_knows_the_names_without_torch(command: Path, line: str, some: set[str], none: set[str]) -> None:
    found = after_tab(command, line)
    assert some <= set(found) and not none & set(found)
    assert all(word.startswith(line.rpartition(" ")[2]) for word in found)


@pytest.mark.parametrize("line", ["udaseg predict ru", "udaseg train -r ./my", "udaseg ablate my_study.ya"])
def test_paths_are_left_to_the_shell(command: Path, line: str) -> None:
    assert after_tab(command, line) == []  # then bash offers files


def test_every_offered_name_is_one_that_the_command_takes() -> None:
    from udaseg.commands import completing
    from udaseg.config.layers import locate
    from udaseg.data.classes import PROTOCOLS
    from udaseg.data.layouts import dataset_spec
    from udaseg.data.servers import SERVERS
    from udaseg.report.study import find

    assert all(locate(name) for name in completing.recipes())
    assert all(locate(name, "benchmarks") for name in completing.benchmarks())
    assert all(find(name) for name in completing.studies())
    assert all(dataset_spec(name) for name in completing.datasets() if name != "streets")
    assert {name.replace("-", "_") for name in completing.servers()} == set(SERVERS)
    assert set(completing.protocols()) == set(PROTOCOLS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_the_script_works_in_bash(command: Path) -> None:
    lines = [
        f'export PATH="{command.parent}:$PATH" PYTHONPATH="{Path(udaseg.__file__).parents[1]}"',
        "source <(_UDASEG_COMPLETE=source_bash udaseg 2>/dev/null)",
        "COMP_WORDS=(udaseg train --recipe hrda_d); COMP_CWORD=3",
        "_udaseg_completion udaseg 2>/dev/null",
        'echo "${COMPREPLY[@]}"',
        "complete -p udaseg",
    ]
    done = subprocess.run(["bash", "--norc", "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    offered, registered = done.stdout.splitlines()
    assert offered.split() == ["hrda_dlv2"]
    assert "-o default" in registered and "_udaseg_completion" in registered  # files, where no name fits
