"""`udaseg submit` and `udaseg evaluate --per-condition`: the real command on small files in official formats."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from cli.test_commands import Answer, Run, is_message
from cli.test_commands import udaseg as udaseg  # the fixture
from PIL import Image
from unit.data_files import labels, photo, save, truncate

from udaseg.data import servers
from udaseg.data.classes import CAMVID, CITYSCAPES_IDS
from udaseg.data.images import read_image
from udaseg.data.loading import Normalise
from udaseg.data.transforms import resize_image
from udaseg.deploy.model import Model
from udaseg.engine.networks import load_weights, segmentor, segmentor_of, weights_metadata
from udaseg.models import weights_file
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD

CITY, NIGHT = (64, 32), (48, 27)
CONDITIONS = ("fog", "night", "rain", "snow")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights file of a network that was never trained and looks through windows of 64 x 64."""
    path = tmp_path_factory.mktemp("run") / "weights.safetensors"
    recipe = toy.load("dacs", "evaluation.mode=slide", "data.validation.size=[160,80]").recipe
    torch.manual_seed(1)
    module = segmentor_of(recipe)
    weights_file.save(path, module, weights_metadata(recipe, module))
    return path


@pytest.fixture
def small(udaseg: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Servers that count a handful of images, and those images; returns the data home."""
    home = Path("data").absolute()
    rng = np.random.default_rng(0)
    counts = {"cityscapes": {"bonn": 2, "mainz": 1}, "acdc": dict.fromkeys(CONDITIONS, 1), "dark_zurich": {"test": 2}}
    for name, images in counts.items():
        size = CITY if name == "cityscapes" else NIGHT
        row = dataclasses.replace(servers.SERVERS[name], images=images, size=size)
        monkeypatch.setitem(servers.SERVERS, name, row)
    for city, frame in (("bonn", 0), ("bonn", 1), ("mainz", 0)):
        stem = f"cityscapes/leftImg8bit/test/{city}/{city}_{frame:06d}_000019_leftImg8bit.png"
        save(home / stem, photo(rng, CITY))
    for i, condition in enumerate(CONDITIONS):
        save(home / f"acdc/rgb_anon/{condition}/test/{night(i)}_rgb_anon.png", photo(rng, NIGHT))
    for i in (364, 365):
        save(home / f"dark_zurich/rgb_anon/test/night/{night(i)}_rgb_anon.png", photo(rng, NIGHT))
    for name in counts:
        assert udaseg("prepare", name).code == 0
    return home


def night(i: int) -> str:
    return f"GOPR{i:04d}/GOPR{i:04d}_frame_000161"


def contents(path: Path) -> dict[str, Any]:
    """Name -> (mode, array) of every file in a zip, none of them compressed again."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            with archive.open(info) as file, Image.open(file) as picture:
                found[info.filename] = (picture.mode, np.array(picture))
    return found


def expected(weights: Path, image: Path) -> np.ndarray:
    """Train ids, computed without the code under test: resize, normalise, eight windows, enlarge, best class."""
    module, native = load_weights(weights)[0].eval(), read_image(image)
    small = torch.from_numpy(resize_image(native, (160, 80))).permute(2, 0, 1)[None]
    total, visits = torch.zeros(1, 19, 80, 160), torch.zeros(1, 1, 80, 160)
    normal = Normalise(IMAGENET_MEAN, IMAGENET_STD)(small)
    with torch.no_grad():
        for top in (0, 16):
            for left in (0, 32, 64, 96):
                here = (slice(None), slice(None), slice(top, top + 64), slice(left, left + 64))
                total[here] += module.logits(normal[here])
                visits[here] += 1
        logits = torch.nn.functional.interpolate(total / visits, native.shape[:2], mode="bilinear", align_corners=False)
    return logits.argmax(1)[0].numpy()


# --- the three servers ---------------------------------------------------------------------------------------------


def test_cityscapes_gets_label_ids(udaseg: Run, small: Path, weights: Path) -> None:
    answer = udaseg("submit", "cityscapes", weights)
    name = f"cityscapes-{weights.parent.name}.zip"
    assert answer.code == 0 and f"{name}: 3 predictions of dacs, student" in answer.out and "/submit/" in answer.out
    found = contents(Path(name))
    assert list(found) == [f"{stem}_000019_labelIds.png" for stem in ("bonn_000000", "bonn_000001", "mainz_000000")]
    lut = np.array(list(CITYSCAPES_IDS))
    values = set()
    for file, (mode, array) in found.items():
        city = file.split("_")[0]
        image = small / "cityscapes/leftImg8bit/test" / city / file.replace("labelIds", "leftImg8bit")
        assert mode == "L" and (array != lut[expected(weights, image)]).mean() < 0.002  # ties of rounding at borders
        values |= set(array.ravel().tolist())
    assert len(values) > 1, "a constant prediction would show little"
    assert [path.name for path in Path().iterdir() if path.name != "data"] == [name]


def test_acdc_gets_train_ids_in_a_folder(udaseg: Run, small: Path, weights: Path) -> None:
    assert udaseg("submit", "acdc", weights, "--out", "new/x.zip").code == 0
    found = contents(Path("new/x.zip"))
    assert list(found) == [f"labelTrainIds/{night(i)[9:]}_rgb_anon.png" for i in range(4)]
    assert all(mode == "L" and array.shape == NIGHT[::-1] and array.max() < 19 for mode, array in found.values())


def test_acdc_as_daformer_flattens_it(udaseg: Run, small: Path, weights: Path) -> None:
    for path in sorted((small / "acdc").glob("rgb_anon/*/test/*/*.png")):
        flat = small / "acdc/rgb_anon/test" / path.name
        flat.parent.mkdir(exist_ok=True)
        path.rename(flat)
    assert udaseg("prepare", "acdc").code == 0 and udaseg("submit", "acdc", weights, "--out", "x.zip").code == 0
    assert len(contents(Path("x.zip"))) == 4
    flat.unlink()
    assert udaseg("prepare", "acdc").code == 0
    is_message(
        udaseg("submit", "acdc", weights, "--out", "y.zip"), "expects 4 images", "has 3", "other folders: 3 of 4"
    )


def test_dark_zurich_gets_three_folders(udaseg: Run, small: Path, weights: Path) -> None:
    answer = udaseg("submit", "dark-zurich", weights, "--out", "x.zip", "--root", small / "dark_zurich")
    assert answer.code == 0 and "only the IoU" in answer.out
    found = contents(Path("x.zip"))
    names = [f"{night(i)[9:]}_rgb_anon.png" for i in (364, 365)]
    folders = ("labelTrainIds", "labelTrainIds_invalid", "confidence")
    assert list(found) == [f"{folder}/{name}" for folder in folders for name in names]
    for name in names:
        first, copy, confidence = (found[f"{folder}/{name}"] for folder in folders)
        assert first[0] == copy[0] == "L" and np.array_equal(first[1], copy[1]) and first[1].max() < 19
        assert confidence[0] == "I;16" and (confidence[1] == 65535).all() and confidence[1].shape == NIGHT[::-1]


# --- stopped and continued -----------------------------------------------------------------------------------------


def stopping(after: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let prediction number `after` be interrupted; returns a list that grows with each."""
    calls: list[int] = []
    predict: Callable[..., Any] = Model.predict

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return predict(*arguments)

    monkeypatch.setattr(Model, "predict", counted)
    return calls


def test_a_stopped_command_continues(udaseg: Run, small: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert udaseg("submit", "acdc", weights, "--out", "whole.zip").code == 0
    with monkeypatch.context() as patch:
        stopping(2, patch)
        assert udaseg("submit", "acdc", weights, "--out", "x.zip").code == 130
    partial = Path("x.zip.partial")
    assert not Path("x.zip").exists() and len(list(partial.glob("*.png"))) == 2
    (partial / ".half.png.abc.tmp").write_bytes(b"as a kill -9 leaves it")
    with monkeypatch.context() as patch:
        calls = stopping(9, patch)
        assert udaseg("submit", "acdc", weights, "--out", "x.zip").code == 0
    assert len(calls) == 2 and not partial.exists()
    one, other = contents(Path("whole.zip")), contents(Path("x.zip"))
    assert list(one) == list(other) and all(np.array_equal(one[name][1], other[name][1]) for name in one)


def test_predictions_of_something_else_are_never_mixed_in(
    udaseg: Run, small: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stopping(1, patch)
        assert udaseg("submit", "acdc", weights, "--out", "x.zip").code == 130
    metadata, _ = weights_file.read(weights)
    module = load_weights(weights)[0]
    with torch.no_grad():
        next(module.parameters()).view(-1)[0] += 1e-3
    weights_file.save(Path("other.safetensors"), module, metadata)
    weights_file.save(
        Path("whole.safetensors"), load_weights(weights)[0], dataclasses.replace(metadata, inference="whole")
    )
    before = sorted(path.name for path in Path("x.zip.partial").iterdir())
    for file in ("other.safetensors", "whole.safetensors"):
        is_message(udaseg("submit", "acdc", file, "--out", "x.zip"), "x.zip.partial", "other weights", "--out")
    assert before == sorted(path.name for path in Path("x.zip.partial").iterdir()) and not Path("x.zip").exists()
    (prediction,) = Path("x.zip.partial").glob("*.png")
    truncate(prediction)
    is_message(udaseg("submit", "acdc", weights, "--out", "x.zip"), prediction.name, "Delete")
    assert not Path("x.zip").exists()
    prediction.unlink()
    assert udaseg("submit", "acdc", weights, "--out", "x.zip").code == 0 and len(contents(Path("x.zip"))) == 4


# --- wrong inputs --------------------------------------------------------------------------------------------------


def test_wrong_inputs(udaseg: Run, small: Path, weights: Path) -> None:
    is_message(udaseg("submit", "acdcc", weights), "'acdcc'", "did you mean 'acdc'")
    is_message(udaseg("submit", "acdc", "nowhere"), "nowhere: no such run folder")
    is_message(udaseg("submit", "acdc", weights, "--teacher"), "holds one network")
    is_message(udaseg("submit", "acdc", weights, "--out", "x.tar"), "x.tar", ".zip")
    is_message(udaseg("submit", "acdc", weights, "--root", "elsewhere"), "elsewhere", "rgb_anon")
    metadata, _ = weights_file.read(weights)
    odd = dataclasses.replace(metadata, classes=CAMVID.names, palette=CAMVID.palette)
    weights_file.save(Path("camvid.safetensors"), segmentor(metadata.encoder, metadata.decoder, len(CAMVID)), odd)
    is_message(udaseg("submit", "acdc", "camvid.safetensors"), "pavement", "19 Cityscapes classes")
    assert not list(Path().glob("*.zip*"))


def test_nothing_of_a_users_is_overwritten(udaseg: Run, small: Path, weights: Path) -> None:
    Path("x.zip").write_text("precious", encoding="utf-8")
    Path("link.zip").symlink_to("elsewhere.zip")
    for name in ("x.zip", "link.zip"):
        is_message(udaseg("submit", "acdc", weights, "--out", name), name, "not overwritten")
    Path("y.zip.partial").mkdir()
    Path("y.zip.partial/thesis.txt").write_text("precious", encoding="utf-8")
    is_message(udaseg("submit", "acdc", weights, "--out", "y.zip"), "y.zip.partial", "not a folder of predictions")
    assert Path("x.zip").read_text(encoding="utf-8") == Path("y.zip.partial/thesis.txt").read_text(encoding="utf-8")
    assert not Path("elsewhere.zip").exists() and not Path("y.zip").exists()


def submitted(udaseg: Run, name: str, weights: Path) -> Answer:
    assert udaseg("prepare", name).code == 0
    return udaseg("submit", name, weights, "--out", "x.zip")


def test_images_that_the_server_does_not_expect(udaseg: Run, small: Path, weights: Path) -> None:
    rng = np.random.default_rng(1)
    more = save(small / "acdc/rgb_anon/rain/test/GOPR0009/GOPR0009_frame_000161_rgb_anon.png", photo(rng, NIGHT))
    is_message(udaseg("submit", "acdc", weights, "--out", "x.zip"), "have changed", "udaseg prepare acdc")
    is_message(submitted(udaseg, "acdc", weights), "expects 4 images", "has 5", "rain: 2 of 1")
    (small / f"acdc/rgb_anon/snow/test/{night(3)}_rgb_anon.png").unlink()  # the right sum, wrongly spread
    is_message(submitted(udaseg, "acdc", weights), "rain: 2 of 1", "snow: 0 of 1")
    more.unlink()
    truncate(save(small / f"acdc/rgb_anon/snow/test/{night(3)}_rgb_anon.png", photo(rng, NIGHT)))
    is_message(submitted(udaseg, "acdc", weights), "snow: 0 of 1", "GOPR0003_frame_000161_rgb_anon.png", "cut off")
    save(small / f"acdc/rgb_anon/snow/test/{night(3)}_rgb_anon.png", photo(rng, (27, 48)))
    is_message(submitted(udaseg, "acdc", weights), "GOPR0003", "27x48, not 48x27")
    (small / f"acdc/rgb_anon/snow/test/{night(3)}_rgb_anon.png").unlink()
    same = save(small / "acdc/rgb_anon/snow/test/GOPR0000/GOPR0000_frame_000161_rgb_anon.png", photo(rng, NIGHT))
    is_message(submitted(udaseg, "acdc", weights), "snow/test/GOPR0000", "name of another image")
    same.rename(same.with_name("mine_rgb_anon.png"))
    is_message(submitted(udaseg, "acdc", weights), "mine_rgb_anon.png", "no official file name")
    assert not list(Path().glob("*.zip*"))


def test_a_test_split_that_is_not_there(udaseg: Run, small: Path, weights: Path) -> None:
    for path in (small / "cityscapes/leftImg8bit/test").rglob("*.png"):
        path.unlink()
    is_message(udaseg("submit", "cityscapes", weights), "'cityscapes' (test)", "has no image")


# --- evaluate --per-condition --------------------------------------------------------------------------------------

BENCHMARK = """
data:
  source: {{dataset: cityscapes}}
  validation: {{dataset: {dataset}, split: val, size: [96, 54]}}
  crop: [64, 64]
  protocol: cityscapes19
"""


def with_labels(home: Path, folder: str, i: int) -> None:
    rng = np.random.default_rng(i)
    save(home / f"rgb_anon/{folder}/{night(i)}_rgb_anon.png", photo(rng, NIGHT))
    save(home / f"gt/{folder}/{night(i)}_gt_labelTrainIds.png", labels(rng, NIGHT, 19))


def test_per_condition_counts_add_up(udaseg: Run, weights: Path) -> None:
    for i, condition in enumerate((*CONDITIONS, "rain")):
        with_labels(Path("data/acdc"), f"{condition}/val", i)
    assert udaseg("prepare", "acdc").code == 0
    Path("b.yaml").write_text(BENCHMARK.format(dataset="acdc"), encoding="utf-8")
    command = ["evaluate", weights, "-b", "b.yaml"]
    plain = json.loads(udaseg(*command, "--json").out)
    found = json.loads(udaseg(*command, "--json", "--per-condition").out)
    assert "conditions" not in plain and list(found["conditions"]) == list(CONDITIONS)
    counts = {name: np.array(part["confusion"]) for name, part in found["conditions"].items()}
    assert np.array_equal(sum(counts.values()), found["confusion"]) and found["confusion"] == plain["confusion"]
    assert {name: c.sum() for name, c in counts.items()} == {n: 48 * 27 * (1 + (n == "rain")) for n in CONDITIONS}
    union = counts["fog"].sum(0) + counts["fog"].sum(1) - np.diag(counts["fog"])
    iou = 100 * np.diag(counts["fog"])[union > 0] / union[union > 0]
    assert found["conditions"]["fog"]["miou"] == pytest.approx(iou.mean()) and found["miou"] == plain["miou"]

    text = udaseg(*command, "--per-condition").out
    lines = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["class"][1:] == [*CONDITIONS, "all"] and len(lines["sky"]) == 6
    parts = [*found["conditions"].values(), found]
    assert lines["mIoU"][1:] == [f"{part['miou']:.2f}" for part in parts]
    assert lines["classes in the mean"][4:] == [str(part["classes"]) for part in parts]
    first = json.loads(udaseg(*command, "--json", "--per-condition", "--limit", "2").out)
    assert list(first["conditions"]) == ["fog", "night"]


def test_per_condition_where_nothing_tells(udaseg: Run, weights: Path) -> None:
    with_labels(Path("data/acdc"), "val", 0)
    rng = np.random.default_rng(0)
    save(Path("data/cityscapes/leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"), photo(rng, CITY))
    save(Path("data/cityscapes/gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png"), labels(rng, CITY))
    for name in ("acdc", "cityscapes"):
        assert udaseg("prepare", name).code == 0
        Path("b.yaml").write_text(BENCHMARK.format(dataset=name), encoding="utf-8")
        is_message(udaseg("evaluate", weights, "-b", "b.yaml", "--per-condition"), "--per-condition", name, "official")
