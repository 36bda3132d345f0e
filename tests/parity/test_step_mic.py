"""Two complete iterations of MIC on HRDA through the real step, gradients included (fixture step_mic)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from parity.rule import DATA, hrda_parts, image, noisy, public_shapes, rule_hrda
from parity.test_step import THINGS, Recorded, build_context, deterministic, norms, unscaled
from udaseg.core import views
from udaseg.core.context import Batch, StepContext, StepRng
from udaseg.core.masking import Blocks
from udaseg.core.step import Learner, Stage, training_step
from udaseg.core.teacher import Teacher
from udaseg.core.terms.cross_entropy import CrossEntropy
from udaseg.core.terms.feature_distance import FeatureDistance
from udaseg.core.weighting import ConfidenceShare
from udaseg.engine.optim import adamw, parameter_groups
from udaseg.models import multires, renaming
from udaseg.models.frozen import Frozen
from udaseg.models.segmentor import Box, InferencePass, Segmentor

REFERENCE = json.loads((DATA / "step_mic.json").read_text())
EXACT = json.loads((DATA / "step_mic_f64.json").read_text())
FIXTURE = np.load(DATA / "step_mic.npz")
TABLE = renaming.public_names(public_shapes("step_mic_model"), hrda_parts("mit_b0", "daformer"))
SIZE = 256


class RecordedRng(StepRng):
    """Answers the masker with the fixture's patch noise."""

    noise: Tensor

    def per_image(self, images: int, *shape: int) -> Tensor:
        return self.noise if shape == (1, 8, 8) else super().per_image(images, *shape)


class Watched:
    """The teacher of a step, whose labelling is recorded."""

    def __init__(self, teacher: Teacher, seen: dict[str, Any]) -> None:
        self.teacher, self.seen, self.encode = teacher, seen, teacher.encode

    def infer(self, target: Tensor) -> InferencePass:
        self.seen["ema_norm"] = norms(self.teacher.segmentor)
        inference = self.teacher.infer(target)
        self.seen["logits"] = inference.logits
        return inference


def setup() -> tuple[Learner, Teacher, torch.optim.Optimizer]:
    student = rule_hrda("step_mic_model", "mit_b0", "daformer", crop=SIZE).train()
    deterministic(student)
    frozen = rule_hrda("step_mic_model", "mit_b0", "daformer", crop=SIZE, prefix="imnet_model.").encoder
    context = build_context()
    distance = FeatureDistance(context, class_names=THINGS)
    off = {"jitter": 0.0, "jitter_probability": 0.0, "blur_probability": 0.0}
    masked = views.Masked(context, masker=Blocks(context, block=32 / SIZE, ratio=0.7), images="target", **off)
    ce = {"ce": 1.0}
    learner = Learner(
        student,
        {
            "source": Stage(
                views.Source(context), {"ce": CrossEntropy(context), "fd": distance}, {"ce": 1.0, "fd": 0.005}
            ),
            "mixed": Stage(views.Mixed(context, **off), {"ce": CrossEntropy(context)}, ce),
            "masked": Stage(masked, {"ce": CrossEntropy(context)}, ce),
        },
        Frozen(frozen),
    )
    learner.train()
    teacher = Teacher(student, alpha=0.999)
    return learner, teacher, adamw(parameter_groups(learner, lr=6e-5, weight_decay=0.01))


def batch(t: int) -> Batch:
    label = noisy(f"label/step_mic/{t}", (2, SIZE, SIZE), block=64)
    valid = torch.zeros(2, SIZE, SIZE)
    valid[:, 8:-40, 8:-8] = 1
    pictures = (image(f"input/step_mic/{side}/{t}", (2, 3, SIZE, SIZE)) for side in ("src", "trg"))
    source, target = pictures
    return Batch(source, torch.from_numpy(label).long()[:, 0], target, valid)


def recorded(t: int, kind: str) -> list[Any]:
    return [value for name, value in REFERENCE["iters"][t]["events"] if name == kind]


