"""Files that udaseg wrote and somebody or something damaged: the right outcome or a UserError that names file and key.

Damage is drawn by schema: a value is dropped, retyped or enlarged; bytes are cut, flipped or added. Never is there
another exception or a changed file: what cannot be used is kept under another name.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from fake_runs import write_run, write_start
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save as to_safetensors
from torch import nn

from udaseg.console import Silent
from udaseg.data.loading import Normalise
from udaseg.engine import checkpoint, runlog, runs
from udaseg.engine.distributed import Ranks
from udaseg.engine.networks import segmentor
from udaseg.engine.optim import PolyWarmup, adamw
from udaseg.engine.result import read_result
from udaseg.engine.runlog import RunFolder
from udaseg.engine.trainer import Trainer
from udaseg.errors import UserError
from udaseg.models import weights
from udaseg.report.results import curves, read, scan
from udaseg.report.summary import overview_table
from udaseg.report.tables import markdown

JUNK = st.sampled_from(
    [
        None,
        True,
        -1,
        0,
        3.5,
        2**70,
        10**400,
        math.nan,
        math.inf,
        "",
        "x",
        "\x00",
        [],
        {},
        [[]],
        [[1], [2, 3]],
        {"a": {}},
    ]
)
Damage = Callable[[bytes], bytes]
FORMS = ("terminal", "md", "latex", "csv", "html")


def examples(number: int) -> Any:
    """So many, the same ones each time."""
    return settings(
        max_examples=number, derandomize=True, database=None, deadline=timedelta(seconds=20),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested maps and lists."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def damaged_tree(draw: st.DrawFn, tree: Any) -> tuple[tuple[Any, ...], Any]:
    """(path, the tree with the value there dropped, replaced or enlarged)."""
    tree = copy.deepcopy(tree)
    path = draw(st.sampled_from(list(places(tree))))
    *outer, last = path
    inside = tree
    for key in outer:
        inside = inside[key]
    action = draw(st.sampled_from(["drop", "retype", "enlarge"]))
    if action == "drop":
        del inside[last]
    elif action == "enlarge" and isinstance(inside[last], int | float | str | list):
        inside[last] = inside[last] * 10**5 if not isinstance(inside[last], list) else inside[last] * 7
    else:
        inside[last] = draw(JUNK)
    return path, tree


@st.composite
def byte_damage(draw: st.DrawFn) -> Damage:
    """A function that cuts, flips, adds or replaces bytes."""
    where, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))
    action = draw(st.sampled_from(["cut", "flip", "flip near the start", "add", "replace"]))
    junk = draw(st.binary(max_size=40))

    def damage(content: bytes) -> bytes:
        if action == "cut":
            return content[: int(where * len(content))]
        if action == "add":
            return content + junk
        if action == "replace":
            return junk
        at = int(where * min(len(content), 200 if "start" in action else len(content)))
        return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]

    return damage


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}


# --- weights files -------------------------------------------------------------------------------------------------

HEADER: dict[str, Any] = {
    "encoder": {"kind": "tiny", "widths": [4, 4, 4, 4]}, "decoder": {"kind": "fpn", "width": 4}, "format": 1,
    "classes": ["road", "sky"], "palette": [[1, 2, 3], [4, 5, 6]], "mean": [1.5, 2.0, 3.0], "std": [1.0, 1.0, 1.0],
    "size": [64, 32], "recipe": "x", "benchmark": None, "protocol": "all", "seed": 0, "iterations": 7,
    "data": {"source": {"dataset": "streets_source", "size": [64, 32]}, "scale": 1}, "wrapper": None,
    "crop": [32, 32], "inference": "slide", "origin": None,
}  # fmt: skip
OPTIONAL = {"format", "size", "data", "wrapper", "inference", "origin"}
NETWORK = segmentor(HEADER["encoder"], HEADER["decoder"], 2)


def weights_file(header: Any = HEADER, tensors: dict[str, torch.Tensor] | None = None) -> bytes:
    state = {key: value.contiguous() for key, value in (tensors or NETWORK.state_dict()).items()}
    return to_safetensors(state, metadata={"udaseg": json.dumps(header)})


def loads(content: bytes) -> str:
    """ "" if the weights are read, and pictures predicted; else the message."""
    from udaseg.deploy.model import load

    with folder() as place:
        path = place / "w.safetensors"
        path.write_bytes(content)
        try:
            load(path, device="cpu").predict(torch.zeros(40, 70, 3, dtype=torch.uint8).numpy())
        except UserError as error:
            assert str(path) in str(error), error
            return str(error)
        finally:
            assert contents(place) == {"w.safetensors": content}
    return ""


def headers(case: tuple[tuple[Any, ...], Any]) -> None:
    path, header = case
    message = loads(weights_file(header))
    if path[0] in header.keys() | OPTIONAL:
        assert not message or path[0] in message or "header" in message or "does not fit the network" in message
    else:
        assert path[0] in message, message


def bytes_of_weights(damage: Damage) -> None:
    loads(damage(weights_file()))


test_headers = examples(60)(given(damaged_tree(HEADER))(headers))
test_headers_at_length = pytest.mark.slow(examples(2000)(given(damaged_tree(HEADER))(headers)))
test_bytes_of_weights = examples(40)(given(byte_damage())(bytes_of_weights))
test_bytes_of_weights_at_length = pytest.mark.slow(examples(1000)(given(byte_damage())(bytes_of_weights)))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("encoder", {"kind": "nosuch"}), ("encoder", {}), ("encoder", "tiny "), ("encoder", {"kind": "tiny", "x": 1}),
        ("encoder", {"kind": ["tiny"]}), ("decoder", {"kind": "fpn", "width": "wide"}), ("wrapper", {"kind": "x"}),
        ("classes", ["road", "road"]), ("classes", ["road", 3]), ("classes", []), ("palette", [[1, 2, 3]]),
        ("palette", [[1, 2, 256], [1, 2, 3]]), ("palette", "red"), ("mean", [1.0]), ("std", [1.0, 0.0, 1.0]),
        ("std", "one"), ("size", [-1, 5]), ("size", "64x32"), ("size", [1, 2, 3]), ("size", [10**6, 10**6]),
        ("crop", [0, 0]), ("crop", [1, 1]), ("crop", None), ("inference", "zoom"), ("protocol", "nosuch"),
        ("data", {"source": 3}), ("format", 2),
    ],
)  # fmt: skip
def test_a_header_is_refused_with_its_key(key: str, value: Any) -> None:
    assert key in loads(weights_file({**HEADER, key: value}))


@pytest.mark.parametrize("part", [{"encoder": {"kind": "tiny", "widths": [2**20] * 4}}, {"classes": ["a"] * 3}])
def test_a_network_larger_than_the_file_is_not_built(part: dict[str, Any]) -> None:
    assert loads(weights_file({**HEADER, **part}))


def test_weights_that_are_not_finite_are_refused() -> None:
    assert not loads(weights_file())
    state = {key: value.clone() for key, value in NETWORK.state_dict().items()}
    name = next(iter(state))
    state[name].view(-1)[0] = math.nan
    assert f"{name} holds values that are not finite" in loads(weights_file(tensors=state))


@pytest.mark.parametrize("content", [3, [1], {1: torch.zeros(2)}, {"model": 3}, {"x": torch.tensor(1.0)}, "loop"])
def test_odd_pickles(tmp_path: Path, content: Any) -> None:
    if content == "loop":
        content = {}
        content["state_dict"] = content
    torch.save(content, path := tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth"):
        weights.load_encoder(NETWORK.encoder, path)
    assert toy.run("import", str(path), "--out", str(tmp_path / "new.safetensors")) == 2


def test_scalars_under_the_names_of_a_network(tmp_path: Path, capsys: Any) -> None:
    names = [f"backbone.patch_embed{i}.proj.weight" for i in (1, 2, 3, 4)] + ["backbone.block1.0.x"]
    names += ["decode_head.linear_c.0.proj.weight", "decode_head.linear_pred.weight", "decode_head.conv_seg.weight"]
    torch.save({name: torch.tensor(1.0) for name in names}, path := tmp_path / "w.pth")
    assert toy.run("import", str(path)) == 2
    assert "w.pth" in capsys.readouterr().err


# --- checkpoints ---------------------------------------------------------------------------------------------------


def trainer(seed: int = 0, fingerprint: str = "f") -> Trainer:
    """One that can save and restore; it has no data."""
    torch.manual_seed(seed)
    learner: Any = nn.Linear(2, 2)
    built = Trainer(
        learner, None, None, batches=lambda start, stop: iter(()), normalise=Normalise((0.0,) * 3, (1.0,) * 3),
        optimiser=adamw([{"params": list(learner.parameters()), "name": "head", "lr": 1e-3, "initial_lr": 1e-3}]),
        schedule=PolyWarmup(9, 0), iterations=9, seed=seed, fingerprint=fingerprint, device=torch.device("cpu"),
        ranks=Ranks(), scaler=torch.amp.GradScaler("cpu", enabled=False), score=lambda counts: 0.0,
        save_weights=lambda path, module: None,
    )  # fmt: skip
    built.progress = Silent()
    return built


def two_checkpoints(place: Path) -> Path:
    """After iterations 1 and 2; the path of the newer."""
    made = trainer()
    for made.done in (1, 2):
        made.learner(torch.ones(1, 2)).sum().backward()
        made.optimiser.step()
        made.meter.sums = {"losses/a": torch.tensor(float(made.done))}
        made.meter.counts = {"losses/a": torch.tensor(1.0)}
        made.validation = made.best = {"iteration": made.done, "confusion": [[1, 2], [3, 4]], "miou": 50.0}
        path = checkpoint.save(place / "checkpoints", made.state())
    return path


with folder() as _place:
    CHECKPOINT = two_checkpoints(_place).read_bytes()
    EARLIER = (_place / "checkpoints/step-0000001.pt").read_bytes()
STATE = torch.load(io.BytesIO(CHECKPOINT), weights_only=True)
STATE["optimiser"]["param_groups"][0] = {
    key: value for key, value in STATE["optimiser"]["param_groups"][0].items()
    if key in ("params", "name", "lr", "initial_lr", "weight_decay", "betas", "eps")
}  # fmt: skip
MAY_MISS = {"fingerprint"}


def restored(content: bytes) -> tuple[int, str]:
    """(iteration that a run goes on from, message of a refusal) with that as the newest checkpoint."""
    with folder() as place:
        (place / "checkpoints").mkdir()
        (place / "checkpoints/step-0000001.pt").write_bytes(EARLIER)
        (newest := place / "checkpoints/step-0000002.pt").write_bytes(content)
        made = trainer()
        made.run = RunFolder(place)
        try:
            made.restore()
        except UserError as error:
            assert newest.read_bytes() == content and str(newest) in str(error)
            return 0, str(error)
        if made.done == 1:
            assert contents(place / "checkpoints")["step-0000002.pt.damaged"] == content and not newest.exists()
            assert "step-0000002.pt.damaged" in (place / "log.txt").read_text()
        else:
            assert newest.read_bytes() == content
        assert all(each is None or each["iteration"] <= made.done for each in (made.best, made.validation))
        made.learner(torch.ones(1, 2)).sum().backward()
        made.optimiser.step()
        return made.done, ""


def checkpoint_trees(case: tuple[tuple[Any, ...], Any]) -> None:
    (first, *_), state = case
    torch.save(state, buffer := io.BytesIO())
    done, message = restored(buffer.getvalue())
    assert message or done in (1, 2)
    if first not in state and first not in MAY_MISS:
        assert done == 1


def checkpoint_bytes(damage: Damage) -> None:
    content = damage(CHECKPOINT)
    done, message = restored(content)
    assert done in (1, 2) and not message


test_checkpoint_trees = examples(60)(given(damaged_tree(STATE))(checkpoint_trees))
test_checkpoint_trees_at_length = pytest.mark.slow(examples(2000)(given(damaged_tree(STATE))(checkpoint_trees)))
test_checkpoint_bytes = examples(60)(given(byte_damage())(checkpoint_bytes))
test_checkpoint_bytes_at_length = pytest.mark.slow(examples(2000)(given(byte_damage())(checkpoint_bytes)))


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("iteration", -1, "iteration -1"), ("iteration", 10, "iteration 10"), ("seed", 1, "seed 1 instead of 0"),
     ("fingerprint", "g", "another recipe"), ("format", 1, "this version of udaseg")],
)  # fmt: skip
def test_another_runs_checkpoint_is_refused(key: str, value: Any, words: str) -> None:
    torch.save({**STATE, key: value}, buffer := io.BytesIO())
    assert words in restored(buffer.getvalue())[1]


def test_tensors_of_another_shape_fall_back() -> None:
    for part in (STATE["learner"], STATE["optimiser"]["state"][0], STATE["meter"]["sums"]):
        for key, value in part.items():
            part[key] = torch.zeros(3, 3)
            torch.save(STATE, buffer := io.BytesIO())
            part[key] = value
            assert restored(buffer.getvalue()) == (1, "")


def test_without_a_checkpoint_that_is_whole_a_run_begins_again(tmp_path: Path) -> None:
    path = two_checkpoints(tmp_path)
    for each in path.parent.iterdir():
        each.write_bytes(b"")
    made = trainer()
    before = {key: value.clone() for key, value in made.learner.state_dict().items()}
    made.run = RunFolder(tmp_path)
    made.restore()
    assert made.done == 0 and all(torch.equal(v, before[k]) for k, v in made.learner.state_dict().items())
    assert sorted(contents(path.parent)) == ["step-0000001.pt.damaged", "step-0000002.pt.damaged"]


def test_pruning_knows_its_own_names(tmp_path: Path) -> None:
    for name in ("step-0000000-backup.pt", "step-1.pt", "step-0000000.pt.damaged", "step-best.pt"):
        (tmp_path / name).write_text("mine")
    state = trainer().state()
    for iteration in (9_999_998, 9_999_999, 10_000_000):
        checkpoint.save(tmp_path, {**state, "iteration": iteration})
    assert [path.name for path in checkpoint.listed(tmp_path)] == ["step-9999999.pt", "step-10000000.pt"]
    assert sum(content == b"mine" for content in contents(tmp_path).values()) == 4


def test_leftovers_of_a_kill_are_cleared_and_nothing_else(tmp_path: Path) -> None:
    own = [
        ".recipe.yaml.ab_12xyz.tmp",
        ".weights_best.safetensors.abcdefgh.tmp",
        "checkpoints/.step-0000007.pt.a1b2c3d4.tmp",
    ]
    other = [".notes.abcdefgh.tmp", ".recipe.yaml.tmp", "recipe.yaml.abcdefgh.tmp", ".step-7.pt.abcdefgh.tmp", "x.tmp"]
    (tmp_path / "checkpoints").mkdir()
    for name in (*own, *other):
        (tmp_path / name).write_text("x")
    held = RunFolder(tmp_path)
    held.lock()
    held.unlock()
    assert not any((tmp_path / name).exists() for name in own) and all((tmp_path / name).exists() for name in other)


def test_a_run_begins_where_another_was_killed_while_writing_its_recipe(tmp_path: Path) -> None:
    (tmp_path / ".recipe.yaml.ab_12xyz.tmp").write_text("x")
    runs.claim(toy.load("source_only"), tmp_path, resume=False)
    (tmp_path / ".notes.ab_12xyz.tmp").write_text("x")
    with pytest.raises(UserError, match="not a run folder"):
        runs.claim(toy.load("source_only"), tmp_path, resume=False)


# --- run folders ---------------------------------------------------------------------------------------------------

with folder() as _place:
    RESULT = json.loads((write_run(_place / "run") / "result.json").read_text())
    LOG = (_place / "run/metrics.jsonl").read_bytes()
ENVIRONMENT = [{"time": "2026-11-21T10:00:00+0000", "fingerprint": "f", "git": None}]


def shown(place: Path) -> str:
    """The run's line of a report; reading and showing change nothing."""
    before = contents(place)
    curves(read(place))
    text = markdown(overview_table(scan(place.parent), place.parent, now=0.0))
    assert contents(place) == before
    return text


