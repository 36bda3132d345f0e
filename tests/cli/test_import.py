"""`udaseg import`: public checkpoints, filled by the parity fixtures' rule, through the real command."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli.test_commands import Run, is_message, udaseg
from parity.rule import DATA, image, public_shapes, rule_hrda, rule_segmentor, rule_state, tensor
from safetensors.torch import save_file
from torch import Tensor

from udaseg.commands.importing import recipe_of, score
from udaseg.data.classes import CITYSCAPES
from udaseg.engine.networks import load_weights, segmentor
from udaseg.evaluation.inference import Inference
from udaseg.models import weights_file
from udaseg.models.recognise import Network

__all__ = ["udaseg"]
TEACHER = "ema_model."
DAFORMER = {"kind": "daformer", "width": 256, "fusion": "sep_aspp"}


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


@pytest.fixture(scope="module")
def student() -> dict[str, Tensor]:
    """MiT-B0 with the DAFormer head, public names without prefix."""
    return rule_state("step_dacs_model")


def training_checkpoint(path: Path, keys: str) -> None:
    """As the public code saves it: three networks (of the ImageNet one a tensor), settings, optimiser."""
    state = prefixed("model.", rule_state(keys)) | prefixed(TEACHER, rule_state(keys, TEACHER))
    state["imnet_model.backbone.norm1.bias"] = torch.zeros(32)
    best = {"best_score": np.float64(68.85), "last": np.int64(4)}
    meta = {"mmcv_version": "1.3.7", "CLASSES": CITYSCAPES.names, "PALETTE": [[1, 2, 3]], "hook_msgs": best}
    optimiser = {"state": {0: {"step": 40000, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 6e-5}]}
    torch.save({"meta": meta, "state_dict": state, "optimizer": optimiser}, path)


def same(module: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = module.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_student_and_teacher(udaseg: Run) -> None:
    training_checkpoint(Path("latest.pth"), "step_dacs_model")
    for flags, network in (([], "student"), (["--teacher"], "teacher")):
        answer = udaseg("import", "latest.pth", *flags)
        target = f"latest-{network}.safetensors"
        assert answer.code == 0 and answer.err == "", answer
        for words in (f"{network} of latest.pth", "encoder: mit_b0", "decoder: daformer, width 256", "234 tensors",
                      "1024x512", "whole", f"udaseg evaluate {target}", f"udaseg predict {target}"):  # fmt: skip
            assert words in answer.out, words
        assert "published" not in answer.out  # of MiT-B5 only
        module, metadata = load_weights(Path(target))
        prefix = TEACHER if network == "teacher" else ""
        assert same(module, rule_segmentor("step_dacs_model", "mit_b0", "daformer", prefix=prefix))
        digest = hashlib.sha256(Path("latest.pth").read_bytes()).hexdigest()
        assert metadata.origin == {"file": "latest.pth", "sha256": digest, "network": network}
    assert (metadata.classes, metadata.palette) == (CITYSCAPES.names, CITYSCAPES.palette)
    assert (metadata.size, metadata.inference, metadata.wrapper, metadata.protocol) == (
        (1024, 512),
        "whole",
        None,
        "cityscapes19",
    )
    assert (metadata.recipe, metadata.benchmark, metadata.seed, metadata.iterations) == (
        "latest.pth",
        "gta5_cityscapes",
        None,
        None,
    )
    assert metadata.data["validation"]["dataset"] == "cityscapes" and metadata.data["scale"] == 1


def test_hrda(udaseg: Run) -> None:
    training_checkpoint(Path("mic.pth"), "step_mic_model")
    answer = udaseg("import", "mic.pth", "--out", "new/m.safetensors", "-b", "synthia_cityscapes")
    assert (
        answer.code == 0 and "wrapper: hrda, detail 0.5" in answer.out and "2048x1024, looked at: slide" in answer.out
    )
    module, metadata = load_weights(Path("new/m.safetensors"))
    assert same(module, rule_hrda("step_mic_model", "mit_b0", "daformer", crop=1024))
    assert (metadata.size, metadata.crop, metadata.inference) == ((2048, 1024), (1024, 1024), "slide")
    assert (metadata.protocol, metadata.benchmark, metadata.data["scale"]) == ("synthia16", "synthia_cityscapes", 2)


def test_a_bare_segmentor_in_half_precision_with_an_auxiliary_head(udaseg: Run, student: dict[str, Tensor]) -> None:
    state = {key: value.half() if value.is_floating_point() else value for key, value in student.items()}
    state = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    save_file(state | {"auxiliary_head.conv_seg.bias": torch.zeros(19)}, "bare.safetensors")
    answer = udaseg("import", "bare.safetensors")
    assert answer.code == 0 and "left out, not part of the network: auxiliary_head.conv_seg.bias" in answer.out
    _, tensors = weights_file.read(Path("bare-student.safetensors"))
    expected = rule_segmentor("step_dacs_model", "mit_b0", "daformer").state_dict()
    assert {k: v.dtype for k, v in tensors.items()} == {k: v.dtype for k, v in expected.items()}
    for key, value in expected.items():
        torch.testing.assert_close(tensors[key], value, atol=2e-3, rtol=0)
    is_message(udaseg("import", "bare.safetensors", "--teacher"), "holds no teacher", "leave out --teacher")


def test_an_imported_file_is_evaluated(udaseg: Run, streets: Path, student: dict[str, Tensor]) -> None:
    torch.save(prefixed("model.", student) | prefixed(TEACHER, student), "b0.pth")
    assert udaseg("import", "b0.pth", "--teacher", "-b", "streets").code == 0
    answer = udaseg("evaluate", "b0-teacher.safetensors", "--limit", "1", "--json")
    assert answer.code == 0, answer
    found = json.loads(answer.out)
    assert found["what"].startswith("teacher of b0.pth on streets_target val (1 images)") and len(found["iou"]) == 19


# --- what is refused -----------------------------------------------------------------------------------------------


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


def test_files_that_are_no_checkpoints(udaseg: Run) -> None:
    Path("folder.pth").mkdir()
    Path("text.pth").write_text("see https://example.org", encoding="utf-8")
    torch.save({"a": torch.zeros(1000)}, "whole.pth")
    Path("short.pth").write_bytes(Path("whole.pth").read_bytes()[:2000])
    torch.save({"state_dict": {"model.backbone.norm1.bias": torch.zeros(32)}, "meta": Payload()}, "evil.pth")
    encoder = {key: torch.zeros(shape) for key, shape in public_shapes("mit_b0").items()}
    torch.save({key.removeprefix("backbone."): value for key, value in encoder.items()}, "mit_b0.pth")
    torch.save(encoder, "headless.pth")
    for name, words in (
        ("nosuch.pth", ["nosuch.pth: no such file"]),
        ("folder.pth", ["is a folder"]),
        ("text.pth", ["is not a weights file: it begins with b'see http"]),
        ("short.pth", ["damaged or incomplete"]),
        ("evil.pth", ["is refused", "weights_only=False", "mkdir"]),
        ("mit_b0.pth", ["no backbone.* and no decode_head.*", "block1", "model.weights=FILE"]),
        ("headless.pth", ["it has no decode_head.*"]),
        ("whole.pth", ["its names begin with a."]),
    ):
        is_message(udaseg("import", name), *words)
    assert not Path("executed").exists() and not list(Path().glob("*.safetensors"))


def test_checkpoints_that_do_not_fit(udaseg: Run, student: dict[str, Tensor]) -> None:
    seven = dict(student)
    seven["decode_head.conv_seg.weight"], seven["decode_head.conv_seg.bias"] = torch.zeros(7, 256, 1, 1), torch.zeros(7)
    holes = {key: value for key, value in student.items() if "block3.1.attn.kv" not in key}
    neck = student | {"neck.convs.0.weight": torch.zeros(1)}
    deeper = student | {k.replace("block4.1", "block4.2"): v for k, v in student.items() if "block4.1" in k}
    for name, state, options, words in (
        ("seven", seven, [], ["predicts 7 classes", "gta5_cityscapes has 19", "--benchmark"]),
        ("seven", seven, ["-b", "camvid"], ["predicts 7 classes", "camvid has 11"]),
        ("holes", holes, [], ["2 tensors do not fit", "not in the file: encoder.stages.2.blocks.1.attn.kv.weight"]),
        ("neck", neck, [], ["no place for: neck.convs.0.weight"]),
        ("deeper", deeper, [], ["its encoder is none of those known here", "--encoder"]),
        ("deeper", deeper, ["--encoder", "mit_b0"], ["no place for: encoder.stages.3.blocks.2."]),
        ("deeper", deeper, ["--encoder", "mit_b9"], ["udaseg import: model.encoder", "did you mean 'mit_b"]),
        ("seven", student, ["--decoder", "segformer"], ["not in the file: decoder.fuse.conv.weight", "... and"]),
        ("seven", student, ["-b", "nosuch"], ["no benchmark 'nosuch'"]),
    ):
        torch.save(state, f"{name}.pth")
        is_message(udaseg("import", f"{name}.pth", *options), *words)
    assert not list(Path().glob("*.safetensors"))


def test_nothing_is_overwritten(udaseg: Run, student: dict[str, Tensor]) -> None:
    torch.save(student, "b0.pth")
    Path("b0-student.safetensors").write_text("precious", encoding="utf-8")
    Path("file").touch()
    is_message(udaseg("import", "b0.pth"), "b0-student.safetensors exists", "--out")
    is_message(udaseg("import", "b0.pth", "--out", "."), "b0-student.safetensors exists", "--out")
    is_message(udaseg("import", "b0.pth", "--out", "b0.pth"), "b0.pth exists")
    is_message(udaseg("import", "b0.pth", "--out", "x.pth"), ".safetensors is expected")
    is_message(udaseg("import", "b0.pth", "--out", "file/x.safetensors"), "file", "another path")
    assert Path("b0-student.safetensors").read_text(encoding="utf-8") == "precious"


def test_public_files_given_to_other_commands_lead_here(udaseg: Run, student: dict[str, Tensor]) -> None:
    torch.save(student, "b0.pth")
    save_file(student, "b0.safetensors")
    for name in ("b0.pth", "b0.safetensors"):
        is_message(udaseg("evaluate", name), "udaseg import FILE")


def test_published_scores_belong_to_one_architecture_and_benchmark() -> None:
    def of(
        encoder: str = "mit_b5", *, hrda: bool = False, teacher: bool = False, benchmark: str = "gta5_cityscapes",
        **settings: Any,
    ) -> tuple[str, float] | None:  # fmt: skip
        found = Network({"kind": encoder}, DAFORMER | settings, hrda, 19)
        return score(recipe_of(found, None, None, benchmark=benchmark, file=Path("x")), teacher=teacher)

    assert of() == ("DAFormer", 68.85) and of(hrda=True) == ("HRDA", 73.79)
    assert of("mit_b4") is None and of(teacher=True) is None and of(fusion="aspp") is None and of(width=128) is None
    assert of(benchmark="synthia_cityscapes") is None


def test_how_images_are_looked_at_is_the_papers() -> None:
    """HRDA slides with the DAFormer head, not with DeepLab-V2 (its recipes say so)."""
    for decoder, kind, mode in ((DAFORMER, "mit_b5", "slide"), ({"kind": "deeplabv2"}, "resnet101", "whole")):
        found = Network({"kind": kind}, dict(decoder), True, 19)
        recipe = recipe_of(found, None, None, benchmark="gta5_cityscapes", file=Path("x"))
        assert recipe.evaluation.mode == mode and recipe.data.scale == 2
        assert recipe.model.wrapper and recipe.model.wrapper["kind"] == "hrda"


# --- at full size --------------------------------------------------------------------------------------------------


def full_checkpoint(path: Path, keys: str) -> None:
    """All names of a released file; only the student's values take room."""
    state = {}
    for key, shape in public_shapes(keys).items():
        inner = key.removeprefix("model.")
        state[key] = tensor(inner, shape) if inner != key else torch.zeros(()).expand(shape)
    torch.save({"meta": {}, "state_dict": state}, path)


