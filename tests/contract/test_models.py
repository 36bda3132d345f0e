"""What every encoder and decoder promises, at toy size: shapes, gradients, determinism, and how they may be run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from udaseg.models.blocks import DropPath
from udaseg.models.mit import Attention, MixTransformer
from udaseg.models.resnet import ResNet
from udaseg.models.segmentor import Decoder, Encoder, Segmentor
from udaseg.models.weights import load_encoder
from udaseg.models.zoo import DECODERS, ENCODERS
from udaseg.testing import has_the_maps_it_declares

CLASSES = 5
# One of each family, with as few blocks as show every kind; the rest of the zoo differs in numbers only.
SMALL: dict[str, Callable[..., Encoder]] = {
    "mit": partial(ENCODERS["mit_b0"], depths=(1, 1, 1, 2)),
    "resnet": partial(ENCODERS["resnet50"], depths=(1, 1, 2, 2)),
    "resnet_plain": partial(ENCODERS["resnet50"], depths=(1, 1, 2, 2), stem="plain"),
    "tiny": ENCODERS["tiny"],
    **{
        f"timm/{name}": ENCODERS[f"timm/{name}"]
        for name in ("test_vit", "test_convnext", "test_efficientnet", "resnet10t")
    },
}
NARROW = {"daformer": {"width": 16}, "segformer": {"width": 16}, "deeplabv3plus": {"width": 16, "detail_width": 8}}


def build(encoder: str, decoder: str) -> Segmentor:
    torch.manual_seed(0)
    body = SMALL[encoder]()
    options = NARROW.get(decoder, {})
    return Segmentor(body, DECODERS[decoder](channels=body.channels, strides=body.strides, classes=CLASSES, **options))


def picture(batch: int = 2, height: int = 32, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def logits_of(model: Segmentor, image: Tensor) -> Tensor:
    return model(image).predictions[0].logits


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", SMALL)
def test_pair(encoder: str, decoder: str) -> None:
    """Train step with finite gradients everywhere; deterministic in eval; state dict round trip."""
    model, image = build(encoder, decoder), picture()
    output = model(image)
    logits = output.predictions[0].logits
    coarse = decoder in ("linear", "deeplabv2")
    stride = model.encoder.strides[-1 if coarse else 0]
    assert logits.shape == (2, CLASSES, 32 // stride, 64 // stride)
    logits.square().mean().backward()
    bare = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    unread = () if decoder in ("daformer", "segformer", "fpn") else ("encoder.pyramid.levels.",)  # of a plain ViT
    assert not [name for name in bare if not name.startswith(unread)]
    model.eval()
    with torch.no_grad():
        first = model.logits(image)
        assert first.shape == (2, CLASSES, 32, 64)
        assert torch.equal(first, model.logits(image))
        other = build(encoder, decoder).eval()
        other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(first, other.logits(image))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_have_the_shapes_they_claim(name: str) -> None:
    """At their own size, but without values."""
    with torch.device("meta"):
        has_the_maps_it_declares(ENCODERS[name])


class OneMap(Decoder):
    """The least a decoder may be."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels[0], classes, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.classifier(features[0])


def test_what_a_component_does_not_declare_has_a_default() -> None:
    body = SMALL["tiny"]()
    decoder = OneMap(body.channels, body.strides, CLASSES)
    assert Segmentor(body, decoder).feature_maps((64, 64)).read == (0, 1, 2, 3)
    assert not decoder.fuses and not decoder.attention_settings
    with pytest.raises(NotImplementedError, match="OneMap has no fused map"):
        decoder.fused(body(picture()))


@pytest.mark.parametrize("decoder", [name for name, decoder in DECODERS.items() if decoder.fuses])
def test_the_fused_map_is_the_one_that_is_classified(decoder: str) -> None:
    model = build("tiny", decoder).eval()
    features = model.encoder(picture())
    assert torch.equal(model.decoder.classifier(model.decoder.fused(features)), model.decoder(features))


@pytest.mark.parametrize(("encoder", "decoder"), [("mit", "daformer"), ("resnet", "deeplabv3plus"), ("tiny", "fpn")])
@torch.no_grad()
def test_channels_last_and_autocast(encoder: str, decoder: str) -> None:
    """Memory order changes nothing but rounding; bfloat16 stays near."""
    model, image = build(encoder, decoder).eval(), picture()
    plain = logits_of(model, image)
    model = model.to(memory_format=torch.channels_last)
    image = image.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits_of(model, image), plain, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits_of(model, image).float()
    assert (rough - plain).abs().max() < 0.1 * plain.abs().max()


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        ("mit", "daformer"),
        pytest.param("resnet", "deeplabv2", marks=pytest.mark.slow),
        pytest.param("tiny", "fpn", marks=pytest.mark.slow),
    ],
)
def test_one_graph_under_compile(encoder: str, decoder: str) -> None:
    """No graph break in train mode (drop path and dropout included)."""
    model = build(encoder, decoder)
    compiled = torch.compile(lambda image: logits_of(model, image), backend="eager", fullgraph=True)
    assert compiled(picture()).shape == logits_of(model, picture()).shape


