"""timm's networks as encoders: sizes, pyramid, rates, adapters, files. Untrained; tiny where timm has a tiny one."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import toy
from safetensors.torch import save_file
from torch import Tensor, nn

from udaseg.config.registry import REGISTRIES
from udaseg.console import Silent
from udaseg.core.step import Learner
from udaseg.engine.assembly import assemble, warnings
from udaseg.engine.domains import training_pairs
from udaseg.engine.networks import encoder_weights, initial_networks, weights_metadata
from udaseg.engine.optim import parameter_groups
from udaseg.errors import UserError
from udaseg.models import timm_encoders, weights
from udaseg.models.blocks import DropPath
from udaseg.models.lora import LowRankLinear
from udaseg.models.segmentor import Segmentor
from udaseg.models.timm_encoders import Pyramid, TimmEncoder
from udaseg.models.zoo import DECODERS, ENCODERS

VIT = "test_vit.r160_in1k"
KIND = f"timm/{VIT}"
FILE = "timm/test_vit.r160_in1k/resolve/main/model.safetensors"


def encoder(name: str = VIT, **settings: Any) -> TimmEncoder:
    torch.manual_seed(0)
    return TimmEncoder(name=name, **settings)


def picture(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def head(body: TimmEncoder) -> nn.Module:
    return DECODERS["linear"](channels=body.channels, strides=body.strides, classes=3)


# --- shapes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        ("vit_small_patch14_reg4_dinov2", 14),  # a patch that is no power of two, register tokens
        ("eva02_tiny_patch14_224", 14),  # rotary positions, its own attention
        ("swin_tiny_patch4_window7_224", 4),  # channels last, made for one size
        ("sam2_hiera_tiny", 32),  # adds maps up: odd sizes do not fit
        ("resnet18", 1),
        ("test_efficientnet_gn", 1),
    ],
)
@torch.no_grad()
def test_any_image_size(name: str, multiple: int) -> None:
    """Maps lie at exactly the strides of the image, or of its nearest multiple."""
    body = encoder(name).eval()
    assert body.multiple == multiple
    for size in ((45, 66), (64, 96)):
        inside = [max(round(side / multiple), 1) * multiple for side in size]
        maps = body(picture(*size, batch=1))
        assert tuple(map_.shape[1] for map_ in maps) == body.channels
        for map_, stride in zip(maps, body.strides, strict=True):
            exact = [side / stride for side in inside]
            assert all(abs(cells - side) < 1 for cells, side in zip(map_.shape[-2:], exact, strict=True)), name
    assert body.strides == (4, 8, 16, 32)


def test_a_patch_that_is_no_power_of_two_is_exported_for_any_size() -> None:
    body = encoder("resnet10t").eval()
    for body.multiple in (1, 4, 14, 32):
        sides = range(1, 200)
        nearest = [max(round(side / body.multiple), 1) * body.multiple for side in sides]
        assert [body._fitting(side) for side in sides] == nearest
    body.multiple = 14
    free = ({2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(body, (picture(64, 96),), dynamic_shapes=free)
    torch.export.save(program, io.BytesIO())
    for map_, same in zip(program.module()(picture(77, 70)), body(picture(77, 70)), strict=True):
        torch.testing.assert_close(map_, same)


def test_blocks_of_a_plain_network_are_evenly_spaced_up_to_the_last() -> None:
    assert encoder().indices == [1, 2, 4, 5]  # of 6
    assert encoder("vit_small_patch16_dinov3").indices == [2, 5, 8, 11]


@torch.no_grad()
def test_the_pyramid_is_fed_by_four_blocks_through_the_final_norm() -> None:
    body = encoder().eval()
    given: list[Tensor] = []
    assert body.pyramid is not None
    body.pyramid.register_forward_pre_hook(lambda module, arguments: given.extend(arguments[0]))
    body(picture(64, 64))
    assert len(given) == 4 and not any(torch.equal(given[0], other) for other in given[1:])
    tokens = body.core.forward_features(picture(64, 64))[:, body.core.num_prefix_tokens :]
    torch.testing.assert_close(given[3].flatten(2).transpose(1, 2), tokens)


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_pyramid_strides(patch: int) -> None:
    pyramid = Pyramid(32, patch=patch)
    size = (6 * patch, 4 * patch)
    maps = pyramid([torch.randn(1, 32, 6, 4)] * 4, size)
    assert [tuple(m.shape) for m in maps] == [
        (1, c, -(-size[0] // s), -(-size[1] // s)) for c, s in zip(pyramid.channels, (4, 8, 16, 32), strict=True)
    ]


def test_a_plain_network_without_pyramid_has_its_patch_as_stride() -> None:
    body = encoder(pyramid=False)
    assert body.strides == (16,) * 4 and body.channels == (64,) * 4
    assert [tuple(map_.shape[2:]) for map_ in body(picture(64, 96))] == [(4, 6)] * 4


def test_levels_between_strides_4_and_32_are_taken() -> None:
    with torch.device("meta"):
        assert encoder("resnet18").strides == (4, 8, 16, 32)  # it has 2, too
        assert encoder("shvit_s1").strides == (16, 32)  # it has 64, too


def test_a_network_of_one_image_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"encoder timm/cait_xxs24_224: .*images of one size only \(224 x"):
        REGISTRIES["encoder"].create({"kind": "timm/cait_xxs24_224"})


def test_normalisation_is_the_networks_own(streets: Path) -> None:
    body = encoder()
    assert body.mean == body.std == (127.5, 127.5, 127.5)
    assert encoder("resnet18").mean == (123.675, 116.28, 103.53) and encoder("resnet18").std == (58.395, 57.12, 57.375)
    loaded = toy.load("source_only", f"model.encoder={KIND}", "model.decoder=linear", "data.crop=[70,90]")
    built = assemble(loaded)
    assert built.trainer.normalise.mean.flatten().tolist() == [127.5] * 3
    model = built.trainer.learner.segmentor
    assert weights_metadata(loaded.recipe, model).std == (127.5,) * 3
    assert built.pairs.crop == (64, 80)
    assert any("crops are (64, 80) instead of (70, 90)" in text for text in built.warnings)
    assert not any("crops are" in text for text in warnings(loaded.recipe, training_pairs(loaded.recipe)))


# --- learning ------------------------------------------------------------------------------------------------------


def rates(body: TimmEncoder) -> dict[str, tuple[float, float]]:
    """Name in the encoder -> (learning rate, weight decay) at lr 1 and head factor 10."""
    model = Segmentor(body, head(body))
    groups = parameter_groups(Learner(model, {}), lr=1.0, weight_decay=0.5)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: found[id(p)] for name, p in body.named_parameters() if id(p) in found}


def test_rates_of_layers_and_pyramid() -> None:
    found = rates(encoder(layer_decay=0.5))
    assert found["core.patch_embed.proj.weight"] == (0.5**6, 0.5)
    for block in range(6):
        assert found[f"core.blocks.{block}.attn.qkv.weight"] == (0.5 ** (5 - block), 0.5)
        assert found[f"core.blocks.{block}.norm1.weight"] == (0.5 ** (5 - block), 0.0)
    assert found["core.norm.bias"] == (1.0, 0.0)
    assert found["core.pos_embed"] == found["core.cls_token"] == (0.5**6, 0.0)
    assert found["pyramid.levels.0.0.weight"] == found["pyramid.levels.0.0.bias"] == (10.0, 0.5)
    plain = rates(encoder())
    assert {rate for name, (rate, _) in plain.items() if name.startswith("core.")} == {1.0}


def test_layers_that_timm_does_not_number_have_no_decay() -> None:
    with pytest.raises(UserError, match="leave out layer_decay"):
        REGISTRIES["encoder"].create({"kind": "timm/caformer_s18", "layer_decay": 0.9})


def test_drop_path_is_ours_so_that_teachers_switch_it_off() -> None:
    body = encoder(drop_path=0.5)
    dropping = [module.rate for module in body.modules() if isinstance(module, DropPath)]
    assert dropping and max(dropping) == 0.5 and body.core.blocks[5].drop_path1.rate == 0.5
    with pytest.raises(UserError, match="leave out drop_path"):
        REGISTRIES["encoder"].create({"kind": "timm/vgg11", "drop_path": 0.1})


@pytest.mark.parametrize("name", [VIT, "eva02_tiny_patch14_224", "swinv2_tiny_window8_256"])
def test_adapters_start_as_the_network_and_all_learn(name: str) -> None:
    """Also where timm would read a layer's weight and not call it (EVA, Swin V2)."""
    full, adapted = encoder(name).eval(), encoder(name, tune="lora", lora_rank=2).eval()
    image = picture(56, 56, batch=1)
    with torch.no_grad():
        for parameter in (*full.parameters(), *adapted.parameters()):
            if parameter.ndim == 1:
                parameter.fill_(0.5)  # the norms of Swin V2's branches start at 0: no gradient would pass
        expected = full(image)
        for map_, same in zip(adapted(image), expected, strict=True):
            torch.testing.assert_close(map_, same, rtol=1e-4, atol=1e-6)  # equal but for a bias that is added by itself
    sum(map_.square().mean() for map_ in adapted(image)).backward()
    layers = {n: m for n, m in adapted.core.named_modules() if isinstance(m, LowRankLinear)}
    blocks = [n for n, _ in adapted.core.named_modules() if n.endswith("attn")]
    assert len(layers) == 2 * len(blocks), (len(layers), len(blocks))
    for layer_name, layer in layers.items():
        assert layer.down.shape[0] == layer.up.shape[1] == 2
        assert layer.up.grad is not None and layer.up.grad.any(), layer_name
        assert layer.weight.grad is None
    learning = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert all(n.endswith((".down", ".up")) or n.startswith("pyramid.") for n in learning)
    assert {n.rpartition(".")[0].removeprefix("core.") for n in learning if n.startswith("core.")} == set(layers)