def results(content: bytes) -> None:
    with folder() as root:
        place = write_run(root / "run")
        (place / "result.json").write_bytes(content)
        run, text = read(place), shown(place)
        assert run.state in ("finished", "damaged") and run.problem.startswith("result.json: " * bool(run.problem))
        try:
            read_result(place)
        except UserError as error:
            assert str(place / "result.json") in str(error) and "damaged" in text
        else:
            assert run.state == "finished"


def result_trees(case: tuple[Any, Any]) -> None:
    results(json.dumps(case[1]).encode())


def result_bytes(damage: Damage) -> None:
    results(damage(json.dumps(RESULT).encode()))


test_results = examples(60)(given(damaged_tree(RESULT))(result_trees))
test_results_at_length = pytest.mark.slow(examples(2000)(given(damaged_tree(RESULT))(result_trees)))
test_result_bytes = examples(60)(given(byte_damage())(result_bytes))
test_result_bytes_at_length = pytest.mark.slow(examples(2000)(given(byte_damage())(result_bytes)))


def logs(content: bytes) -> None:
    with folder() as root:
        place = write_start(root / "run")
        (path := place / "metrics.jsonl").write_bytes(content)
        shown(place)
        RunFolder(place).rewind(10)
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(0 <= row["iteration"] <= 10 for row in rows)
        aside = place / "metrics.jsonl.damaged"
        assert not aside.exists() or aside.read_bytes() == content
        whole = [runlog.parse_row(line) is not None for line in content.splitlines()]
        assert aside.exists() == (not all(whole[:-1]))


