"""Plugins through the real commands: found, named, refused with their own file and line, gone, changed."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import toy

from udaseg.config import plugins
from udaseg.models import weights_file

TERM = '''
from udaseg.plugin import BuildContext, Loss, NotNegative, Output, StepContext, Term, View

__version__ = "0.3"


class Flat(Term):
    """The mean square of the last map."""

    def __init__(self, context: BuildContext, *, margin: NotNegative = 1.0) -> None:
        super().__init__(context)
        self.margin = margin

    def forward(self, view: View, output: Output, context: StepContext) -> Loss:
        return Loss(self.margin * output.branches[0].features[-1].square().mean())


COMPONENTS = {"term": {"flat": Flat}}
'''
RECIPE = (
    "extends: demo\nbenchmark: streets\nplugins: [./flat_method.py]\nviews: {mixed: {terms: {flat: {weight: 0.1}}}}\n"
)
ENCODER = '''
import torch
from udaseg.plugin import Encoder

class Wide(Encoder):
    """One convolution of stride 8."""
    channels = (8,)
    strides = (8,)

    def __init__(self, *, kernel: int = 8) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 8, kernel, stride=8)

    def forward(self, image):
        return (self.layer(image),)


COMPONENTS = {"encoder": {"wide": Wide}}
'''
SMALL = [*toy.SIZES, "train.batch=2", "runtime.workers=0", "runtime.threads=1", "model.start=null"]


@pytest.fixture(autouse=True)
def as_new(fresh_registries: None) -> None:
    """Every test begins and ends without plugins."""


def write(name: str, text: str, place: Path = Path()) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text)
    return place / name


def test_a_recipe_names_its_plugin_relative_to_itself(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("flat_method.py", TERM, Path("deep/er"))
    write("mine.yaml", RECIPE, Path("deep/er"))
    assert toy.run("recipe", "show", "deep/er/mine.yaml") == 0
    shown = capsys.readouterr().out
    assert "views.mixed.terms.flat.margin" in shown and "flat_method.py 0.3 (sha256" in shown.replace("\n", "")
    write("below.yaml", "extends: deep/er/mine.yaml\nviews: {mixed: {terms: {flat: {margin: 2}}}}\n")
    assert toy.run("recipe", "validate", "below.yaml") == 0  # the parent's plugins count


def test_plugins_of_recipe_and_command_line_add_up(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("flat_method.py", TERM)
    write("mine.yaml", RECIPE)
    write("wide_net.py", ENCODER)
    assert (
        toy.run("recipe", "show", "mine.yaml", "model.encoder=wide", "model.decoder=linear", "--plugin", "wide_net.py")
        == 0
    )
    shown = capsys.readouterr().out
    assert "wide_net.py" in shown and "flat_method.py" in shown


def test_names_of_a_plugin_are_suggested(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("flat_method.py", TERM)
    assert toy.run("recipe", "validate", "demo", "views.mixed.terms.flatt={}", "--plugin", "flat_method.py") == 2
    assert "did you mean 'flat'?" in capsys.readouterr().err


def test_a_run_stamps_its_plugin_and_says_when_it_changed(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("flat_method.py", TERM)
    write("mine.yaml", RECIPE)
    command = ("train", "-r", "mine.yaml", "--out", "run", *SMALL)
    assert toy.run(*command, "train.iterations=2", "evaluation.every=2") == 0
    (stamp,) = json.loads(Path("run/environment.json").read_text())
    (entry,) = stamp["plugins"]
    assert (entry["version"], len(entry["sha256"])) == ("0.3", 64) and entry["file"].endswith("flat_method.py")
    assert "mixed/flat" in Path("run/metrics.jsonl").read_text()
    Path("run/result.json").unlink()  # as if it had been stopped before its end
    write("flat_method.py", TERM + "\n# a change\n")
    toy.forget_plugins()
    capsys.readouterr()
    assert toy.run(*command, "train.iterations=2", "evaluation.every=2") == 0
    assert "flat_method.py was changed since this run used it" in capsys.readouterr().out.replace("\n", " ")


def test_a_run_whose_plugin_is_gone_goes_on_with_its_new_place(
    streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("flat_method.py", TERM)
    write("mine.yaml", RECIPE)
    assert toy.run("train", "-r", "mine.yaml", "--out", "run", *SMALL, "train.iterations=2") == 0
    Path("run/result.json").unlink()
    Path("elsewhere").mkdir()
    Path("flat_method.py").rename("elsewhere/flat_method.py")
    toy.forget_plugins()
    capsys.readouterr()
    assert toy.run("train", "--resume", "--out", "run") == 2
    message = capsys.readouterr().err.replace("\n", " ")
    assert "unknown term 'flat'" in message and "flat_method.py is gone; put it back" in message
    assert toy.run("train", "--resume", "--out", "run", "--plugin", "elsewhere/flat_method.py") == 0


BROKEN = {
    "no_table.py": ("x = 1\n", "COMPONENTS"),
    "bad_line.py": ("import math\n\nvalue = undefined_name\n", "bad_line.py, line 3: NameError"),
    "bad_syntax.py": ("def broken(:\n", "line 1"),
    "deep_error.py": ("def f():\n    return 1 / 0\nf()\n", "deep_error.py, line 2: ZeroDivisionError"),
    "quits.py": ("import sys\nsys.exit(3)\n", "cannot be imported"),
    "taken_name.py": (TERM.replace('"flat"', '"cross_entropy"'), "exists already"),
    "wrong_kind.py": (TERM.replace('"term"', '"trem"'), "did you mean 'term'?"),
    "wrong_class.py": (TERM.replace('{"flat": Flat}', '{"flat": dict}'), "dict is no Term"),
    "no_class.py": (TERM.replace('{"flat": Flat}', '{"flat": 3}'), "3 is no Term"),
    "no_forward.py": (TERM.replace("def forward", "def backward"), "lacks forward"),
    "required.py": (TERM.replace("*, margin: NotNegative = 1.0", "margin"), "settings stand after the *"),
    "untyped.py": (TERM.replace("margin: NotNegative = 1.0", "margin=1.0"), "every setting needs a type"),
    "no_type.py": (
        "from __future__ import annotations\n" + TERM.replace("margin: NotNegative", "margin: Nowhere"),
        "every setting needs a type",
    ),
    "dotted.py": (TERM.replace('"flat"', '"a.b"'), "letters, digits and _"),
    "math.py": (TERM, "rename the file"),
    "not-a-name.py": (TERM, "has to be a Python name"),
    "needs_more.py": ("import no_such_package_anywhere\n", "needs_more.py, line 1: ModuleNotFoundError"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_told_with_its_own_place(
    name: str, streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = BROKEN[name]
    write(name, text)
    assert toy.run("recipe", "validate", "demo", "--plugin", name) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert message in told and name.removesuffix(".py") in told and "Traceback" not in told


def test_a_plugin_that_is_nowhere(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("mine.yaml", RECIPE)
    for arguments, message in (
        (("mine.yaml",), "mine.yaml: plugins: ./flat_method.py: no such file"),
        (("demo", "--plugin", "no_such_module"), "there is no module no_such_module"),
        (("demo", "plugins=flat_method.py"), "plugins"),
    ):
        assert toy.run("recipe", "validate", *arguments) == 2
        assert message in " ".join(capsys.readouterr().err.split())


def test_two_plugins_with_one_name(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("flat_method.py", TERM)
    write("other_method.py", TERM)
    assert toy.run("recipe", "validate", "demo", "--plugin", "flat_method.py", "--plugin", "other_method.py") == 2
    assert "'flat': exists already (in flat_method)" in " ".join(capsys.readouterr().err.split())


def test_a_weights_file_imports_no_plugin_unless_its_network_needs_it(
    streets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("flat_method.py", TERM)
    write("mine.yaml", RECIPE)
    write("wide_net.py", ENCODER)
    common = (*SMALL, "train.iterations=1", "model.weights=none")
    assert toy.run("train", "-r", "mine.yaml", "--out", "loss", *common) == 0
    network = ("model.encoder=wide", "model.decoder=linear", "views.mixed.terms.flat=null")
    assert toy.run("train", "-r", "mine.yaml", "--out", "net", *common, *network, "--plugin", "wide_net.py") == 0
    assert weights_file.read_metadata(Path("loss/weights.safetensors")).plugins == ()
    assert weights_file.read_metadata(Path("net/weights.safetensors")).plugins == ("wide_net.py",)
    picture = next(Path(os.environ["UDASEG_DATA"]).rglob("*.png"))
    toy.forget_plugins()
    Path("flat_method.py").unlink()  # only the training needed it
    assert toy.run("predict", "loss", str(picture), "--out", "p1") == 0
    assert "flat_method" not in sys.modules
    capsys.readouterr()
    assert toy.run("predict", "net/weights.safetensors", str(picture), "--out", "p2") == 2
    assert "needs the plugin wide_net.py; give it with --plugin" in " ".join(capsys.readouterr().err.split())
    assert toy.run("predict", "net/weights.safetensors", str(picture), "--out", "p3", "--plugin", "wide_net.py") == 0
    toy.forget_plugins()
    assert toy.run("evaluate", "net") == 0  # a run folder knows where its plugins are


def test_models_lists_encoders_of_plugins(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("wide_net.py", ENCODER)
    assert toy.run("models", "wide", "--plugin", "wide_net.py", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["strides"], row["licence"]) == ("wide", [8], "plugin wide_net.py")
    assert toy.run("models", "timm/resnet18.a1_in1k", "--plugin", "wide_net.py") == 0  # timm's names still work


def test_installed_packages_are_found_by_entry_points(
    streets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("flat_method.py", TERM, Path("site"))
    write("bad_method.py", "value = undefined_name\n", Path("site"))
    monkeypatch.syspath_prepend(str(Path("site").absolute()))
    entries = [EntryPoint(name, f"{name}_method", "udaseg") for name in ("bad", "flat")]
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == "udaseg" else [])
    assert toy.run("recipe", "validate", "demo", "views.mixed.terms.flat={}") == 0  # the broken one is none of ours
    assert toy.run("recipe", "validate", "demo", "views.mixed.terms.flatt={}") == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "did you mean 'flat'?" in told and "bad_method.py, line 1: NameError" in told


def test_grids_and_reports_take_plugins(streets: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("flat_method.py", TERM)
    write(
        "study.yaml",
        "title: T\nbenchmark: streets\nseeds: [0]\nrows:\n  - {label: plain, recipe: demo}\n"
        "  - {label: flat, recipe: demo, overrides: ['views.mixed.terms.flat={}']}\n",
    )
    common = ("study.yaml", "--plugin", "flat_method.py", *SMALL, "train.iterations=1")
    assert toy.run("ablate", *common) == 0  # in child processes, which need the plugin, too
    assert toy.run("ablate", *common, "--status") == 0
    assert "changed since" not in capsys.readouterr().out
    write("flat_method.py", TERM + "\n# a change\n")
    toy.forget_plugins()
    assert toy.run("ablate", *common, "--status") == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "flat, seed 0: plugin" in told and "was changed since this run used it; to train it anew, delete" in told
    assert "plain, seed 0: plugin" not in told
    assert toy.run("report", *common, "--format", "csv") == 0
    assert "reproduced" in capsys.readouterr().out
