"""Encoder weights from files: what is accepted, what is refused, and what the refusal says."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import toy
from parity.rule import public_shapes, tensor
from safetensors.torch import save_file
from torch import Tensor, nn

from udaseg.engine.networks import encoder_weights
from udaseg.errors import UserError
from udaseg.models import weights, weights_file
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


def empty(name: str, **options: Any) -> nn.Module:
    """An encoder of zeros, quick to make."""
    with torch.device("meta"):
        encoder = ENCODERS[name](**options)
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


HF_NAMES = {
    r"\.patch_embeddings\.(\d)\.proj": "patch_embed{}.proj",
    r"\.patch_embeddings\.(\d)\.layer_norm": "patch_embed{}.norm",
    r"encoder\.layer_norm\.(\d)": "norm{}",
    r"\.block\.(\d)\.(\d)\.layer_norm_(\d)": "block{}.{}.norm{}",
    r"\.block\.(\d)\.(\d)\.attention\.self\.query": "block{}.{}.attn.q",
    r"\.block\.(\d)\.(\d)\.attention\.self\.(?:key|value)": "block{}.{}.attn.kv",
    r"\.block\.(\d)\.(\d)\.attention\.self\.sr": "block{}.{}.attn.sr",
    r"\.block\.(\d)\.(\d)\.attention\.self\.layer_norm": "block{}.{}.attn.norm",
    r"\.block\.(\d)\.(\d)\.attention\.output\.dense": "block{}.{}.attn.proj",
    r"\.block\.(\d)\.(\d)\.mlp\.dense(\d)": "block{}.{}.mlp.fc{}",
    r"\.block\.(\d)\.(\d)\.mlp\.dwconv\.dwconv": "block{}.{}.mlp.dwconv.dwconv",
}
"""Hugging Face's name of a module -> the public one, written the other way round than the rules."""