def log_trees(case: tuple[Any, list[Any]]) -> None:
    logs(b"".join(json.dumps(row).encode() + b"\n" for row in case[1]))


def log_bytes(damage: Damage) -> None:
    logs(damage(LOG))


ROWS = [json.loads(line) for line in LOG.splitlines()]
test_logs = examples(60)(given(damaged_tree(ROWS))(log_trees))
test_logs_at_length = pytest.mark.slow(examples(2000)(given(damaged_tree(ROWS))(log_trees)))
test_log_bytes = examples(60)(given(byte_damage())(log_bytes))
test_log_bytes_at_length = pytest.mark.slow(examples(2000)(given(byte_damage())(log_bytes)))


def stamps(content: bytes) -> None:
    with folder() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr(runlog, "environment", lambda: {"time": "now"})
        place = write_run(root / "run")
        (path := place / "environment.json").write_bytes(content)
        shown(place)
        try:
            before = runlog.read_stamps(place)
        except UserError as error:
            assert str(path) in str(error)
            assert (
                str(path) in RunFolder(place).stamp() and (place / "environment.json.damaged").read_bytes() == content
            )
            before = []
        else:
            assert RunFolder(place).stamp() == ""
        assert len(runlog.read_stamps(place)) == len(before) + 1


def stamp_trees(case: tuple[Any, Any]) -> None:
    stamps(json.dumps(case[1]).encode())