def step(
    learner: Learner, teacher: Teacher, optimiser: torch.optim.Optimizer, t: int, patch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """One iteration with the fixture's draws; everything the tests compare."""
    classes = Recorded()
    classes.choices = iter(recorded(t, "np.random.choice"))
    boxes = iter(Box(*corners) for corners in recorded(t, "hr_crop_box(y1,y2,x1,x2)"))
    patch.setattr(views, "choose_classes", classes)
    patch.setattr(multires, "draw_box", lambda size, window: next(boxes))
    rng = RecordedRng(0, t, torch.device("cpu"))
    noise = next(value for value in recorded(t, "torch.rand") if value["shape"] == [2, 1, 8, 8])
    rng.noise = torch.tensor(noise["values"]).view(2, 1, 8, 8)
    seen: dict[str, Any] = {"tiles": {"student": [], "teacher": [], "pretrained": []}, "views": {}}

    def count(who: str, module: torch.nn.Module) -> Any:
        return module.register_forward_pre_hook(lambda _, x: seen["tiles"][who].append(x[0].shape[0]))

    pretrained = learner.pretrained_encoder
    handles = [count(who, module) for who, module in (
        ("student", learner.segmentor.encoder), ("teacher", teacher.segmentor.encoder), ("pretrained", pretrained),
    )]  # fmt: skip
    for name, stage in learner.named_stages():
        patch.setattr(stage, "build_view", keep(seen["views"], name, stage.build_view), raising=False)
    rule = ConfidenceShare(build_context(), threshold=0.11)
    context = StepContext(t, batch(t), rng, learner.segmentor, Watched(teacher, seen), rule, pretrained)
    seen["losses"] = training_step(learner, teacher, context, optimiser, unscaled())
    seen["context"] = context
    for handle in handles:
        handle.remove()
    patch.undo()
    return seen


def keep(seen: dict[str, Any], name: str, build_view: Any) -> Any:
    return lambda context: seen.setdefault(name, build_view(context))


@pytest.fixture(scope="module")
def traces() -> Iterator[list[dict[str, Any]]]:
    patch = pytest.MonkeyPatch()
    learner, teacher, optimiser = setup()
    found = []
    for t in range(2):
        trace = step(learner, teacher, optimiser, t, patch)
        student: Segmentor = learner.segmentor
        trace["grad"] = {k: p.grad.double().norm().item() for k, p in student.named_parameters() if p.grad is not None}
        trace["norm_after"] = norms(student)
        trace["state"] = {k: v.clone() for k, v in student.state_dict().items()}
        trace["teacher_state"] = {k: v.clone() for k, v in teacher.segmentor.state_dict().items()}
        found.append(trace)
    yield found


@pytest.mark.parametrize("t", [0, 1])
def test_losses(traces: list[dict[str, Any]], t: int) -> None:
    log, losses = REFERENCE["iters"][t]["log_vars"], traces[t]["losses"]
    tolerance = 1e-5 if t == 0 else 5e-4
    for name, prefix in (("source", ""), ("mixed", "mix."), ("masked", "masked.")):
        expected = log[f"{prefix}decode.loss_seg"] + log[f"{prefix}decode.hr.loss_seg"]
        assert losses[f"{name}/ce"].value.item() == pytest.approx(expected, rel=tolerance), name
    expected = log["src.loss_imnet_feat_dist"]
    assert 0.005 * losses["source/fd"].value.item() == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("t", [0, 1])
def test_pseudo_labels_and_views(traces: list[dict[str, Any]], t: int) -> None:
    trace, most = traces[t], 5 if t == 0 else 20
    pseudo, mixed, masked = trace["context"].pseudo_labels, trace["views"]["mixed"], trace["views"]["masked"]
    assert (pseudo.label.numpy() != FIXTURE[f"it{t}_pseudo_label"]).sum() <= most
    share = trace["context"].notes["confident"].item()
    assert share == pytest.approx(REFERENCE["iters"][t]["pseudo_weight_fraction"], abs=1e-3)
    tolerance = 1e-5 if t == 0 else 5e-3
    np.testing.assert_allclose(trace["logits"][:, :, ::8, ::8], FIXTURE[f"it{t}_ema_logits_hw8"], atol=tolerance)
    assert (mixed.label.numpy() != FIXTURE[f"it{t}_mixed_lbl"][:, 0]).sum() <= most
    np.testing.assert_allclose(mixed.image[:, :, ::4, ::4], FIXTURE[f"it{t}_mixed_img_hw4"], atol=1e-6)
    np.testing.assert_allclose(mixed.weight[:, ::2, ::2], FIXTURE[f"it{t}_mixed_weight_hw2"], atol=1e-3)
    np.testing.assert_allclose(masked.image[:, :, ::4, ::4], FIXTURE[f"it{t}_masked_img_hw4"], atol=1e-6)
    assert (masked.label.numpy() != FIXTURE[f"it{t}_masked_lbl"][:, 0]).sum() <= most
    assert torch.equal(masked.weight, pseudo.weight) and masked.label is pseudo.label  # shared, not computed again


@pytest.mark.parametrize("t", [0, 1])
def test_gradients_are_the_sum_over_all_views(traces: list[dict[str, Any]], t: int) -> None:
    expected, ours = REFERENCE["iters"][t]["grad_norm"], traces[t]["grad"]
    assert {TABLE[name] for name in expected} == set(ours)
    for name, value in expected.items():
        if EXACT["iters"][t]["grad_norm"][name] > 1e-9:  # else zero in exact arithmetic
            assert ours[TABLE[name]] == pytest.approx(value, rel=1e-3 if t == 0 else 1e-2), (t, name)


@pytest.mark.parametrize("t", [0, 1])
def test_parameters_teacher_and_buffers(traces: list[dict[str, Any]], t: int) -> None:
    reference, trace = REFERENCE["iters"][t], traces[t]
    for name, value in reference["param_norm_after"].items():
        assert trace["norm_after"][TABLE[name]] == pytest.approx(value, rel=1e-3, abs=2e-3), name
    for name, value in reference["ema_param_norm"].items():
        assert trace["ema_norm"][TABLE[name]] == pytest.approx(value, rel=1e-4, abs=1e-3), name
    for key, state in (("model_buffers_norm", "state"), ("ema_buffers_norm", "teacher_state")):
        for name, value in reference[key].items():
            ours = trace[state][TABLE[name]].double().norm().item()
            assert ours == pytest.approx(value, rel=1e-3), (t, key, name)


def test_final_tensors(traces: list[dict[str, Any]]) -> None:
    for key in FIXTURE.files:
        owner, _, name = key.partition("/")
        if owner in ("final", "final_ema"):
            state = traces[1]["state" if owner == "final" else "teacher_state"]
            np.testing.assert_allclose(state[TABLE[name]].numpy(), FIXTURE[key], atol=2e-4, rtol=0, err_msg=key)


def test_tiles_of_a_step(traces: list[dict[str, Any]]) -> None:
    """2 + 2 tiles a view, the teacher's 2 + 18, the frozen encoder's 2; no pass for distances."""
    for trace in traces:
        assert trace["tiles"] == {"student": [4, 4, 4], "teacher": [2, 18], "pretrained": [2]}
