"""Encoder weights from files: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.rule import public_shapes, tensor
from safetensors.torch import save_file
from torch import Tensor, nn

from udaseg.errors import UserError
from udaseg.models import weights
from udaseg.models.zoo import ENCODERS


def public_file(keys: str) -> dict[str, Tensor]:
    """A public encoder file: names without prefix, with its ImageNet classifier. Only B0 has values to compare."""
    value = tensor if keys == "mit_b0" else lambda key, shape: torch.ones(shape)
    state = {
        key.removeprefix("backbone."): value(key, shape)
        for key, shape in public_shapes(keys).items()
        if key.startswith("backbone.")
    }
    top = "head" if keys.startswith("mit") else "fc"
    return state | {f"{top}.weight": torch.zeros(1000, 8), f"{top}.bias": torch.zeros(1000)}


def empty(name: str) -> nn.Module:
    """An encoder of zeros, quick to make."""
    with torch.device("meta"):
        encoder = ENCODERS[name]()
    return fill(encoder.to_empty(device="cpu"), 0)


def fill(module: nn.Module, value: float) -> nn.Module:
    for held in module.state_dict().values():
        held.fill_(value)
    return module


@pytest.fixture(scope="module")
def b0() -> dict[str, Tensor]:
    return public_file("mit_b0")


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def is_filled(encoder: nn.Module, state: dict[str, Tensor]) -> bool:
    return torch.equal(encoder.state_dict()["stages.2.blocks.1.attn.kv.weight"], state["block3.1.attn.kv.weight"])


@pytest.mark.parametrize("nesting", ["bare", "state_dict", "model", "both"])
@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "model.backbone.", "encoder."])
def test_nesting_and_prefixes(tmp_path: Path, b0: dict[str, Tensor], nesting: str, prefix: str) -> None:
    state: Any = prefixed(prefix, b0)
    wrapped = {"state_dict": {"state_dict": state, "meta": {"epoch": 3}}, "model": {"model": state}}
    content = {"bare": state, "both": {"state_dict": {"model": state}}, **wrapped}[nesting]
    path = tmp_path / "mit_b0.pth"
    torch.save(content, path)
    encoder = empty("mit_b0")
    report = weights.load_encoder(encoder, path)
    assert (report.missing, report.unexpected) == ((), ())
    assert set(report.matched) == set(encoder.state_dict())
    assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest() and report.path == path
    assert is_filled(encoder, b0)


def test_safetensors(tmp_path: Path, b0: dict[str, Tensor]) -> None:
    save_file(b0, tmp_path / "mit_b0.safetensors")
    encoder = empty("mit_b0")
    assert not weights.load_encoder(encoder, tmp_path / "mit_b0.safetensors").missing
    assert is_filled(encoder, b0)


@pytest.mark.parametrize("name", ["mit_b0", "tiny", "resnet50"])
def test_our_own_files_load(tmp_path: Path, name: str) -> None:
    """Bare or out of a segmentor; names that happen to look public are left alone."""
    source = fill(empty(name), 3)
    state = prefixed("encoder.", source.state_dict()) | {"decoder.classifier.weight": torch.zeros(2)}
    torch.save(state, tmp_path / "own.pth")
    encoder = empty(name)
    report = weights.load_encoder(encoder, tmp_path / "own.pth")
    assert not report.missing and not report.unexpected
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in encoder.state_dict().items())


def test_a_training_checkpoint_gives_the_student(tmp_path: Path, b0: dict[str, Tensor]) -> None:
    other = {key: value + 1 for key, value in b0.items()}
    head = {"model.decode_head.conv_seg.bias": torch.zeros(19)}
    state = prefixed("ema_model.backbone.", other) | prefixed("model.backbone.", b0) | head
    torch.save({"state_dict": state}, tmp_path / "latest.pth")
    encoder = empty("mit_b0")
    assert not weights.load_encoder(encoder, tmp_path / "latest.pth").unexpected
    assert is_filled(encoder, b0)


def test_resnet_files_need_no_batch_counters(tmp_path: Path) -> None:
    """Files converted from other frameworks have none: a sixth of the tensors."""
    state = {key: value for key, value in public_file("dlv2_r50").items() if "num_batches_tracked" not in key}
    torch.save(state, tmp_path / "resnet50_v1c.pth")
    encoder = empty("resnet50")
    report = weights.load_encoder(encoder, tmp_path / "resnet50_v1c.pth")
    assert not report.missing and not report.unexpected
    assert torch.equal(encoder.state_dict()["stem.1.bn.running_var"], state["stem.4.running_var"])


def test_a_few_tensors_may_be_missing_and_are_named(tmp_path: Path, b0: dict[str, Tensor]) -> None:
    short = {key: value for key, value in b0.items() if key != "norm4.bias"} | {"extra.weight": torch.zeros(1)}
    torch.save(short, tmp_path / "short.pth")
    report = weights.load_encoder(empty("mit_b0"), tmp_path / "short.pth")
    assert report.missing == ("stages.3.norm.bias",)
    assert report.unexpected == ("extra.weight",)


def test_a_smaller_networks_file_is_refused(tmp_path: Path) -> None:
    """B2 into B5: the widths agree, so a non-strict load would fill half of it without a word."""
    torch.save(public_file("mit_b2"), tmp_path / "mit_b5.pth")
    encoder = empty("mit_b5")
    with pytest.raises(UserError, match="not for this encoder") as error:
        weights.load_encoder(encoder, tmp_path / "mit_b5.pth", name="mit_b5")
    text = str(error.value)
    assert "not in the file: stages.1.blocks.4." in text and "more" in text and "SegFormer" in text
    assert not any(value.any() for value in encoder.parameters()), "a refused file must leave the encoder as it was"


def test_a_larger_networks_file_is_refused(tmp_path: Path) -> None:
    torch.save(public_file("mit_b2"), tmp_path / "mit_b1.pth")
    with pytest.raises(UserError, match=r"larger network's(.|\n)*unknown: stages\.0\.blocks\.2"):
        weights.load_encoder(empty("mit_b1"), tmp_path / "mit_b1.pth")


def test_wrong_shapes_are_named(tmp_path: Path, b0: dict[str, Tensor]) -> None:
    torch.save(b0, tmp_path / "mit_b1.pth")
    with pytest.raises(UserError, match=r"wrong shape: stages.0.embed.proj.weight is \(32, 3, 7, 7\), needed \(64,"):
        weights.load_encoder(empty("mit_b1"), tmp_path / "mit_b1.pth")


class Payload:
    """Unpickling it would create a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("zipped", [True, False])
def test_an_unsafe_pickle_is_refused_unexecuted(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "mit_b0.pth", tmp_path / "executed"
    content = {"norm4.bias": torch.zeros(256), "meta": Payload(mark)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=r"refused.*safetensors"):
        weights.load_encoder(empty("mit_b0"), path)
    assert not mark.exists()


def test_a_missing_file_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "r101.pth"
    with pytest.raises(UserError) as error:
        weights.load_encoder(nn.Identity(), path, name="resnet101")
    for part in (str(path), "resnet101_v1c-e67eebb6.pth", "download.openmmlab.com"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"does not exist.*mit_b5"):
        weights.load_encoder(nn.Identity(), path)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_a_damaged_file_is_the_users_to_fix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>404 not found</html>")
    with pytest.raises(UserError):
        weights.load_encoder(nn.Identity(), tmp_path / name)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, torch.zeros(3), [1, 2]])
def test_a_file_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no tensors"):
        weights.load_encoder(nn.Identity(), tmp_path / "x.pth")


def test_official_rows_are_encoders() -> None:
    assert weights.OFFICIAL.keys() == ENCODERS.keys() - {"tiny"}
    assert weights.OFFICIAL["mit_b5"].file == "mit_b5.pth"
