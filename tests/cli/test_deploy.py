"""`udaseg predict`, `udaseg export` and the Python API, on a network with weights drawn at random."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.test_commands import Run, is_message, udaseg
from PIL import Image

import udaseg as api
from udaseg.config.registry import REGISTRIES
from udaseg.config.schema import DomainSection
from udaseg.data.classes import CITYSCAPES
from udaseg.engine.domains import images_of, index_of
from udaseg.engine.networks import load_weights, segmentor
from udaseg.evaluation.confusion import count
from udaseg.models import weights_file
from udaseg.models.segmentor import IMAGENET_MEAN as MEAN
from udaseg.models.segmentor import IMAGENET_STD as STD
from udaseg.models.weights_file import WeightsMetadata

__all__ = ["udaseg"]
DATA = {
    "source": {"dataset": "streets_source", "split": "train", "size": [128, 64]},
    "validation": {"dataset": "streets_target", "split": "val", "size": [128, 64]},
}


def weights(path: str | Path, *, seed: int = 0, **changes: Any) -> Path:
    """A weights file of the tiny network that tells many classes from one another."""
    settings: dict[str, Any] = {
        "encoder": {"kind": "tiny"}, "decoder": {"kind": "fpn"}, "size": (128, 64), "crop": (64, 64),
    }  # fmt: skip
    metadata = WeightsMetadata(
        classes=CITYSCAPES.names, palette=CITYSCAPES.palette, mean=MEAN, std=STD, recipe="toy", benchmark="streets",
        protocol="cityscapes19", seed=0, iterations=1, data=DATA, **{**settings, **changes},
    )  # fmt: skip
    torch.manual_seed(seed)
    module = segmentor(metadata.encoder, metadata.decoder, 19, wrapper=metadata.wrapper, crop=metadata.crop)
    for tensor in module.decoder.parameters():
        torch.nn.init.normal_(tensor, std=0.2)
    weights_file.save(Path(path), module, metadata)
    return Path(path)


def photo(path: str | Path, width: int = 90, height: int = 60) -> Path:
    """Blotches of colour: JPEG keeps them nearly."""
    blotches = np.random.default_rng(width).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blotches).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return Path(path)


def label(path: str) -> np.ndarray[Any, Any]:
    with Image.open(path) as picture:
        assert picture.mode == "P"
        return np.array(picture)


# --- predict -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inference", ["whole", "slide"])
def test_predictions_are_those_that_evaluate_counts(udaseg: Run, streets: Path, inference: str) -> None:
    path = weights("w.safetensors", inference=inference)
    assert udaseg("predict", path, "--out", "p", *(str(p) for p in validation_images())).code == 0
    found = json.loads(udaseg("evaluate", path, "--json").out)["confusion"]
    images = images_of(DomainSection.model_validate(DATA["validation"]), 1, CITYSCAPES.names)
    mine = torch.zeros(19, 19, dtype=torch.int64)
    for i in range(len(images)):
        name = Path(images[i]["name"]).stem
        mine += count(torch.from_numpy(label(f"p/index/{name}.png")), images[i]["label"], 19)
    assert mine.tolist() == found and (mine.sum(0) > 0).sum() > 3


def validation_images() -> list[Path]:
    index = index_of(DomainSection.model_validate(DATA["validation"]))
    return [index.root / pair.image for pair in index.pairs]


def test_a_folder_keeps_its_structure_and_is_finished_once(udaseg: Run) -> None:
    path = weights("w.safetensors")
    photo("in/a/1.png"), photo("in/b/1.jpg", 40, 70), photo("in/twin.png"), photo("in/twin.jpg", 50)
    Path("in/notes.txt").write_text("no image", encoding="utf-8")
    answer = udaseg("predict", path, "in")
    assert answer.code == 0 and "4 predicted, 0 finished before, in predictions/w" in answer.out
    written = {p.relative_to("predictions/w").as_posix() for p in Path("predictions/w").rglob("*.*")}
    names = ("a/1", "b/1", "twin.png", "twin.jpg")
    assert written == {"predictions.json", *(f"index/{n}.png" for n in names), *(f"overlay/{n}.jpg" for n in names)}
    assert label("predictions/w/index/b/1.png").shape == (70, 40)

    Path("predictions/w/index/a/1.png").write_bytes(b"mine")
    Path("predictions/w/overlay/b/1.jpg").unlink()
    assert "1 predicted, 3 finished before" in udaseg("predict", path, "in").out
    assert Path("predictions/w/index/a/1.png").read_bytes() == b"mine"
    assert Path("predictions/w/overlay/b/1.jpg").is_file()

    assert "4 predicted" in udaseg("predict", path, ".", "--out", "again").out  # not its own overlays
    is_message(udaseg("predict", weights("v.safetensors", seed=1), "in", "--out", "again"), "other weights", "--out")
    photo("elsewhere/a/1.png")
    is_message(udaseg("predict", path, "elsewhere", "--out", "predictions/w"), "a/1 is the prediction of", "in/a/1.png")


def test_every_kind_of_output(udaseg: Run) -> None:
    path, image = weights("w.safetensors"), photo("photo.png")
    kinds = ("index", "color", "overlay", "probabilities")
    answer = udaseg("predict", path, image, "--out", "p", *(word for kind in kinds for word in ("--save", kind)))
    assert answer.code == 0 and "2 bytes a class and pixel" in answer.out
    ids = label("p/index/photo.png")
    colours = np.array(Image.open("p/color/photo.png"))
    assert len(np.unique(ids)) > 3 and (colours == np.array(CITYSCAPES.palette)[ids]).all()
    assert (np.array(Image.open("p/index/photo.png").convert("RGB")) == colours).all()
    blend = np.array(Image.open("p/overlay/photo.jpg")).astype(int)
    assert np.abs(blend - (colours.astype(int) + np.array(Image.open(image))) / 2).mean() < 10
    with np.load("p/probabilities/photo.npz", allow_pickle=False) as file:
        assert file["probabilities"].shape == (19, 60, 90) and file["probabilities"].dtype == np.float16
        assert tuple(file["classes"]) == CITYSCAPES.names
        assert np.allclose(file["probabilities"].sum(0, dtype=np.float32), 1, atol=5e-3)
        assert (file["probabilities"].argmax(0) == ids).mean() > 0.99


def test_files_that_cannot_be_read_are_told_at_the_end(udaseg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights("w.safetensors")
    good = photo("in/zebra.jpg")
    Path("in/empty.png").write_bytes(b"")
    Path("in/text [1].png").write_text("hello", encoding="utf-8")
    Path("in/cut.jpg").write_bytes(good.read_bytes()[:900])
    Image.fromarray(np.zeros((4, 4), np.float32)).save("in/float.tif")
    photo("in/locked.png")
    usual = Image.open
    monkeypatch.setattr(Image, "open", lambda file: refuse(file) if "locked" in str(file) else usual(file))
    answer = udaseg("predict", path, "in", "--out", "p")
    assert "1 predicted, 0 finished before" in answer.out and Path("p/index/zebra.png").is_file()
    is_message(
        answer._replace(out=""), "5 of 6 failed", "empty.png: not an image", "text [1].png: not an image",
        "cut.jpg: cannot be read (image file is truncated", "float.tif: cannot be read", "Permission denied",
    )  # fmt: skip
    assert len(list(Path("p/index").iterdir())) == 1


def refuse(file: object) -> None:
    raise PermissionError(13, "Permission denied", str(file))


def test_wrong_requests_write_nothing(udaseg: Run) -> None:
    path, image = weights("w.safetensors"), photo("photo.png")
    Path("empty").mkdir()
    Path("text.safetensors").write_text("hello", encoding="utf-8")
    (Path("mine") / "thesis").mkdir(parents=True)
    for arguments, words in (
        ([path, "nowhere"], ["nowhere: no such file or folder"]),
        ([path, "*.jpg"], ["*.jpg: no file matches"]),
        ([path, "~nobody/photo.png"], ["~nobody/photo.png: no such file or folder"]),
        ([path, image, ""], ["an input is an empty text"]),
        ([path, "empty"], ["no image or video in empty", ".png"]),
        ([path, image, "--save", "colour"], ["colour", "index, color, overlay, probabilities"]),
        ([path, image, "--out", "mine"], ["mine exists", "--out"]),
        ([path, image, "--teacher"], ["holds one network"]),
        (["none.safetensors", image], ["none.safetensors: no such run folder"]),
        (["text.safetensors", image], ["not a readable safetensors file"]),
    ):
        is_message(udaseg("predict", *arguments), *words)
    assert not Path("predictions").exists() and [p.name for p in Path("mine").iterdir()] == ["thesis"]


def test_weights_with_a_header_of_something_else(udaseg: Run) -> None:
    from safetensors.torch import save_file

    image = photo("photo.png")
    for name, header, word in (
        ("none", None, "has no udaseg header"),
        ("text", {"udaseg": "hello"}, "header is damaged"),
        ("part", {"udaseg": '{"classes": [], "palette": []}'}, "header is damaged"),
    ):
        save_file({"x": torch.zeros(2)}, f"{name}.safetensors", metadata=header)
        is_message(udaseg("predict", f"{name}.safetensors", image), f"{name}.safetensors", word)


def test_a_glob_keeps_what_lies_below_its_fixed_part(udaseg: Run) -> None:
    path = weights("w.safetensors")
    photo("in/a/x/1.png"), photo("in/b/x/1.png"), photo("in/b/y/2.png")
    assert "2 predicted" in udaseg("predict", path, "in/*/x/*.png", "--save", "index", "--out", "p").out
    assert {p.as_posix() for p in Path("p/index").rglob("*.png")} == {"p/index/a/x/1.png", "p/index/b/x/1.png"}
    assert "2 predicted" in udaseg("predict", path, "in/a", "in/b/x", "--save", "color", "--out", "q").out
    assert {p.as_posix() for p in Path("q/color").rglob("*.png")} == {"q/color/a/x/1.png", "q/color/x/1.png"}
    is_message(udaseg("predict", path, "in/a/x/1.png", "in/b/x/1.png"), "same outputs", "--out")


def test_a_video(udaseg: Run) -> None:
    av = pytest.importorskip("av")
    path = weights("w.safetensors")
    with av.open("in.mp4", "w") as file:
        track = file.add_stream("mpeg4", rate=10)
        track.width, track.height, track.pix_fmt = 90, 62, "yuv420p"
        for i in range(5):
            file.mux(track.encode(av.VideoFrame.from_ndarray(np.full((62, 90, 3), 40 * i, np.uint8), format="rgb24")))
        file.mux(track.encode())
    Path("bad.mp4").write_bytes(Path("in.mp4").read_bytes()[:200])
    answer = udaseg("predict", path, "in.mp4", "bad.mp4", "--out", "p")
    is_message(answer._replace(out=""), "1 of 2 failed", "bad.mp4: cannot be read as a video")
    assert [p.name for p in Path("p/overlay").iterdir()] == ["in.mp4"]
    with av.open("p/overlay/in.mp4") as file:
        track = file.streams.video[0]
        frames = list(file.decode(track))
        assert (track.average_rate, track.width, track.height) == (10, 90, 62)
        assert [float(f.time) for f in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
        shown = frames[0].to_ndarray(format="rgb24").astype(float)
    black = np.zeros((62, 90, 3), np.uint8)
    assert np.abs(shown - np.asarray(api.load_model(path).predict(black).overlay())).mean() < 8


def test_a_video_without_pyav(udaseg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    Path("in.mp4").write_bytes(b"")
    answer = udaseg("predict", weights("w.safetensors"), "in.mp4")
    is_message(answer._replace(out=""), 'pip install "udaseg[video]"')


# --- export --------------------------------------------------------------------------------------------------------


def exported_image(width: int, height: int) -> torch.Tensor:
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)


def eager(path: Path, image: torch.Tensor) -> torch.Tensor:
    module, metadata = load_weights(path)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (metadata.mean, metadata.std))
    with torch.no_grad():
        return module.eval().logits((image.float() - mean) / std)


def test_export_torch(udaseg: Run, streets: Path) -> None:
    path = weights("w.safetensors")
    answer = udaseg("export", path, "--format", "torch")
    assert answer.code == 0 and "2 images of streets_target val" in answer.out and "any batch and size" in answer.out
    extra = {"udaseg.json": ""}
    program = torch.export.load("w.pt2", extra_files=extra)
    assert json.loads(extra["udaseg.json"])["classes"] == list(CITYSCAPES.names)
    for size in ((128, 64), (101, 77)):
        image = exported_image(*size)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(image), eager(path, image), rtol=1e-4, atol=1e-5)
    is_message(udaseg("export", path, "--format", "torch"), "w.pt2 exists", "--out")
    is_message(udaseg("export", path, "--format", "torch", "--size", "9x9"), "--size", "at least 64")


def test_window_attention_is_exported_at_one_size(udaseg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing Swin or SAM with free sizes takes hours."""
    from udaseg.deploy import export

    with torch.device("meta"):
        swin, vit = (
            REGISTRIES["encoder"].create({"kind": f"timm/{name}"})
            for name in ("swin_tiny_patch4_window7_224", "test_vit")
        )
        sam = REGISTRIES["encoder"].create({"kind": "timm/sam2_hiera_tiny"})
    assert export.windowed(swin) and export.windowed(sam) and not export.windowed(vit)
    monkeypatch.setattr(export, "windowed", lambda network: True)
    assert "batch 1, 128x64 only" in udaseg("export", weights("w.safetensors"), "--format", "torch").out


