"""Peak memory and time of looking at one Cityscapes image through windows, HRDA with MiT-B5 (random weights), CPU.

python tests/bench/inference_memory.py [--batch 3] [--tiles 6] [--encoder mit_b5]
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

from udaseg.engine.networks import segmentor
from udaseg.evaluation.evaluate import evaluating, predict
from udaseg.evaluation.inference import Inference


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=3, help="evaluation windows at once")
    parser.add_argument("--tiles", type=int, default=None, help="detail windows at once; default: HRDA's own")
    parser.add_argument("--encoder", default="mit_b5")
    options = parser.parse_args()
    wrapper = {"kind": "hrda", **({"window_batch": options.tiles} if options.tiles else {})}
    model = segmentor({"kind": options.encoder}, {"kind": "daformer"}, 19, wrapper=wrapper, crop=(1024, 1024))
    image = torch.randn(1, 3, 1024, 2048)
    before = peak_gb()
    began = time.perf_counter()
    with evaluating(model):
        label = predict(model, image, (1024, 2048), inference=Inference((1024, 1024), options.batch))
    assert label.shape == (1, 1024, 2048)
    print(
        f"{options.encoder}, {options.batch} windows at once: {time.perf_counter() - began:.0f} s, "
        f"peak {peak_gb():.2f} GB resident ({before:.2f} GB before), {torch.get_num_threads()} threads"
    )


def peak_gb() -> float:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