@torch.no_grad()
def test_mit_takes_any_size() -> None:
    """The public code does; reductions without padding leave the rest out."""
    maps = ENCODERS["mit_b0"]().eval()(picture(2, 72, 104))
    assert [tuple(map_.shape[-2:]) for map_ in maps] == [(18, 26), (9, 13), (5, 7), (3, 4)]


def test_layer_norm_eps() -> None:
    """1e-6 in the blocks and after a stage, 1e-5 after a patch embedding and in the attention."""
    encoder = ENCODERS["mit_b0"]()
    norms = {name: m.eps for name, m in encoder.named_modules() if isinstance(m, nn.LayerNorm)}
    assert len(norms) == 8 * 2 + 4 + 4 + 6
    for name, eps in norms.items():
        assert eps == (1e-5 if name.endswith(("embed.norm", "attn.reduce_norm")) else 1e-6), name


def test_drop_path_rates_grow_over_all_blocks() -> None:
    encoder = MixTransformer(widths=(32, 64, 160, 256), depths=(2, 2, 2, 2), drop_path=0.7)
    rates = [module.rate for module in encoder.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.1 * i for i in range(8)])
    default = [module.rate for module in ENCODERS["mit_b0"]().modules() if isinstance(module, DropPath)]
    assert default[0] == 0 and default[-1] == pytest.approx(0.1)


def test_drop_path_is_per_sample_scaled_and_off_in_eval() -> None:
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    y = drop(x)
    assert ((y == 0) | (y == 1 / 0.75)).all()
    assert torch.equal(y, y[:, :1, :1].expand_as(y))
    assert y.mean().item() == pytest.approx(1.0, abs=0.05)
    assert drop.eval()(x) is x
    with pytest.raises(ValueError, match="0 <= rate < 1"):
        DropPath(1.0)


@torch.no_grad()
def test_attention_equals_the_written_out_formula() -> None:
    """The matrix that is never stored, stored (float64): what scaled_dot_product_attention must amount to."""
    torch.manual_seed(0)
    attention = Attention(16, heads=2, reduction=2).double()
    x, size = torch.randn(2, 24, 16, dtype=torch.float64), (4, 6)
    small = attention.reduce(x.transpose(1, 2).reshape(2, 16, *size)).flatten(2).transpose(1, 2)  # type: ignore[misc]
    k, v = attention.kv(attention.reduce_norm(small)).reshape(2, 6, 2, 2, 8).permute(2, 0, 3, 1, 4)
    q = attention.q(x).reshape(2, 24, 2, 8).permute(0, 2, 1, 3)
    matrix = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1)
    expected = attention.proj((matrix @ v).transpose(1, 2).reshape(2, 24, 16))
    torch.testing.assert_close(attention(x, size), expected, rtol=1e-12, atol=1e-12)


def test_resnet_dilation_is_contracted() -> None:
    encoder = ResNet(depths=(3, 4, 6, 3))
    middle = [[block.conv.conv for block in stage] for stage in encoder.stages]  # type: ignore[union-attr]
    assert [[conv.dilation[0] for conv in stage[:2]] for stage in middle] == [[1, 1], [1, 1], [1, 2], [2, 4]]
    assert [[conv.stride[0] for conv in stage[:2]] for stage in middle] == [[1, 1], [2, 1], [1, 1], [1, 1]]


@torch.no_grad()
def test_plain_stem_is_torchvisions_resnet(tmp_path: Path) -> None:
    """Its dilation instead of stride is the contracted one, too; so its files mean the same here, map by map."""
    torch.manual_seed(0)
    theirs = torchvision.models.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 2, 3, 3], replace_stride_with_dilation=[False, True, True]
    ).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for held in (module.running_mean, module.running_var, module.weight, module.bias):
                held.add_(0.3 * torch.rand_like(held))  # type: ignore[union-attr]
    torch.save(theirs.state_dict(), tmp_path / "resnet.pth")
    ours = ResNet(depths=(1, 2, 3, 3), stem="plain").eval()
    load_encoder(ours, tmp_path / "resnet.pth")
    image = picture(1, 72, 104)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    for i, map_ in enumerate(ours(image), 1):
        x = getattr(theirs, f"layer{i}")(x)
        torch.testing.assert_close(map_, x, rtol=1e-5, atol=1e-5)


def test_the_demo_network_is_small() -> None:
    model = Segmentor(
        ENCODERS["tiny"](), DECODERS["fpn"](channels=(32, 64, 128, 160), strides=(4, 8, 16, 32), classes=19)
    )
    assert 1_590_000 < sum(p.numel() for p in model.parameters()) < 1_630_000


def test_an_unknown_fusion_is_refused() -> None:
    with pytest.raises(ValueError, match="sep_aspp, aspp, conv1"):
        DECODERS["daformer"](channels=(8,), strides=(4,), classes=2, fusion="max")
