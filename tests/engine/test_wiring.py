"""Whole steps of assembled trainers: what the student really sees and which rates are used, against few-line formulas.

Pieces are held by the parity tests; here it is that they are wired. Nothing of ``udaseg.core`` computes what is
expected, but the random numbers of ``StepRng``. Colours go through matplotlib's HSV, in float64.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
import toy
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from torch import Tensor, nn

from udaseg.config.registry import REGISTRIES
from udaseg.core.context import Loss, StepRng, View
from udaseg.data.classes import CITYSCAPES
from udaseg.engine.assembly import Assembly, assemble
from udaseg.engine.domains import images_of
from udaseg.engine.trainer import Trainer
from udaseg.models.segmentor import InferencePass, Output

Floats = npt.NDArray[np.float64]

SEED, CLASSES, CPU = 3, 19, torch.device("cpu")
MEAN = np.array([123.675, 116.28, 103.53])[:, None, None]
STD = np.array([58.395, 57.12, 57.375])[:, None, None]
LARGE = ("road", "sidewalk", "building", "vegetation", "sky", "car")
LONG = ("train.iterations=40000", "optimiser.warmup=1500", f"seed={SEED}")
UNSURE = "pseudo_labels={kind: confidence_share, threshold: 0.6}"  # some pixels of ``sure`` networks are above it
CROP = ("data.margins=crop", "data.crop_margins=[5, 9]")
IMAGE = ("data.margins=image", "data.image_margins={top: 4, bottom: 30, left: 6, right: 10, at: [256, 128]}")
STEPS = (0, 1, 2, 3)


def assembled(name: str, *overrides: str) -> Assembly:
    return sure(assemble(toy.load(name, *LONG, UNSURE, *overrides, base=toy.MIT)))


def sure(assembly: Assembly) -> Assembly:
    """Classifiers of student and teacher are made large: else an untrained network is equally unsure of all pixels."""
    trainer = assembly.trainer
    for segmentor in (trainer.learner.segmentor, *([trainer.teacher.segmentor] if trainer.teacher else [])):
        with torch.no_grad():
            segmentor.decoder.classifier.weight.mul_(300)
    return assembly


# --- learning rates ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["source_only", "mic_daformer"])
def test_every_group_is_trained_at_the_rate_of_its_iteration(streets: Path, name: str) -> None:
    """docs/fidelity.md, "Optimisation"; the rates are those that the optimiser has while it steps."""
    trainer = assembled(name).trainer
    used: list[dict[str, tuple[float, float]]] = []
    trainer.optimiser.register_step_pre_hook(
        lambda optimiser, *_: used.append({g["name"]: (g["lr"], g["weight_decay"]) for g in optimiser.param_groups})
    )
    for t in (0, 1, 2000, 39999):
        trainer.step(next(trainer.batches(t, t + 1)), t)
        warm = 1 - (1 - t / 1500) * (1 - 1e-6) if t < 1500 else 1
        rate = 6e-5 * (1 - t / 40000) * warm
        expected = {"base": (rate, 0.01), "norm": (rate, 0.0), "head": (10 * rate, 0.01)}
        assert used[-1] == {group: pytest.approx(pair, rel=1e-9) for group, pair in expected.items()}
        assert {group["name"]: group["lr"] for group in trainer.optimiser.param_groups} == {
            group: lr for group, (lr, _) in used[-1].items()
        }
    assert len(used) == 4


def test_rates_follow_the_settings_of_the_recipe(streets: Path) -> None:
    """Warm-up, power, minimum, base rate and the head's factor."""
    settings = "optimiser={lr: 1.0e-3, weight_decay: 0.1, head_lr_factor: 3, warmup: 10, power: 2, minimum: 1.0e-4}"
    trainer = assembled("source_only", "train.iterations=100", settings).trainer
    for t in (5, 50):
        trainer.step(next(trainer.batches(t, t + 1)), t)
        warm = 1 - (1 - t / 10) * (1 - 1e-6) if t < 10 else 1
        rates = {
            name: ((lr - 1e-4) * (1 - t / 100) ** 2 + 1e-4) * warm for name, lr in (("base", 1e-3), ("head", 3e-3))
        }
        groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in trainer.optimiser.param_groups}
        assert groups["base"] == (pytest.approx(rates["base"], rel=1e-9), 0.1)
        assert groups["head"] == (pytest.approx(rates["head"], rel=1e-9), 0.1)
        assert groups["norm"] == (pytest.approx(rates["base"], rel=1e-9), 0.0)