def test_export_safetensors(udaseg: Run) -> None:
    path = weights("w.safetensors")
    assert (
        "written copy.safetensors" in udaseg("export", path, "--format", "safetensors", "--out", "copy.safetensors").out
    )
    (metadata, tensors), (again, copies) = weights_file.read(path), weights_file.read(Path("copy.safetensors"))
    assert metadata == again and all(torch.equal(tensors[name], copies[name]) for name in tensors)
    is_message(udaseg("export", path, "--format", "safetensors"), "w.safetensors exists")
    is_message(udaseg("export", path, "--format", "safetensors", "--size", "64x64"), "--size")


@pytest.mark.parametrize("wrapper", [None, {"kind": "hrda"}])
def test_export_onnx(udaseg: Run, wrapper: dict[str, str] | None) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    path = weights("w.safetensors", wrapper=wrapper)
    answer = udaseg("export", path, "--format", "onnx", "--size", "96x64")
    assert answer.code == 0 and "2 generated images (streets_target is not here)" in answer.out
    assert ("batch 1, 96x64 only" if wrapper else "any batch and size") in answer.out
    session = runtime.InferenceSession("w.onnx", providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["udaseg"])["palette"][0] == [128, 64, 128]
    for size in [(96, 64)] if wrapper else [(96, 64), (133, 71)]:
        image = exported_image(*size)
        logits = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        torch.testing.assert_close(logits, eager(path, image), rtol=1e-3, atol=1e-4)


