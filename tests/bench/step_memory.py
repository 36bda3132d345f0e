"""What a step keeps for its backward at full size, counted on a pretended GPU: no card is needed.

    python tests/bench/step_memory.py daformer hrda mic [train.precision=fp32 ...]

Per view, the bytes of all tensors that autograd saves in the student's pass and the terms (each storage once, weights
left out); the largest is what counts, since a view's graph is gone before the next. To it come weights, gradients and
AdamW's two moments (16 bytes a trained parameter), teacher and frozen encoder (4), and what kernels need for a moment.
Attention is spelt out here, its softmax kept in float32: fused kernels of a real card keep less.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from pretend import GPU, PretendedRng, card, moved

from udaseg.config.checks import needs
from udaseg.config.load import load
from udaseg.config.schema import Recipe
from udaseg.core.context import Batch, StepContext
from udaseg.core.step import Learner
from udaseg.core.teacher import Teacher
from udaseg.data.loading import Normalise
from udaseg.engine.assembly import build_context, pseudo_label_rule, stages
from udaseg.engine.device import autocast
from udaseg.engine.domains import training_crop
from udaseg.engine.networks import normalisation, segmentor_of
from udaseg.models.frozen import Frozen


def measure(name: str, overrides: list[str]) -> str:
    """A line for a recipe."""
    recipe = load(name, overrides=overrides).recipe
    precision = "bf16" if recipe.train.precision == "auto" else recipe.train.precision
    learner, still = networks(recipe)
    trained = sum(p.numel() for p in learner.parameters() if p.requires_grad)
    fixed = (16 * trained + 4 * sum(p.numel() for part in still for p in part.parameters())) / 2**30
    saved = saved_by_view(recipe, learner, still, precision)
    views = ", ".join(f"{view} {size:.2f}" for view, size in saved.items())
    size = f"{precision}, {recipe.train.batch} x {training_crop(recipe)[1]}"
    return f"{name} ({size}): {views}; weights and optimiser {fixed:.2f}; {max(saved.values()) + fixed:.1f} GiB"


def networks(recipe: Recipe) -> tuple[Learner, list[nn.Module]]:
    """The learner, and what is not trained: normalisation, teacher, frozen encoder."""
    with torch.device("meta"):
        student, wanted = segmentor_of(recipe), needs(recipe)
        pretrained = Frozen(segmentor_of(recipe).encoder) if wanted.pretrained_encoder else None
        normalise = normalisation(student)
        learner = Learner(student, stages(recipe, build_context(recipe, normalise, student)), pretrained).train()
        teacher = Teacher(student) if wanted.teacher else None
    return learner, [part for part in (normalise, teacher, pretrained) if part is not None]


def saved_by_view(recipe: Recipe, learner: Learner, still: list[nn.Module], precision: str) -> dict[str, float]:
    """GiB by view."""
    saved_gib = {}
    with card() as mode:
        for module in (learner, *still):
            moved(module, mode)
        with mode:
            context = pretended_context(recipe, learner, still)
            weights = {v.untyped_storage()._cdata for v in [*learner.state_dict().values(), *learner.parameters()]}
            for name, stage in learner.named_stages():
                saved = Saved()
                with autocast(precision, GPU)(), saved:
                    with torch.no_grad():
                        view = stage.build_view(context)
                    output = learner.segmentor(view.image, context_only=stage.context_only)
                    losses = [term(view, output, context) for term in stage.terms.values()]
                saved_gib[name] = sum(size for storage, size in saved.sizes.items() if storage not in weights) / 2**30
                del output, losses
    return saved_gib


def pretended_context(recipe: Recipe, learner: Learner, still: list[nn.Module]) -> StepContext:
    """On the device, with images and labels of the recipe's size."""
    normalise = next(part for part in still if isinstance(part, Normalise))
    teacher = next((part for part in still if isinstance(part, Teacher)), None)
    (height, width), images = training_crop(recipe), recipe.train.batch
    image = torch.empty(images, 3, height, width, device=GPU)
    label = torch.zeros(images, height, width, dtype=torch.int64, device=GPU)
    return StepContext(
        iteration=0,
        batch=Batch(image, label, image.clone() if needs(recipe).target else None),
        rng=PretendedRng(0, 0, GPU),
        segmentor=learner.segmentor,
        teacher=teacher,
        pseudo_label_rule=pseudo_label_rule(recipe, build_context(recipe, normalise, learner.segmentor)),
        pretrained_encoder=learner.pretrained_encoder,
    )


class Saved(torch.autograd.graph.saved_tensors_hooks):
    """Storages that autograd keeps inside, with their sizes in bytes."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.kept: list[Tensor] = []  # no storage's number is used twice
        super().__init__(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        self.kept.append(tensor)
        self.sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor


if __name__ == "__main__":
    settings = [text for text in sys.argv[1:] if "=" in text]
    for name in [text for text in sys.argv[1:] if "=" not in text]:
        print(measure(name, settings), flush=True)