def test_biases_and_norms_are_decayed_unless_the_recipe_says_no(streets: Path) -> None:
    for decayed in (True, False):
        trainer = assembled("source_only", f"optimiser.decay_one_dimensional={str(decayed).lower()}").trainer
        for group in trainer.optimiser.param_groups:
            plain = [parameter.ndim > 1 or decayed for parameter in group["params"]]
            assert group["weight_decay"] == (0.01 if all(plain) and group["name"] != "norm" else 0)
            assert all(plain) or not any(plain)


# --- teacher -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "alpha"), [("dacs", 0.99), ("daformer", 0.999)])
def test_teacher_follows_the_student_it_had_before_the_step(streets: Path, name: str, alpha: float) -> None:
    trainer = assembled(name).trainer
    assert trainer.teacher is not None
    followed, student = next(trainer.teacher.parameters()), next(trainer.learner.parameters())
    with torch.no_grad():
        student.add_(0.1)
    for t, keep in ((0, 0.0), (1, 0.5), (99, min(0.99, alpha)), (20000, alpha)):
        expected = keep * followed.detach().clone() + (1 - keep) * student.detach().clone()
        trainer.step(next(trainer.batches(t, t + 1)), t)
        torch.testing.assert_close(followed.detach(), expected, rtol=1e-6, atol=1e-8)
        with torch.no_grad():
            student.add_(0.1)


# --- views ---------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """One view of a step: what went into the student, what a term got and gave."""

    image: Tensor
    view: View
    output: Output
    loss: Tensor


class Spy:
    """Records a trainer's step from outside: inputs of the student, of its terms, of the teacher."""

    def __init__(self, trainer: Trainer) -> None:
        self.images: list[Tensor] = []
        self.terms: dict[str, tuple[View, Output, Loss]] = {}
        self.labelled: list[tuple[Tensor, Tensor]] = []
        trainer.learner.segmentor.register_forward_pre_hook(lambda module, given: self.images.append(given[0]))
        for name, stage in trainer.learner.named_stages():
            for key, term in stage.named_terms():
                term.register_forward_hook(self.note(f"{name}/{key}"))
        if trainer.teacher is not None:
            trainer.teacher.infer = self.labelling(trainer.teacher.infer)  # type: ignore[method-assign]

    def note(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], result: Loss) -> None:
            self.terms[name] = (given[0], given[1], Loss(result.value.detach(), result.present))

        return hook

    def labelling(self, infer: Callable[[Tensor], InferencePass]) -> Callable[[Tensor], InferencePass]:
        def recorded(image: Tensor) -> InferencePass:
            inference = infer(image)
            self.labelled.append((image, inference.logits))
            return inference

        return recorded


class Expected(NamedTuple):
    """A view from the raw batch: image normalised (B, 3, H, W), label and weight (B, H, W)."""

    image: Floats
    label: npt.NDArray[np.int64]
    weight: Floats


def one_step(trainer: Trainer, t: int) -> tuple[dict[str, Tensor], Spy, StepRng]:
    spy = Spy(trainer)
    raw = next(trainer.batches(t, t + 1))
    trainer.step(raw, t)
    return raw, spy, StepRng(SEED, t, CPU)


def normalised(image: Tensor | Floats) -> Floats:
    """RGB 0..255 -> what networks get."""
    return (np.asarray(image, dtype=np.float64) - MEAN) / STD


