"""Contracts of networks: encoders, decoders, wrappers. B = 2 images of 64 x 128 pixels."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from udaseg.models.segmentor import Decoder, Encoder, Segmentor
from udaseg.models.tiny import TinyEncoder
from udaseg.testing.case import Case, contract, listed, require

CLASSES, CROP = 5, (64, 128)


def picture() -> Tensor:
    """Images (2, 3, 64, 128) on the default device."""
    return torch.rand(2, 3, *CROP, generator=torch.Generator().manual_seed(1), device="cpu").to(torch.empty(0).device)


def encoder_of(case: Case) -> Encoder:
    torch.manual_seed(0)
    encoder: Encoder = case.create()
    return encoder


def decoder_of(case: Case, body: Encoder) -> Decoder:
    torch.manual_seed(0)
    decoder: Decoder = case.create(body.channels, body.strides, CLASSES)
    return decoder


def segmentor_of(case: Case) -> Segmentor:
    """Around the network under test; the other parts are the demo's."""
    if case.kind == "encoder":
        body = encoder_of(case)
        return Segmentor(body, OneMap(body.channels[-1]))
    body = TinyEncoder()
    if case.kind == "decoder":
        return Segmentor(body, decoder_of(case, body))
    heads = (OneMap(body.channels[-1]) for _ in range(2))
    wrapper: Segmentor = case.create(body, *heads, CROP)
    return wrapper


class OneMap(Decoder):
    """The least a decoder may be."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, CLASSES, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        return self.classifier(features[-1])


@contract("encoder")
def has_the_maps_it_declares(case: Case) -> None:
    """One map for each of ``channels`` and ``strides``, finest first; hooks for the optimiser name its parameters."""
    encoder = encoder_of(case).eval()
    with torch.no_grad():
        maps = encoder(picture())
    require(isinstance(maps, tuple), f"forward returns {type(maps).__name__}, not a tuple of maps")
    claimed = [(2, c, CROP[0] // s, CROP[1] // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)]
    found = [tuple(map_.shape) for map_ in maps]
    require(found == claimed, f"maps of {CROP[0]} x {CROP[1]} pixels are {found}; channels and strides say {claimed}")
    require(list(encoder.strides) == sorted(encoder.strides), "maps come finest first")
    names = dict(encoder.named_parameters()).keys()
    require(encoder.no_weight_decay() <= names, "no_weight_decay names parameters that do not exist")
    for name in names:
        scale = encoder.learning_rate_scale(name)
        require(scale is None or scale >= 0, f"learning_rate_scale({name!r}) is {scale}; a factor from 0 on, or None")


@contract("decoder")
def returns_logits_of_the_maps_it_reads(case: Case) -> None:
    """Logits (B, K, h, w); maps that ``reads`` leaves out may hold anything; ``fused`` as ``fuses`` says."""
    body = TinyEncoder().eval()
    decoder = decoder_of(case, body).eval()
    with torch.no_grad():
        features = body(picture())
        logits = decoder(features)
        require(
            isinstance(logits, Tensor) and logits.ndim == 4 and logits.shape[:2] == (2, CLASSES),
            f"logits have the shape {tuple(logits.shape)}; (2, {CLASSES}, h, w) is expected",
        )
        read = Segmentor(body, decoder).feature_maps(CROP).read
        other = tuple(x if i in read else torch.full_like(x, torch.nan) for i, x in enumerate(features))
        require(torch.equal(decoder(other), logits), f"it reads other maps than `reads` = {decoder.reads} says")
        if decoder.fuses:
            fused = decoder.fused(features)
            require(fused.ndim == 4 and len(fused) == 2, "fused returns no map (B, C, h, w)")


@contract("wrapper")
def returns_branches_and_predictions(case: Case) -> None:
    """Branches with their pixels, predictions with coefficients, logits of whole images at their size."""
    wrapper, image = segmentor_of(case), picture()
    output = wrapper(image)
    require(len(output.branches) > 0 and len(output.predictions) > 0, "no branch or no prediction")
    require(output.branches[0].box is None, "the first branch shows a part of the view (box); it must show all of it")
    require(wrapper(image, context_only=True).predictions == (), "context_only: predictions are not asked for")
    for prediction in output.predictions:
        right = prediction.logits.ndim == 4 and prediction.logits.shape[:2] == (2, CLASSES)
        require(right, f"a prediction has the shape {tuple(prediction.logits.shape)}; (2, {CLASSES}, h, w) is expected")
    for size in (CROP, (72, 104)):
        with torch.no_grad():
            found = wrapper.eval().logits(image[..., : size[0], : size[1]])
        require(found.shape == (2, CLASSES, *image[..., : size[0], : size[1]].shape[-2:]), f"logits of {size} pixels")


@contract("encoder", "decoder", "wrapper")
def evaluates_images_one_by_one(case: Case) -> None:
    """In eval mode an image's logits depend on nothing else, and a copy with the same weights gives the same."""
    network = segmentor_of(case).eval()
    twin, image = copy.deepcopy(network), picture()
    with torch.no_grad():
        logits = network.logits(image)
        require(
            torch.equal(logits, network.logits(image)), "two calls in eval mode differ: is something drawn or kept?"
        )
        torch.manual_seed(1)
        alone = torch.cat([network.logits(one[None]) for one in image])
        close = torch.allclose(alone, logits, rtol=1e-3, atol=1e-4 * float(logits.abs().max()))
        require(close, "an image's logits depend on the other images of its batch in eval mode")
        state = {key: torch.randn_like(value) if value.is_floating_point() else value for key, value in state_of(twin)}
        twin.load_state_dict(state)
        twin.load_state_dict(network.state_dict())
        require(torch.equal(twin.logits(image), logits), "its state dict does not hold all that its results depend on")


def state_of(module: nn.Module) -> list[tuple[str, Tensor]]:
    return list(module.state_dict().items())


@contract("encoder", "decoder", "wrapper")
def trains_every_parameter(case: Case) -> None:
    """A backward through all maps, logits or predictions gives every parameter a finite gradient."""
    network = segmentor_of(case)
    part: nn.Module = getattr(network, case.kind, network)
    if case.kind == "encoder":
        values = list(part(picture()))
    else:
        values = [prediction.logits for prediction in network(picture()).predictions]
    torch.stack([value.float().square().mean() for value in values]).sum().backward()
    trained = {name: p.grad for name, p in part.named_parameters() if p.requires_grad}
    dry = [name for name, gradient in trained.items() if gradient is None or not gradient.isfinite().all()]
    require(not dry, f"{listed(dry)}: no finite gradient; use them, or requires_grad_(False)")