def hugging_face(b0: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values of a public file as transformers saves them; names and shapes are those that transformers wrote."""
    state = {}
    for key, shape in public_shapes("hf_segformer_b0").items():
        module, kind = key.rsplit(".", 1)
        found = [(re.search(pattern + "$", module), name) for pattern, name in HF_NAMES.items()]
        value = torch.zeros(shape)  # the head's
        for match, name in found:
            if match:
                stage, *rest = match.groups()
                value = b0[f"{name.format(int(stage) + 1, *rest)}.{kind}"]
                value = value.chunk(2)[0 if ".key" in key else 1] if value.shape != shape else value
        state[key] = value.contiguous()
        assert value.shape == shape
    return state


@pytest.mark.parametrize("form", ["whole", "without head", "bare encoder"])
def test_hugging_face_names(tmp_path: Path, b0: dict[str, Tensor], form: str) -> None:
    state = hugging_face(b0)
    if form != "whole":
        state = {key: value for key, value in state.items() if key.startswith("segformer.")}
    if form == "bare encoder":
        state = {key.removeprefix("segformer."): value for key, value in state.items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    save_file(state, tmp_path / "mit_b0.pth")  # a safetensors file under another name
    torch.save(b0, tmp_path / "official.pth")
    official = empty("mit_b0")
    weights.load_encoder(official, tmp_path / "official.pth")
    for file in ("pytorch_model.bin", "mit_b0.pth"):
        encoder = empty("mit_b0")
        report = weights.load_encoder(encoder, tmp_path / file)
        assert not report.missing and not report.unexpected
        assert all(torch.equal(value, official.state_dict()[key]) for key, value in encoder.state_dict().items())


def test_a_key_without_its_value_is_missed(tmp_path: Path, b0: dict[str, Tensor]) -> None:
    state = {key: value for key, value in hugging_face(b0).items() if ".self.value." not in key}
    torch.save(state, tmp_path / "half.bin")
    with pytest.raises(UserError, match=r"not in the file: stages.0.blocks.0.attn.kv.weight"):
        weights.load_encoder(empty("mit_b0"), tmp_path / "half.bin")


def torchvision_file(name: str) -> dict[str, Tensor]:
    """Names and shapes of torchvision's own network; the values take no room."""
    with torch.device("meta"):
        network = getattr(torchvision.models, name)()
    return {key: torch.ones((), dtype=v.dtype).expand(v.shape) for key, v in network.state_dict().items()}


@pytest.mark.parametrize("name", ["resnet50", "resnet101"])
def test_torchvision_files_fill_the_plain_stem(tmp_path: Path, name: str) -> None:
    torch.save(torchvision_file(name), tmp_path / "tv.pth")
    encoder = empty(name, stem="plain")
    report = weights.load_encoder(encoder, tmp_path / "tv.pth")
    assert not report.missing and not report.unexpected
    assert all(bool((value == 1).all()) for value in encoder.state_dict().values())


@pytest.mark.parametrize("source", ["torchvision", "open-mmlab", "ours"])
def test_a_resnet_with_the_other_stem_is_refused_with_the_setting_to_use(tmp_path: Path, source: str) -> None:
    """All else fits, 98 % of R101's tensors: the share alone would let it pass."""
    name, stem = ("resnet101", "plain") if source == "torchvision" else ("resnet50", "deep")
    if source == "torchvision":
        state = torchvision_file(name)
    else:
        state = public_file("dlv2_r50") if source == "open-mmlab" else dict(empty(name).state_dict())
    torch.save(state, tmp_path / "r.pth")
    encoder = empty(name, stem="deep" if stem == "plain" else "plain")
    with pytest.raises(UserError) as error:
        weights.load_encoder(encoder, tmp_path / "r.pth", name=name)
    assert f"model.encoder={{kind: {name}, stem: {stem}}}" in str(error.value)


def test_auto_names_the_file_of_the_chosen_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDASEG_DATA", str(tmp_path))
    for setting, file in (("", "resnet101_v1c-e67eebb6.pth"), (", stem: plain", "resnet101-63fe2227.pth")):
        loaded = toy.load("dacs", f"model.encoder={{kind: resnet101{setting}}}", "model.weights=auto")
        with pytest.raises(UserError, match=file):
            encoder_weights(loaded.recipe)
        (tmp_path / "weights").mkdir(exist_ok=True)
        (tmp_path / "weights" / file).touch()
        assert encoder_weights(loaded.recipe) == tmp_path / "weights" / file


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
    with pytest.raises(UserError, match=r"refused.*safetensors.*\((Trying|Unsupported)"):
        weights.load_encoder(empty("mit_b0"), path)
    assert not mark.exists()


def test_a_missing_file_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    path = tmp_path / "weights" / "r101.pth"
    with pytest.raises(UserError) as error:
        weights.load_encoder(ENCODERS["tiny"](), path, name="resnet101")
    for part in (str(path), "resnet101_v1c-e67eebb6.pth", "download.openmmlab.com"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"resnet101-63fe2227\.pth from https://download\.pytorch\.org"):
        weights.load_encoder(empty("resnet101", stem="plain"), path, name="resnet101")
    with pytest.raises(UserError, match=r"does not exist.*mit_b5"):
        weights.load_encoder(ENCODERS["tiny"](), path)


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
@pytest.mark.parametrize("content", [b"<html>404 not found</html>", b"hello", b"", b"version https://git-lfs"])
def test_something_else_under_the_name_of_a_weights_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="is not a weights file: it begins with"):
        weights.read_tensors(tmp_path / name)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_file_cut_short_is_called_damaged(tmp_path: Path, kind: str, share: float) -> None:
    path, state = tmp_path / "x.pth", {"a": torch.zeros(1000), "b": torch.ones(1000)}
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="damaged or incomplete"):
        weights.read_tensors(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, torch.zeros(3), [1, 2]])
def test_a_file_without_named_tensors(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no tensors"):
        weights.load_encoder(ENCODERS["tiny"](), tmp_path / "x.pth")


def test_official_rows_are_encoders() -> None:
    assert weights.OFFICIAL.keys() == ENCODERS.keys() - {"tiny"}
    assert weights.OFFICIAL["mit_b5"].file == "mit_b5.pth"


# --- our own weights file ------------------------------------------------------------------------------------------


METADATA = weights_file.WeightsMetadata(
    encoder={"kind": "tiny"}, decoder={"kind": "linear"}, classes=("road", "sky"), palette=((1, 2, 3), (4, 5, 6)),
    mean=(1.5, 2.0, 3.0), std=(1.0, 1.0, 1.0), size=(64, 32), recipe="x", benchmark=None, protocol="all", seed=0,
    iterations=7, crop=(16, 32), inference="slide",
)  # fmt: skip


def test_metadata_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Also the types: JSON has no tuples."""
    module = nn.Linear(2, 2)
    weights_file.save(tmp_path / "w.safetensors", module, METADATA)
    metadata, tensors = weights_file.read(tmp_path / "w.safetensors")
    assert metadata == METADATA
    assert all(torch.equal(tensors[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "word"),
    [({"later": 1}, "later"), ({"palette": [[1, 2]]}, "palette"), ({"inference": "zoom"}, "inference"),
     ({"classes": None}, "classes")],
)  # fmt: skip
def test_a_header_of_another_version_is_refused_with_its_key(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    header = json.dumps(dataclasses.asdict(METADATA) | change)
    save_file({"x": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"udaseg": header})
    with pytest.raises(UserError, match=rf"w\.safetensors: its udaseg header is damaged .*\({word}"):
        weights_file.read(tmp_path / "w.safetensors")