def pseudo_labels(logits: Tensor, reliable: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
    """Label and weight: one share for the whole batch, taken before the margins are cut."""
    probability = logits.double().softmax(1).amax(1).numpy()
    share = (probability >= 0.6).mean()
    assert 0.01 < share < 0.99, "or the test shows nothing"
    return logits.argmax(1).numpy(), share * reliable


def mixed(raw: dict[str, Tensor], rng: StepRng, label: npt.NDArray[np.int64], weight: Floats) -> Expected:
    """Half of the batch's classes pasted, then colours."""
    source = np.where(raw["source_label"] == 255, CLASSES, raw["source_label"]).astype(np.int64)
    present = np.unique(source)
    scores = rng.per_image(len(source), CLASSES + 1).numpy()
    take = math.ceil(len(present) / 2)
    paste = np.stack(
        [np.isin(s, present[np.argsort(-row[present])[:take]]) for s, row in zip(source, scores, strict=True)]
    )
    image = np.where(paste[:, None], raw["source_image"], raw["target_image"]) / 255
    return Expected(
        coloured(image, rng, together=False),
        np.where(paste, raw["source_label"], label),
        np.where(paste, 1.0, weight),
    )


def masked(raw: dict[str, Tensor], rng: StepRng, label: npt.NDArray[np.int64], weight: Floats) -> Expected:
    """The target, its colours changed together, seven blocks of ten hidden; a block is a sixteenth of the height."""
    image = coloured(np.asarray(raw["target_image"]) / 255, rng, together=True)
    return Expected(image * shown(rng, label), label, weight)


def paired(raw: dict[str, Tensor], rng: StepRng, label: npt.NDArray[np.int64], weight: Floats) -> Expected:
    """Source 0 with its label, target 0 with its pseudo-label; no colours."""
    image = normalised(np.stack([raw["source_image"][0], raw["target_image"][0]]))
    both = np.stack([raw["source_label"][0].long(), label[0]])
    return Expected(image * shown(rng, both), both, np.stack([np.ones_like(weight[0]), weight[0]]))


def shown(rng: StepRng, label: npt.NDArray[np.int64]) -> Floats:
    """(B, 1, H, W): 1 where a block is not hidden."""
    side = label.shape[1] // 16
    cells = rng.per_image(len(label), 1, 16, label.shape[2] // side).numpy() > 0.7
    return np.kron(cells, np.ones((1, 1, side, side)))


def coloured(image: Floats, rng: StepRng, *, together: bool) -> Floats:
    """RGB 0..1 -> jittered and blurred, normalised; ``together``: order and sigma are those of the first image."""
    if rng.decide(0.8):
        orders = rng.per_image(len(image), 4).numpy().argsort(1)
        draws = 2 * rng.per_image(len(image), 4).double().numpy() - 1
        image = np.stack([jittered(x, orders[0 if together else i], draws[i]) for i, x in enumerate(image)])
    assert image.min() >= -1e-6 and image.max() <= 1 + 1e-6
    image = normalised(255 * image)
    if rng.decide(0.5):
        sigmas = 0.15 + rng.per_image(len(image)).double().numpy()
        image = np.stack([blurred(x, sigmas[0 if together else i]) for i, x in enumerate(image)])
    return image


def jittered(image: Floats, order: npt.NDArray[np.int64], draw: Floats) -> Floats:
    """Operations 0 to 3: brightness is added, contrast multiplied, saturation multiplied, hue turned."""
    for operation in order:
        strength = 0.2 * draw[operation]
        if operation == 0:
            image = (image + strength).clip(0, 1)
        elif operation == 1:
            image = (image * (1 + strength)).clip(0, 1)
        else:
            hue, saturation, value = np.moveaxis(rgb_to_hsv(np.moveaxis(image.clip(0, 1), 0, 2)), 2, 0)
            saturation = (saturation * (1 + strength)).clip(0, 1) if operation == 2 else saturation
            hue = (hue + strength) % 1 if operation == 3 else hue
            image = np.moveaxis(hsv_to_rgb(np.stack([hue, saturation, value], 2)), 2, 0)
    return image


def blurred(image: Floats, sigma: float) -> Floats:
    """With one dense kernel of about a tenth of the side, mirrored at the borders."""
    taps = math.ceil(image.shape[1] / 10)
    reach = (taps if taps % 2 else taps - 1) // 2
    offsets = range(-reach, reach + 1)
    kernel = {(dy, dx): math.exp(-(dy**2 + dx**2) / (2 * sigma**2)) for dy in offsets for dx in offsets}
    padded = np.pad(image, [(0, 0), (reach, reach), (reach, reach)], mode="reflect")
    return sum(
        share * np.roll(padded, (-dy, -dx), (1, 2))[:, reach:-reach, reach:-reach] for (dy, dx), share in kernel.items()
    ) / sum(kernel.values())


def crop_rows(raw: dict[str, Tensor], top: int, bottom: int) -> Floats:
    """(B, H, W): 0 in the first and last rows of every crop."""
    reliable = np.ones(raw["target_image"][:, 0].shape)
    reliable[:, :top] = 0
    reliable[:, reliable.shape[1] - bottom :] = 0
    return reliable


def image_margins(t: int, images: int) -> Floats:
    """Of both target crops of iteration t, from the place where the loader cuts them: 128 of 128 x 256 pixels."""
    whole = np.zeros((128, 256))
    whole[4:-30, 6:-10] = 1
    crops = []
    for k in (2 * t, 2 * t + 1):
        rng = np.random.default_rng([SEED, k, 1])
        rng.integers(images)
        top, left = rng.integers(0, 1), rng.integers(0, 256 - 128 + 1)
        crop = whole[top : top + 128, left : left + 128]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    return np.stack(crops)


def assert_seen(image: Tensor, view: View, expected: Expected) -> None:
    np.testing.assert_allclose(image.double().numpy(), expected.image, atol=2e-4, rtol=0)
    np.testing.assert_array_equal(view.label.numpy(), expected.label)
    assert view.weight is not None
    np.testing.assert_allclose(view.weight.double().numpy(), expected.weight, atol=1e-6, rtol=0)


CASES = [
    pytest.param("dacs", (), (0, 0), None, id="no margins"),
    pytest.param("daformer", CROP, (5, 9), None, id="crop margins"),
    pytest.param("hrda", CROP, (10, 18), None, id="crop margins at twice the size"),
    pytest.param("hrda", IMAGE, None, None, id="image margins"),
    pytest.param("mic_daformer", CROP, (5, 9), masked, id="MIC, crop margins"),
    pytest.param("mic", IMAGE, None, masked, id="MIC, image margins"),
    pytest.param("mic", (*IMAGE, "data.synthetic_source=false"), None, paired, id="MIC, real source"),
]


@pytest.mark.parametrize(("name", "overrides", "rows", "masked_view"), CASES)
def test_student_sees_what_the_papers_say(
    streets: Path, name: str, overrides: tuple[str, ...], rows: tuple[int, int] | None, masked_view: Any
) -> None:
    assembly = assembled(name, *overrides)
    trainer = assembly.trainer
    assert assembly.pairs.target is not None
    for t in STEPS if masked_view is not paired else STEPS[:2]:
        raw, spy, rng = one_step(trainer, t)
        reliable = crop_rows(raw, *rows) if rows else image_margins(t, len(assembly.pairs.target))
        assert 0 < reliable.mean() < 1 or rows == (0, 0)
        ((labelled, logits),) = spy.labelled
        np.testing.assert_allclose(labelled.numpy(), normalised(raw["target_image"]), atol=1e-5, rtol=0)
        pseudo = pseudo_labels(logits, reliable)

        view, _, _ = spy.terms["source/cross_entropy"]
        np.testing.assert_allclose(spy.images[0].numpy(), normalised(raw["source_image"]), atol=1e-5, rtol=0)
        assert torch.equal(view.label, raw["source_label"].long()) and view.weight is None
        assert_seen(spy.images[1], spy.terms["mixed/cross_entropy"][0], mixed(raw, rng, *pseudo))
        if masked_view:
            assert_seen(spy.images[2], spy.terms["masked/cross_entropy"][0], masked_view(raw, rng, *pseudo))
        assert len(spy.images) == 2 + bool(masked_view)


def test_the_steps_above_have_all_decisions() -> None:
    """Jitter and blur, each on and off, in the mixed view and in the masked one; else they show less than they say."""
    steps = [StepRng(SEED, t, CPU) for t in STEPS]
    decisions = [[rng.decide(probability) for rng in steps] for probability in (0.8, 0.5, 0.8, 0.5)]
    assert all(set(made) == {True, False} for made in decisions)


# --- losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["daformer", "mic"])
def test_cross_entropy_is_that_of_the_view(streets: Path, name: str) -> None:
    """Per pixel in float64: 0 where the label is 255, times the weight, mean over all pixels; HRDA: 0.9 and 0.1."""
    trainer = assembled(name).trainer
    _, spy, _ = one_step(trainer, 0)
    for key in [key for key in spy.terms if key.endswith("/cross_entropy")]:
        view, output, loss = spy.terms[key]
        expected = 0.0
        for share, prediction in zip((0.9, 0.1) if name == "mic" else (1.0,), output.predictions, strict=True):
            box = prediction.box or (0, view.label.shape[1], 0, view.label.shape[2])
            label = view.label[:, box[0] : box[1], box[2] : box[3]]
            weight = torch.ones(view.label.shape) if view.weight is None else view.weight
            logits = F.interpolate(prediction.logits.detach().double(), label.shape[1:], mode="bilinear")
            wrong = -logits.log_softmax(1).gather(1, label.where(label < 255, 0)[:, None])[:, 0]
            counted = (label < 255) * weight[:, box[0] : box[1], box[2] : box[3]]
            expected += share * (wrong * counted).mean().item()
        assert loss.value.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["daformer", "hrda"])
def test_feature_distance_is_measured_in_the_cells_of_its_classes(streets: Path, name: str) -> None:
    """Against the encoder as it was before the first step; HRDA at half resolution."""
    options = f"views.source.terms.feature_distance={{class_names: [{', '.join(LARGE)}], min_ratio: 0.6}}"
    trainer = assembled(name, options).trainer
    before = copy.deepcopy(trainer.learner.segmentor.encoder).eval()
    wanted = [CITYSCAPES.names.index(name) for name in LARGE]
    shares = set()
    for t in range(3):
        raw, spy, _ = one_step(trainer, t)
        _, output, loss = spy.terms["source/feature_distance"]
        student = output.branches[0].features[-1].detach()
        image = torch.tensor(normalised(raw["source_image"]), dtype=torch.float32)
        with torch.no_grad():
            pretrained = before(F.avg_pool2d(image, 2) if name == "hrda" else image)[-1]
        side = raw["source_label"].shape[2] // pretrained.shape[3]
        distances = []
        for (b, y, x), distance in np.ndenumerate((student - pretrained).norm(dim=1).numpy()):
            cell = raw["source_label"][b, side * y : side * (y + 1), side * x : side * (x + 1)].flatten()
            counts = torch.bincount(cell, minlength=256)
            if counts.argmax() in wanted and counts.max() >= 0.6 * side**2:
                distances.append(distance)
        shares.add(len(distances) / pretrained[:, 0].numel())
        assert loss.value.item() == pytest.approx(np.mean(distances) if distances else 0, rel=1e-3, abs=1e-6)
    assert any(0 < share < 1 for share in shares)
    assert trainer.learner.stages["source"].weights == {"cross_entropy": 1.0, "feature_distance": 0.005}


def test_pretrained_encoder_keeps_the_weights_of_its_file(streets: Path) -> None:
    """The student starts from them and leaves them; without the file's, from its own first ones."""
    torch.manual_seed(1)
    file = REGISTRIES["encoder"].create({"kind": "mit_b0", "drop_path": 0.1}).state_dict()
    torch.save(file, "encoder.pth")
    trainer = assembled("daformer", "model.weights=encoder.pth", "optimiser.warmup=0").trainer
    student, frozen = trainer.learner.segmentor.encoder, trainer.learner.pretrained_encoder
    assert frozen is not None and not any(parameter.requires_grad for parameter in frozen.parameters())
    assert all(torch.equal(value, file[name]) for name, value in student.state_dict().items())
    trainer.step(next(trainer.batches(0, 1)), 0)
    changed = [name for name, value in student.named_parameters() if not torch.equal(value, file[name])]
    assert len(changed) == len(list(student.parameters()))
    assert all(torch.equal(value, file[name.removeprefix("module.")]) for name, value in frozen.state_dict().items())
    assert not any(module.training for module in frozen.modules())


# --- data ----------------------------------------------------------------------------------------------------------


def test_the_loader_gets_what_the_recipe_says(streets: Path) -> None:
    changed = (
        "data.cat_max_ratio=0.6",
        "data.sampler={temperature: 0.5, min_crop_ratio: 0.25}",
        "data.photometric=true",
    )
    loaded = toy.load("hrda", *LONG, *changed, *IMAGE, base=toy.MIT)
    pairs = assemble(loaded).pairs
    assert (pairs.crop, pairs.seed, pairs.length) == ((128, 128), SEED, 80000)
    assert (pairs.cat_max_ratio, pairs.photometric) == (0.6, True)
    assert pairs.sampler.wanted_pixels == 0.25 * 20  # type: ignore[attr-defined]
    pixels = pairs.source.index.counts.sum(0)
    rare = np.exp((1 - pixels / pixels.sum()) / 0.5) * (pairs.source.index.counts > 20).any(0)
    np.testing.assert_allclose(pairs.sampler.probabilities, rare / rare.sum(), rtol=1e-4)  # type: ignore[attr-defined]
    assert pairs.target is not None
    assert (pairs.source.size, pairs.target.size) == ((256, 128), (256, 128))
    assert pairs.margins is not None
    assert (pairs.margins.top, pairs.margins.bottom, pairs.margins.left, pairs.margins.right) == (4, 30, 6, 10)


# --- validation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "scale", "lefts"), [("dacs", 1, None), ("hrda", 2, (0, 64, 128))])
def test_validation_is_in_the_mode_and_size_of_the_recipe(
    streets: Path, name: str, scale: int, lefts: tuple[int, ...] | None
) -> None:
    """HRDA: windows of the crop that overlap by half; the mean of their logits, then the label's own size."""
    loaded = toy.load(name, *LONG, UNSURE, base=toy.MIT)
    trainer = sure(assemble(loaded)).trainer
    segmentor = trainer.learner.segmentor.eval()
    assert loaded.recipe.data.validation is not None and trainer.evaluate is not None
    expected = np.zeros((CLASSES, CLASSES), dtype=np.int64)
    for item in images_of(loaded.recipe.data.validation, scale, CITYSCAPES.names):
        image = torch.tensor(normalised(item["image"]), dtype=torch.float32)[None]
        assert image.shape[2:] == (64 * scale, 128 * scale)
        with torch.no_grad():
            if lefts is None:
                logits = segmentor.logits(image)
            else:
                logits, visits = torch.zeros(1, CLASSES, 128, 256), torch.zeros(256)
                for left in lefts:
                    logits[..., left : left + 128] += segmentor.logits(image[..., left : left + 128])
                    visits[left : left + 128] += 1
                logits = logits / visits
        label = item["label"].numpy()
        prediction = F.interpolate(logits, label.shape, mode="bilinear").argmax(1)[0].numpy()
        np.add.at(expected, (label[label < 255], prediction[label < 255]), 1)
    segmentor.train()
    counts = trainer.evaluate(segmentor).numpy()
    assert np.abs(counts - expected).sum() <= 2e-3 * expected.sum()  # of equal logits either may win
    assert segmentor.training


def test_score_is_that_of_the_protocol(streets: Path) -> None:
    """SYNTHIA: the mean over its 16 classes, those that do not occur left out."""
    trainer = assembled("dacs", "data.protocol=synthia16").trainer
    counts = np.random.default_rng(0).integers(0, 50, (CLASSES, CLASSES))
    counts[2], counts[:, 2] = 0, 0  # no building
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    learnt = [c for c in range(CLASSES) if c not in (2, 9, 14, 16)]
    assert trainer.score(counts.tolist()) == pytest.approx(100 * np.mean(counts.diagonal()[learnt] / union[learnt]))


def test_the_best_student_is_the_one_with_the_highest_score(streets: Path, tmp_path: Path) -> None:
    trainer = assembled("source_only").trainer
    saved: list[int] = []
    trainer.run, trainer.progress = MagicMock(), MagicMock()
    trainer.evaluate = lambda segmentor: torch.eye(CLASSES, dtype=torch.int64)
    trainer.save_weights = lambda path, segmentor: saved.append(trainer.done)
    scores = {4000: 20.0, 8000: 35.0, 12000: 30.0, 16000: 36.0}
    for trainer.done in scores:
        trainer.score = lambda counts: scores[trainer.done]
        trainer.validate()
        assert trainer.best is not None and trainer.best["miou"] == max(
            s for t, s in scores.items() if t <= trainer.done
        )
    assert saved == [4000, 8000, 16000]