def stamp_bytes(damage: Damage) -> None:
    stamps(damage(json.dumps(ENVIRONMENT).encode()))


test_stamps = examples(40)(given(damaged_tree(ENVIRONMENT))(stamp_trees))
test_stamps_at_length = pytest.mark.slow(examples(1000)(given(damaged_tree(ENVIRONMENT))(stamp_trees)))
test_stamp_bytes = examples(40)(given(byte_damage())(stamp_bytes))
test_stamp_bytes_at_length = pytest.mark.slow(examples(1000)(given(byte_damage())(stamp_bytes)))


@pytest.mark.parametrize("form", FORMS)
def test_report_on_garbage_and_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """A FIFO is never opened: that would wait for ever."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/good"))
    names = ("recipe.yaml", "result.json", "metrics.jsonl", "failure.json", ".lock")
    for name in names:
        for start in (write_run, write_start):
            for what in ("fifo", "folder", "binary", "empty"):
                place = start(Path("runs") / f"{name}-{start.__name__}-{what}")
                (place / name).unlink(missing_ok=True)
                if what == "fifo":
                    os.mkfifo(place / name)
                elif what == "folder":
                    (place / name).mkdir()
                else:
                    (place / name).write_bytes(b"\xff\x00\x80[{" * (what == "binary"))
    (Path("runs/strange") / "x").mkdir(parents=True)
    (Path("runs/strange") / "recipe.yaml").write_text("train: {iterations: .inf}\nseed: .nan\nname: 2020-01-01\n")
    assert toy.run("report", "--format", form) == 0
    assert len(scan(Path("runs"))) > 30


OUT = [(name, kind) for name in ("demo", "ablate", "train") for kind in ("file", "device", "folder")]
OUT.remove(("ablate", "folder"))  # a grid's runs may lie beside anything


@pytest.mark.parametrize(("command", "kind"), OUT)
def test_out_on_something_else(tmp_path: Path, capfd: Any, command: str, kind: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/demo.png").write_text("mine")
    (tmp_path / "file").write_text("mine")
    place = {"file": tmp_path / "file", "device": Path("/dev/null"), "folder": tmp_path / "mine"}[kind]
    arguments = {
        "demo": ["demo"],
        "ablate": ["ablate", "mask-ratio"],
        "train": ["train", "-r", "daformer", "-b", "streets"],
    }
    assert toy.run(*arguments[command], "--out", str(place)) == 2
    assert str(place) in "".join(capfd.readouterr().err.split("\n"))
    assert contents(tmp_path) == {"file": b"mine"} and contents(tmp_path / "mine") == {"demo.png": b"mine"}


def test_a_picture_is_not_written_over_or_beside_a_folder(tmp_path: Path) -> None:
    from udaseg.files import write_free

    for place in (tmp_path, Path("/dev/null")):
        with pytest.raises(UserError, match="a folder or a device"):
            write_free(place, b"x")
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}-2")) and not Path("/dev/null-2").exists()