def test_export_onnx_without_its_packages(udaseg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    is_message(udaseg("export", weights("w.safetensors"), "--format", "onnx"), 'pip install "udaseg[onnx]"')


def test_export_onnx_of_more_than_a_file_holds(udaseg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from udaseg.deploy import export

    monkeypatch.setattr(export, "require_onnx", lambda: None)
    monkeypatch.setattr(export, "ONNX_BYTES", 1000)
    is_message(udaseg("export", weights("w.safetensors"), "--format", "onnx"), "2 GB at most", "use torch")
    assert not Path("w.onnx").exists()


def test_an_export_that_computes_something_else_is_not_written(udaseg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from udaseg.deploy import export

    monkeypatch.setattr(export, "as_torch", lambda program, text: (lambda file: None, lambda x: -program.module()(x)))
    is_message(udaseg("export", weights("w.safetensors"), "--format", "torch"), "differs from the network")
    assert not Path("w.pt2").exists()


def test_what_is_not_a_number_is_not_hidden_by_a_maximum() -> None:
    from udaseg.deploy import export

    images = [torch.zeros(1, 3, 4, 4, dtype=torch.uint8), torch.ones(1, 3, 4, 4, dtype=torch.uint8)]
    check = export.compared(torch.nn.Identity(), lambda image: image / image, images, (4, 4), True)
    assert np.isnan(check.difference) and check.largest == 1


# --- Python --------------------------------------------------------------------------------------------------------


def test_the_example_in_the_package_runs(tmp_path: Path) -> None:
    weights(tmp_path / "weights.safetensors"), photo(tmp_path / "photo.jpg"), photo(tmp_path / "photos/1.png", 50, 40)
    (example,) = [part for part in (api.__doc__ or "").split("\n\n") if "load_model" in part]
    code = f"import udaseg\n{textwrap.dedent(example)}\nassert sum(shares.values()) > 0.999 and not failed"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert Image.open(tmp_path / "overlay.png").size == (90, 60)
    assert label(str(tmp_path / "masks/index/1.png")).shape == (40, 50)


def test_a_model_takes_a_path_an_image_or_an_array(tmp_path: Path) -> None:
    model, path = api.load_model(weights(tmp_path / "w.safetensors")), photo(tmp_path / "photo.png")
    first = model.predict(path, probabilities=True)
    with Image.open(path) as picture:
        others = [model.predict(picture), model.predict(np.array(picture)), model.predict(str(path))]
    assert all((first.label == other.label).all() and other.probabilities is None for other in others)
    assert first.probabilities is not None and first.colour().shape == (60, 90, 3)
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), None):
        with pytest.raises(api.UserError, match="image"):
            model.predict(wrong)  # type: ignore[arg-type]


def test_one_word_may_stand_for_a_list_of_one(streets: Path) -> None:
    """A text is a sequence of texts, too: of its letters."""
    results = api.predict(weights("w.safetensors"), photo("photo.png"), save="index")
    assert list(results[0].files) == ["index"]
    with pytest.raises(api.UserError, match="an empty list"):
        api.predict("w.safetensors", [])
    with pytest.raises(api.UserError, match=r"train\.nosuch"):
        api.train("demo_source_only", benchmark="streets", overrides="train.nosuch=2")


def test_pictures_of_many_sizes_are_not_each_timed_by_cudnn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)  # as training leaves it
    api.load_model(weights(tmp_path / "w.safetensors"))
    assert not torch.backends.cudnn.benchmark


def test_train_and_evaluate_in_python(streets: Path) -> None:
    import toy

    folder = api.train("demo_source_only", benchmark="streets", overrides=[*toy.TINY, "train.iterations=2"], out="run")
    assert (folder / "result.json").is_file() and folder == Path("run")
    found = api.evaluate(folder, limit=2)
    assert len(found.iou) == 19 and 0 <= found.miou <= 100
    assert api.load_model("run").predict(np.zeros((20, 30, 3), np.uint8)).label.shape == (20, 30)
    results = api.predict("run/weights.safetensors", validation_images()[0])
    assert results[0].fresh and results[0].files["index"].is_relative_to("predictions/run")