def test_an_adapter_is_the_papers_formula() -> None:
    layer = LowRankLinear(nn.Linear(5, 4), rank=2)
    nn.init.normal_(layer.up)
    x = torch.randn(3, 5)
    torch.testing.assert_close(layer(x), x @ (layer.weight + layer.up @ layer.down).T + layer.bias)
    assert layer.down.std() > 0.1


def test_adapters_have_the_heads_rate() -> None:
    found = rates(encoder(tune="lora", layer_decay=0.5))
    assert set(found.values()) == {(10.0, 0.5)}


def test_adapters_need_attention() -> None:
    with pytest.raises(UserError, match=r"encoder timm/resnet18: tune=lora needs attention.*allowed: full, frozen"):
        REGISTRIES["encoder"].create({"kind": "timm/resnet18", "tune": "lora"})


@pytest.mark.parametrize("tune", ["frozen", "lora"])
def test_what_is_frozen_stays_in_eval_mode(tune: str) -> None:
    body = encoder("vit_tiny_r_s16_p8_224", tune=tune, drop_path=0.5).train()
    assert body.training and body.pyramid is not None and body.pyramid.training
    assert not any(module.training for module in body.core.modules())
    assert all(p.requires_grad for p in body.pyramid.parameters())


@pytest.mark.parametrize("tune", ["full", "frozen", "lora"])
def test_three_steps_and_a_resume(streets: Path, tune: str) -> None:
    """Only what is to be trained changes; a run continued from its checkpoint ends with the same weights."""
    from safetensors.torch import load_file

    from udaseg.engine import runs

    part = f"model.encoder={{kind: {KIND}, tune: {tune}, lora_rank: 2}}"
    loaded = toy.load(
        "daformer", "model.decoder={kind: daformer, width: 16}", part, "train.iterations=3",
        "runtime.checkpoint_minutes=0", "data.validation=null",
    )  # fmt: skip
    start = {k: v.clone() for k, v in initial_networks(loaded.recipe)[0].state_dict().items()}
    runs.train(loaded, Path("run"), lambda _: Silent())
    end = load_file("run/weights.safetensors")
    assert end.keys() == start.keys()
    for name in (name for name in start if name.startswith("encoder.")):
        trained = tune == "full" or ".core." not in name or name.endswith((".down", ".up"))
        if not trained:
            assert torch.equal(start[name], end[name]), name
        elif start[name].is_floating_point():
            assert not torch.equal(start[name], end[name]), name
    Path("run/result.json").unlink()
    Path("run/weights.safetensors").unlink()
    sorted(Path("run/checkpoints").glob("step-*.pt"))[-1].unlink()
    runs.train(loaded, Path("run"), lambda _: Silent(), resume=True)
    again = load_file("run/weights.safetensors")
    assert all(torch.equal(end[name], again[name]) for name in end)
    module, metadata = runs.load_student(Path("run"))
    assert metadata.encoder["tune"] == tune and tuple(metadata.mean) == (127.5,) * 3
    assert torch.equal(module.state_dict()["encoder.core.pos_embed"], end["encoder.core.pos_embed"])
    assert runs.load_student(Path("run"), teacher=True)[1].std == (127.5,) * 3