@pytest.mark.slow
@torch.no_grad()
def test_daformer_at_full_size_gives_the_fixtures_logits(udaseg: Run) -> None:
    full_checkpoint(Path("daformer.pth"), "uda_full_daformer")
    answer = udaseg("import", "daformer.pth")
    assert answer.code == 0 and "DAFormer, gta5_cityscapes): 68.85 mIoU" in answer.out
    module, _ = load_weights(Path("daformer-student.safetensors"))
    logits = module.eval()(image("input/daformer", (2, 3, 64, 128))).predictions[0].logits
    with np.load(DATA / "daformer_sepaspp_mitb5.npz") as arrays:
        np.testing.assert_allclose(logits.numpy(), arrays["logits"], rtol=0, atol=2e-5)


@pytest.mark.slow
@torch.no_grad()
def test_hrda_at_full_size_gives_the_fixtures_logits(udaseg: Run) -> None:
    full_checkpoint(Path("mic.pth"), "uda_full_mic_hrda")
    answer = udaseg("import", "mic.pth")
    assert answer.code == 0 and "HRDA, gta5_cityscapes): 73.79 mIoU" in answer.out
    metadata, tensors = weights_file.read(Path("mic-student.safetensors"))
    module = segmentor(metadata.encoder, metadata.decoder, 19, wrapper=metadata.wrapper, crop=(128, 128)).eval()
    weights_file.restore(module, tensors, Path("mic-student.safetensors"))
    logits = Inference((128, 128), 2)(module, image("input/hrda_eval", (1, 3, 128, 256)))
    with np.load(DATA / "hrda_eval.npz") as arrays:
        np.testing.assert_allclose(logits[:, :, ::4, ::4].numpy(), arrays["slide_logits_hw4"], rtol=0, atol=2e-5)
