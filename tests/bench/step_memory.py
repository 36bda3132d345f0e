"""What a step keeps for its backward at full size, counted on a pretended GPU: no card is needed.

    python tests/bench/step_memory.py daformer hrda mic [train.precision=fp32 ...]

Per view, the bytes of all tensors that autograd saves in the student's pass and the terms (each storage once, weights
left out); the largest is what counts, since a view's graph is gone before the next. To it come weights, gradients and
AdamW's two moments (16 bytes a trained parameter), teacher and frozen encoder (4), and what kernels need for a moment.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from pretend import GPU, PretendedDraws, card, moved

from udaseg import build
from udaseg.engine.device import autocast
from udaseg.models.frozen import Frozen
from udaseg.uda.step import Learner
from udaseg.uda.teacher import Teacher
from udaseg.uda.types import Batch, Iteration


def measure(name: str, overrides: list[str]) -> str:
    """A line for a recipe."""
    recipe = build.load(name, overrides=overrides).recipe
    (height, width), images = build.training_crop(recipe), recipe.train.batch
    precision = "bf16" if recipe.train.precision == "auto" else recipe.train.precision
    with torch.device("meta"):
        student = build.segmentor_of(recipe)
        reference = Frozen(build.segmentor_of(recipe).encoder) if build.uses_reference(recipe) else None
        normalise, maps = build.normalisation(student), student.maps((height, width))
        learner = Learner(student, build.stages(recipe, build.class_set(recipe), reference, normalise, maps)).train()
        teacher = Teacher(student) if build.needs_target(recipe) else None
    still = [part for part in (teacher, reference) if part is not None]
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    fixed = 16 * trained + 4 * sum(p.numel() for part in still for p in part.parameters())
    with card() as mode:
        for module in (learner, normalise, *still[:1]):
            moved(module, mode)
        with mode:
            image = torch.empty(images, 3, height, width, device=GPU)
            label = torch.zeros(images, height, width, dtype=torch.int64, device=GPU)
            iteration = Iteration(
                index=0,
                batch=Batch(image, label, image.clone() if teacher else None, None),
                draws=PretendedDraws(0, 0, GPU),
                segmentor=student,
                predict_target=teacher.predict if teacher else None,
                encode_by_teacher=teacher.encode if teacher else None,
                labeller=build.labeller(recipe),
            )
            weights = {v.untyped_storage()._cdata for v in [*learner.state_dict().values(), *learner.parameters()]}
            saved = {}
            for view, stage in learner.views():
                with autocast(precision, GPU)():
                    with torch.no_grad():
                        seen = stage.build(iteration)
                    found: dict[int, torch.Tensor] = {}
                    with torch.autograd.graph.saved_tensors_hooks(
                        lambda t, found=found: found.setdefault(t.untyped_storage()._cdata, t) is None or t, lambda t: t
                    ):
                        output = student(seen.image, context_only=stage.context_only)
                        losses = [term(seen, output, iteration).value for term in stage.terms.values()]
                saved[view] = sum(t.untyped_storage().nbytes() for k, t in found.items() if k not in weights) / 2**30
                del output, losses
    views = ", ".join(f"{view} {size:.2f}" for view, size in saved.items())
    total = max(saved.values()) + fixed / 2**30
    return (
        f"{name} ({precision}, {images} x {width}): {views}; weights and optimiser {fixed / 2**30:.2f}; {total:.1f} GiB"
    )


if __name__ == "__main__":
    settings = [text for text in sys.argv[1:] if "=" in text]
    for name in [text for text in sys.argv[1:] if "=" not in text]:
        print(measure(name, settings), flush=True)