# --- names and files -----------------------------------------------------------------------------------------------


def problems(encoder_: str) -> str:
    with pytest.raises(UserError) as error:
        toy.load("dacs", f"model.encoder={encoder_}")
    return str(error.value)


def test_names() -> None:
    assert KIND in ENCODERS and "timm/test_vit" in ENCODERS and "timm/nosuch" not in ENCODERS and "x" not in ENCODERS
    assert KIND not in list(ENCODERS)
    text = problems("timm/vit_smal_patch14_dinov2")
    assert "model.encoder" in text and "did you mean 'timm/vit_small_patch14_dinov2'?" in text and len(text) < 600
    assert "unknown encoder 'timm/test_vit.nosuch'" in problems("timm/test_vit.nosuch")
    assert "timm/NAME (udaseg models" in problems("mit_b9")
    assert "did you mean 'tune'?" in problems(f"{{kind: {KIND}, tun: lora}}")
    assert "'full', 'frozen' or 'lora'" in problems(f"{{kind: {KIND}, tune: half}}")


def test_timm_is_imported_for_timms_networks_only() -> None:
    code = (
        "import sys\nfrom udaseg.config.load import load\nload('daformer')\nprint('timm' in sys.modules)\n"
        "load('daformer', overrides=['model.encoder=timm/test_vit'])\nprint('timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def timm_file(path: Path, **options: Any) -> dict[str, Tensor]:
    """A file as timm's own: with its classifier."""
    torch.manual_seed(7)
    state = timm.create_model("test_vit", **options).state_dict()
    save_file(state, path)
    return state


def test_a_file_of_timm_fills_the_network(tmp_path: Path) -> None:
    state = timm_file(tmp_path / "x.safetensors")
    for tune in ("full", "lora"):
        body = encoder(tune=tune)
        report = weights.load_encoder(body, tmp_path / "x.safetensors", name=KIND)
        assert (report.missing, report.unexpected) == ((), ())
        assert all(name.startswith("core.") for name in report.matched)
        own = body.core.state_dict()
        assert all(torch.equal(own[k], v) for k, v in state.items() if not k.startswith("head."))
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "x.pth")
    assert not weights.load_encoder(encoder(), tmp_path / "x.pth", name=KIND).missing


