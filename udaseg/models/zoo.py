"""Every encoder and decoder by name. Its keyword-only parameters are settings of a recipe, but for those bound here.

``timm/NAME`` is every network of timm, which is not imported before such a name is asked for.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from udaseg.models import decoders
from udaseg.models.mit import MixTransformer
from udaseg.models.resnet import ResNet
from udaseg.models.segmentor import Decoder, Encoder
from udaseg.models.tiny import TinyEncoder

NARROW, WIDE = (32, 64, 160, 256), (64, 128, 320, 512)

TIMM = "timm/"

OWN: dict[str, Callable[..., Encoder]] = {
    "mit_b0": partial(MixTransformer, widths=NARROW, depths=(2, 2, 2, 2)),
    "mit_b1": partial(MixTransformer, widths=WIDE, depths=(2, 2, 2, 2)),
    "mit_b2": partial(MixTransformer, widths=WIDE, depths=(3, 4, 6, 3)),
    "mit_b3": partial(MixTransformer, widths=WIDE, depths=(3, 4, 18, 3)),
    "mit_b4": partial(MixTransformer, widths=WIDE, depths=(3, 8, 27, 3)),
    "mit_b5": partial(MixTransformer, widths=WIDE, depths=(3, 6, 40, 3)),
    "resnet50": partial(ResNet, depths=(3, 4, 6, 3)),
    "resnet101": partial(ResNet, depths=(3, 4, 23, 3)),
    "tiny": TinyEncoder,
}


class Encoders(Mapping[str, Callable[..., Encoder]]):
    """Our own encoders, and timm's as ``timm/NAME``; iteration gives our own only."""

    def __getitem__(self, name: str) -> Callable[..., Encoder]:
        if name in OWN:
            return OWN[name]
        if name.startswith(TIMM):
            from udaseg.models import timm_encoders as timm

            if name.removeprefix(TIMM) in timm.names():
                return partial(timm.TimmEncoder, name=name.removeprefix(TIMM))
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(OWN)

    def __len__(self) -> int:
        return len(OWN)

    def near(self, name: str) -> list[str]:
        """Names to suggest for an unknown one."""
        if not name.startswith(TIMM):
            return [*OWN, f"{TIMM}NAME (udaseg models 'timm/*')"]
        from udaseg.models import timm_encoders as timm

        near = difflib.get_close_matches(name.removeprefix(TIMM), timm.names(), 3, cutoff=0.5)
        return [*OWN, *(TIMM + network for network in near)]


ENCODERS = Encoders()

DECODERS: dict[str, type[Decoder]] = {
    "daformer": decoders.DAFormerHead,
    "segformer": decoders.SegFormerHead,
    "deeplabv2": decoders.DeepLabV2Head,
    "deeplabv3plus": decoders.DeepLabV3PlusHead,
    "fpn": decoders.FPNHead,
    "linear": decoders.LinearHead,
}
