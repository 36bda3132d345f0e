"""The real command: help, recipes, wrong inputs. What a person gets is a message and exit code 2, never a traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from udaseg.cli import main

HEAVY = ("torch", "torchvision", "numpy", "pydantic", "PIL")
COMMANDS = (
    "demo", "prepare", "check", "train", "ablate", "evaluate", "import", "submit", "predict", "export", "profile",
    "models", "report", "plot", "doctor", "recipe", "analyze",
    *(f"recipe {c}" for c in ("ls", "show", "cp", "validate", "assumptions")),
    *(f"analyze {c}" for c in ("similarity", "discriminability", "tsne", "training")),
)  # fmt: skip
SMALL = (
    "data.source.size=[64,32]", "data.target.size=[64,32]", "data.validation.size=[64,32]", "data.crop=[32,32]",
    "data.min_pixels=3", "train.batch=2", "train.iterations=2", "runtime.workers=0",
)  # fmt: skip


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Answer]


@pytest.fixture
def udaseg(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the command in this process, in an empty folder with an empty data home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path / "data"))

    def run(*arguments: str) -> Answer:
        capfd.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            assert stop.code is None or isinstance(stop.code, int)
            code = stop.code or 0
        return Answer(code, *capfd.readouterr())

    return run


def real(*arguments: str, **environment: str) -> Answer:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "udaseg.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120", **environment})
    return Answer(done.returncode, done.stdout, done.stderr)


def is_message(answer: Answer, *words: str) -> None:
    """Exit code 2 and a message on standard error with these words; no traceback, nothing on standard output."""
    plain = " ".join(answer.err.split())
    assert answer.code == 2, answer
    assert answer.out == "" and "Traceback" not in answer.err and plain.lower().count("error") >= 1, answer
    for word in words:
        assert word in plain, (word, answer.err)


@pytest.mark.parametrize(("option", "value"), [("--size", "100000x100000"), ("--seed", "9" * 30)])
def test_streets_beyond_any_use(udaseg: Run, tmp_path: Path, option: str, value: str) -> None:
    answer = udaseg("prepare", "streets", option, value)
    assert answer.code == 2 and option in answer.err
    assert not (tmp_path / "data").exists()


# --- output ----------------------------------------------------------------------------------------------------------


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "udaseg.cli", "recipe", "ls"], stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert done.stderr == ""


def test_closed_output() -> None:
    command = f"{sys.executable} -m udaseg.cli recipe ls >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_terminal_without_our_characters(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: dacs\nname: été\n", encoding="utf-8")
    answer = real("recipe", "show", str(recipe), PYTHONIOENCODING="ascii")
    assert (answer.code, answer.err) == (0, "") and "?t?" in answer.out


# --- help ----------------------------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom udaseg.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as stop:\n"
        f"    print(stop.code or 0, [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert "udaseg demo" in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(udaseg: Run, command: str) -> None:
    answer = udaseg(*command.split(), "--help")
    assert answer.code == 0 and answer.err == ""
    assert re.search(rf"Usage: .*{command}\b", answer.out) and "--help" in answer.out


def test_help_names_all_commands(udaseg: Run) -> None:
    text = udaseg("--help").out
    assert all(re.search(rf"\b{command}\b", text) for command in COMMANDS if " " not in command)


def test_no_command_and_wrong_commands(udaseg: Run) -> None:
    assert udaseg().code == 2 and udaseg("recipe").code == 2
    for arguments in ("nosuch", "--nosuch", "recipe nosuch", "train --sed 1", "profile", "evaluate"):
        is_message(udaseg(*arguments.split()))


def test_the_installed_command() -> None:
    script = Path(sys.executable).with_name("udaseg")
    done = subprocess.run([script, "recipe", "nosuch"], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr


# --- recipes -------------------------------------------------------------------------------------------------------


def test_recipe_ls(udaseg: Run) -> None:
    answer = udaseg("recipe", "ls")
    assert answer.code == 0 and answer.err == ""
    for name in ("source_only", "oracle", "dacs", "daformer", "demo", "streets", "gta5_cityscapes"):
        assert re.search(rf"^{name}\s+\w.{{20,}}", answer.out, re.MULTILINE), name


def test_recipe_show(udaseg: Run) -> None:
    answer = udaseg("recipe", "show", "daformer", "train.batch=4", "-b", "streets")
    assert answer.code == 0 and answer.err == ""

    def row(key: str) -> list[str]:
        (line,) = [line for line in answer.out.splitlines() if line.split()[:1] == [key]]
        return line.split()[1:]

    assert row("train.batch") == ["4", "command", "line"]
    assert row("benchmark") == ["streets", "command", "line"]
    assert row("model.encoder.kind") == ["mit_b5", "recipes/daformer.yaml"]
    assert row("views.mixed.jitter") == ["0.2", "recipes/dacs.yaml"]
    assert row("views.source.terms.feature_distance.weight") == ["0.005", "recipes/daformer.yaml"]
    assert row("data.crop")[-1] == "recipes/benchmarks/streets.yaml"
    assert row("train.compile") == ["False", "default"]
    assert "passes per step: student 2 (source + mixed), teacher 1, pretrained encoder 1" in answer.out


def test_names_with_brackets_and_colons_are_printed_as_they_are(udaseg: Run) -> None:
    path = Path("ünï [red]x :smile:.yaml")
    path.write_text("extends: dacs\nseed: 5\n", encoding="utf-8")
    assert f"{path.stem}: valid" in udaseg("recipe", "validate", path).out
    assert re.search(rf"^seed +5 +{re.escape(str(path))} *$", udaseg("recipe", "show", path).out, re.MULTILINE)
    is_message(udaseg("recipe", "validate", path, "sed=1"), path.stem)


def test_recipe_cp_makes_a_recipe_of_your_own(udaseg: Run) -> None:
    answer = udaseg("recipe", "cp", "daformer", "mine/new.yaml")
    assert answer.code == 0 and "--recipe mine/new.yaml" in answer.out
    first = udaseg("recipe", "validate", "mine/new.yaml").out.split("fingerprint")[1]
    assert first == udaseg("recipe", "validate", "daformer").out.split("fingerprint")[1]
    assert udaseg("recipe", "cp", "daformer", "mine").code == 0 and Path("mine/daformer.yaml").is_file()


def test_recipe_cp_never_overwrites(udaseg: Run) -> None:
    Path("mine.yaml").write_text("precious", encoding="utf-8")
    Path("link.yaml").symlink_to("elsewhere.yaml")
    Path("dacs.yaml").write_text("precious", encoding="utf-8")
    for target in ("mine.yaml", "link.yaml", "."):
        is_message(udaseg("recipe", "cp", "dacs", target), "exists", "another name")
    assert Path("mine.yaml").read_text(encoding="utf-8") == Path("dacs.yaml").read_text(encoding="utf-8") == "precious"
    assert not Path("elsewhere.yaml").exists()


def test_recipe_cp_to_where_nothing_can_be_written(udaseg: Run) -> None:
    Path("file").touch()
    is_message(udaseg("recipe", "cp", "dacs", "file/x.yaml"), "file")
    is_message(udaseg("recipe", "cp", "dacs", "x.txt"), "x.txt", ".yaml")
    is_message(udaseg("recipe", "cp", "nosuch", "x.yaml"), "no recipe 'nosuch'")
    assert not Path("x.txt").exists() and not Path("x.yaml").exists()


def test_recipe_validate_lists_everything_that_is_wrong(udaseg: Run) -> None:
    assert re.fullmatch(r"dacs: valid, fingerprint [0-9a-f]{12}\s*", udaseg("recipe", "validate", "dacs").out)
    Path("bad.yaml").write_text("extends: dacs\ntrain: {bach: 3}\nsede: 1\n", encoding="utf-8")
    answer = udaseg("recipe", "validate", "bad.yaml", "model.encoder=mit_b9")
    is_message(answer, "3 problem(s)", "bad.yaml: train.bach:", "'batch'", "sede", "command line: model.encoder")


# --- wrong inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train"], ["--recipe NAME", "udaseg recipe ls"]),
        (["train", "-r", "dafomer"], ["did you mean 'daformer'"]),
        (["train", "-r", "demo", "-b", "streetz"], ["no benchmark 'streetz'", "did you mean 'streets'"]),
        (["train", "-r", "demo", "train.bach=3"], ["command line: train.bach", "did you mean 'batch'"]),
        (["train", "-r", "demo", "train.batch"], ["override 'train.batch'", "key=value"]),
        (["train", "-r", "demo", "train.batch="], ["the value is empty"]),
        (["train", "-r", "demo", ""], ["override ''"]),
        (["train", "-r", "demo", "--seed", "-1"], ["--seed"]),
        (["train", "-r", "demo", "--seed", "x"], ["--seed"]),
        (["train", "-r", "demo", "--seed", str(2**63)], ["seed", "less than"]),
        (["train", "--resume"], ["--recipe NAME"]),
        (["train", "--resume", "--out", "nowhere"], ["nowhere", "not a run folder"]),
        (["train", "--resume", "--out", "nowhere", "seed=3"], ["leave out"]),
        (["ablate"], ["which study?", "udaseg ablate --list"]),
        (["ablate", "t2s"], ["t2s_02_gta5_dlv2, t2s_03_gta5_mit"]),
        (["ablate", "omuda-7", "--seeds", "0,0"], ["--seeds '0,0'"]),
        (["ablate", "mask-ratio", "--executor", "slum"], ["--executor 'slum'", "inline, local, slurm"]),
        (["ablate", "mask-ratio", "--executor", "inline", "--jobs", "2"], ["--jobs", "--executor local"]),
        (["profile", "-r", "demo", "--steps", "0"], ["--steps"]),
        (["evaluate", "nowhere"], ["nowhere: no such run folder or weights file"]),
        (["evaluate", "."], ["not a run folder"]),
        (["prepare", "cityscape"], ["did you mean 'cityscapes'"]),
        (["prepare", "streets", "--size", "64"], ["--size '64'", "256x128"]),
        (["prepare", "streets", "--size", "1x1"], ["--size '1x1'", "at least"]),
        (["prepare", "streets", "--size", "64x²"], ["--size"]),
        (["prepare", "streets", "--gap", "2"], ["--gap"]),
        (["prepare", "streets", "--seed", "-1"], ["--seed"]),
        (["prepare", "streets", "--workers", "0"], ["--workers"]),
    ],
)
def test_wrong_inputs(udaseg: Run, arguments: list[str], words: list[str]) -> None:
    answer = udaseg(*arguments)
    is_message(answer._replace(err=answer.err.replace("Did you", "did you")), *words)
    assert not Path("runs").exists() and not Path("data").exists()


def test_prepare_on_missing_data_prints_the_expected_tree(udaseg: Run) -> None:
    answer = udaseg("prepare", "gta5")
    is_message(answer, "'gta5' was not found", "udaseg prepare gta5", "UDASEG_DATA", "https://")
    assert "  gta5/\n    images/00001.png" in answer.err
    is_message(udaseg("prepare", "cityscapes", "--root", "elsewhere"), "elsewhere", "leftImg8bit", "--root DIR")


def test_prepare_where_nothing_can_be_written(udaseg: Run) -> None:
    Path("file").touch()
    is_message(udaseg("prepare", "streets", "--size", "32x32", "--root", "file"), "file", "another path")


def test_train_lists_all_absences_at_once(udaseg: Run) -> None:
    answer = udaseg("train", "-r", "daformer", "model.start=old/run")
    is_message(answer, "data.source", "'gta5'", "udaseg prepare gta5", "data.target", "'cityscapes'",
               "model.weights", "mit_b5.pth", "model.weights=none", "model.start", "old/run")  # fmt: skip
    assert answer.err.count("leftImg8bit_trainvaltest.zip") == 1  # told once for target and validation
    assert not Path("runs").exists()
    for command in (["train", "--dry-run"], ["profile"]):
        is_message(udaseg(*command, "-r", "daformer"), "udaseg prepare gta5", "model.weights=none")


def test_train_needs_no_data_it_does_not_look_at(udaseg: Run) -> None:
    answer = udaseg("train", "-r", "source_only", "-b", "streets", "data.validation=null")
    is_message(answer, "streets_source", "udaseg prepare streets", "model.weights")
    assert "streets_target" not in answer.err


def test_train_into_places_that_are_no_run_folders(udaseg: Run, streets: Path) -> None:
    Path("file").write_text("precious", encoding="utf-8")
    Path("full").mkdir()
    Path("full/thesis.txt").write_text("precious", encoding="utf-8")
    for place, word in (("file", "file"), ("file/x", "file"), ("full", "not a run folder")):
        is_message(udaseg("train", "-r", "demo_source_only", *SMALL, "--out", place)._replace(out=""), word)
    assert Path("file").read_text(encoding="utf-8") == Path("full/thesis.txt").read_text(encoding="utf-8") == "precious"
    assert [entry.name for entry in Path("full").iterdir()] == ["thesis.txt"]


# --- a run, from the outside ---------------------------------------------------------------------------------------


def test_train_evaluate_and_the_same_command_again(udaseg: Run, streets: Path) -> None:
    command = ["train", "-r", "demo_source_only", *SMALL, "--out", "run [1]"]
    answer = udaseg(*command)
    assert answer.code == 0 and "run run [1]" in answer.out and "Traceback" not in answer.err
    assert "finished before" in udaseg(*command).out
    is_message(udaseg(*command, "--seed", "1"), "run [1] holds a run of another recipe", "seed: 0 -> 1", "--out")
    assert "finished before" in udaseg(*command, "runtime.log_every=1").out

    result = udaseg("evaluate", "run [1]", "--json", "--limit", "2")
    assert result.code == 0 and len(result.out.splitlines()) == 1
    found = json.loads(result.out)
    assert found["protocol"] == "cityscapes19" and len(found["iou"]) == 19 and len(found["confusion"]) == 19
    text = udaseg(
        "evaluate", "run [1]/weights.safetensors", "--protocol", "synthia13", "--limit", "1", "-b", "streets"
    ).out
    assert "of 13 classes" in text and "student of demo_source_only on streets_target val (1 images)" in text

    is_message(udaseg("evaluate", "run [1]", "--protocol", "synthia"), "'synthia16'")
    is_message(udaseg("evaluate", "run [1]", "--teacher"), "no teacher")
    is_message(udaseg("evaluate", "run [1]", "--split", "test"), "no split 'test'")
    is_message(udaseg("evaluate", "run [1]", "--limit", "0"), "--limit")
    is_message(udaseg("evaluate", "run [1]", "-b", "nosuch"), "no benchmark 'nosuch'")
    Path("bad.yaml").write_text("data: {source: {dataset: nosuch}, sauce: 1}\n", encoding="utf-8")
    is_message(udaseg("evaluate", "run [1]", "-b", "bad.yaml"), "bad.yaml: data.sauce", "data.crop", "missing")
    Path("bad.yaml").write_text("data: {source: {dataset: gta}, crop: [1, 1]}\n", encoding="utf-8")
    is_message(udaseg("evaluate", "run [1]", "-b", "bad.yaml"), "'gta'", "gta5")


# --- models --------------------------------------------------------------------------------------------------------


def test_models_lists_our_own_and_says_how_to_list_timms(udaseg: Run) -> None:
    answer = udaseg("models")
    assert answer.code == 0 and answer.err == ""
    assert re.search(r"^mit_b5 +81\.4 +4 8 16 32 .*mit_b5\.pth +NVIDIA.*non-commercial", answer.out, re.MULTILINE)
    assert re.search(r"^resnet101 +42\.5 +4 8 8 8 .*unknown, check", answer.out, re.MULTILINE)
    assert re.search(r"^daformer +3\.7$", answer.out, re.MULTILINE)
    assert re.search(r"and \d{4} pretrained networks of timm: udaseg models 'timm/", answer.out)


def test_models_of_timm(udaseg: Run) -> None:
    answer = udaseg("models", "timm/vit_small*dinov[23].l*")
    assert answer.code == 0
    assert re.search(r"_patch14_dinov2\S+ +\d\d\.\d +4 8 16 32 +any, to 14 n +hub +apache-2.0", answer.out)
    assert re.search(r"_patch16_dinov3\S+ +\d\d\.\d .* to 16 n +hub +dinov3-license", answer.out)
    assert "tiny" not in answer.out and "decoder" not in answer.out
    (row,) = json.loads(udaseg("models", "test_vit.r160", "--json").out)
    assert (row["name"], row["normalisation"]) == ("timm/test_vit.r160_in1k", "128/128/128; 128/128/128")
    assert row["weights"] == "https://huggingface.co/timm/test_vit.r160_in1k/resolve/main/model.safetensors"
    assert "images of one size only (224 x 224)" in udaseg("models", "timm/cait_xxs24_224").out
    many = udaseg("models", "timm/*resnet*").out
    assert "networks: parameters are counted for up to 40" in many and "timm/resnet18.a1_in1k" in many


def test_models_that_do_not_exist(udaseg: Run) -> None:
    is_message(udaseg("models", "nothing_like_it"), "no encoder matches 'nothing_like_it'", "mit_b0", "timm/NAME")
    is_message(udaseg("models", "mit_b9"), "did you mean 'mit_b")
    is_message(udaseg("models", "timm/resnt18"), "did you mean 'timm/resnet18'")


# --- doctor --------------------------------------------------------------------------------------------------------


def test_doctor_names_a_mismatched_pair_and_the_remedy(tmp_path: Path) -> None:
    fake = tmp_path / "torchvision"
    fake.mkdir()
    (fake / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n", encoding="utf-8"
    )
    answer = real("doctor", PYTHONPATH=str(tmp_path))
    assert answer.code == 2 and "Traceback" not in answer.out + answer.err
    assert "operator torchvision::nms does not exist" in answer.out
    lines = [line.strip() for line in answer.out.splitlines()]
    assert "pip uninstall -y torch torchvision" in lines and "pip install torch torchvision" in lines
    assert re.search(r"^torchvision +bad", answer.out, re.MULTILINE)
    assert re.search(r"^torch +ok", answer.out, re.MULTILINE)
    assert "data home" in answer.out  # the rest is examined all the same


def test_doctor_names_a_gpu_that_this_torch_cannot_use(tmp_path: Path) -> None:
    """Not the pair of torch and torchvision, which is sound."""
    (tmp_path / "torch.py").write_text(
        "import types\n__version__ = '9'\nversion = types.SimpleNamespace(cuda='13')\n"
        "metadata = types.SimpleNamespace(total_memory=2**34, name='Old', major=3, minor=5)\n"
        "cuda = types.SimpleNamespace(is_available=lambda: True, get_device_properties=lambda i: metadata,\n"
        "    is_bf16_supported=lambda **_: False, device_count=lambda: 1)\nzeros = lambda *_: 0\n"
        "def ones(*_, device): raise RuntimeError('no kernel image is available for execution on the device')\n",
        encoding="utf-8",
    )
    (tmp_path / "torchvision.py").write_text(
        "import types\n__version__ = '9'\nops = types.SimpleNamespace(nms=lambda *_: 0)\n", encoding="utf-8"
    )
    answer = real("doctor", PYTHONPATH=str(tmp_path))
    assert answer.code == 2
    assert "no kernel image is available" in answer.out and "not be made for this GPU" in answer.out
    assert re.search(r"^gpu +bad", answer.out, re.MULTILINE) and "pip uninstall" not in answer.out
    assert re.search(r"^torchvision +ok", answer.out, re.MULTILINE)


def test_doctor_without_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(
        "raise ImportError('[libfoo.so]: cannot open shared object file')\n", encoding="utf-8"
    )
    answer = real("doctor", PYTHONPATH=str(tmp_path))
    assert answer.code == 2 and "Traceback" not in answer.out + answer.err
    assert re.search(r"^torch +bad", answer.out, re.MULTILINE) and "[libfoo.so]: cannot open" in answer.out