def test_a_weights_file_of_ours_fills_the_network(tmp_path: Path) -> None:
    """Of another run, with another decoder; adapters would be lost, so a file with them is not for a plain network."""
    source = Segmentor(encoder(), nn.Identity())
    torch.save(source.state_dict(), tmp_path / "own.pth")
    torch.manual_seed(1)
    body = TimmEncoder(name=VIT)
    report = weights.load_encoder(body, tmp_path / "own.pth", name=KIND)
    assert not report.missing and not report.unexpected
    loaded = source.encoder.core.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, loaded[name]) for name, value in body.core.state_dict().items())
    torch.save(Segmentor(encoder(tune="lora"), nn.Identity()).state_dict(), tmp_path / "lora.pth")
    with pytest.raises(UserError, match=r"no place for (.|\n)*unknown: core\.blocks\.0\.attn\.qkv\.down"):
        weights.load_encoder(body, tmp_path / "lora.pth", name=KIND)


def test_positions_of_another_size_are_resampled(tmp_path: Path) -> None:
    state = timm_file(tmp_path / "x.safetensors", img_size=96)
    body = encoder()
    assert not weights.load_encoder(body, tmp_path / "x.safetensors", name=KIND).missing
    assert state["pos_embed"].shape[1] == 37 and body.core.pos_embed.shape[1] == 101
    assert torch.allclose(body.core.pos_embed[:, 1:].mean(1), state["pos_embed"][:, 1:].mean(1), atol=0.01)


def test_another_networks_file_is_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "x.safetensors")
    body = encoder()
    before = body.core.pos_embed.clone()
    with pytest.raises(UserError, match=r"x.safetensors") as error:
        weights.load_encoder(body, tmp_path / "x.safetensors", name=KIND)
    assert f"https://huggingface.co/{FILE}" in str(error.value)
    assert torch.equal(before, body.core.pos_embed)


def offline(*arguments: object) -> Path:
    raise ConnectionError("no network")


def test_auto_looks_at_home_first_then_fetches(streets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDASEG_DATA", str(streets))
    part = f"model.encoder={{kind: {KIND}, revision: abc}}"
    recipe = toy.load("source_only", part, "model.weights=auto").recipe
    fetched: list[tuple[object, ...]] = []
    monkeypatch.setattr(timm_encoders, "fetch", lambda *a: fetched.append(a) or Path("cache/model.safetensors"))
    assert encoder_weights(recipe) == Path("cache/model.safetensors") and fetched == [(VIT, "abc")]
    monkeypatch.setattr(timm_encoders, "fetch", offline)
    with pytest.raises(UserError) as error:
        encoder_weights(recipe)
    home = streets / "weights" / f"{VIT}.safetensors"
    for word in (FILE.replace("main", "abc"), f"put it at {home}", "ConnectionError", "model.weights=none"):
        assert word in str(error.value), word
    home.parent.mkdir()
    home.touch()
    assert encoder_weights(recipe) == home


def test_weights_none_never_asks_the_network(streets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setattr(timm_encoders, "fetch", offline)
    loaded = toy.load("source_only", f"model.encoder={KIND}", "model.decoder=linear")
    assert initial_networks(loaded.recipe)[2]["encoder_weights"] is None


def test_the_stamp_says_what_was_loaded(streets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timm_file(streets / "x.safetensors")
    loaded = toy.load("source_only", f"model.encoder={KIND}", "model.decoder=linear", "model.weights=x.safetensors")
    stamp = initial_networks(loaded.recipe)[2]["encoder_weights"]
    assert stamp["file"] == "x.safetensors" and len(stamp["sha256"]) == 64 and stamp["missing"] == ()
    assert "source" not in stamp  # it may be any file
    monkeypatch.setattr(timm_encoders, "fetch", lambda *_: Path("x.safetensors"))
    loaded = toy.load("source_only", f"model.encoder={KIND}", "model.decoder=linear", "model.weights=auto")
    stamp = initial_networks(loaded.recipe)[2]["encoder_weights"]
    assert stamp["source"] == f"https://huggingface.co/{FILE}" and stamp["licence"] == "apache-2.0"
