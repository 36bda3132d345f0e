"""Every piece of the DACS step against numbers from the public code (docs/fidelity.md)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from parity.rule import DATA, blocks, noisy, randn, rng_for, uint8_noise
from udaseg.core.augment import BRIGHTNESS, CONTRAST, HUE, SATURATION, colour_jitter, gaussian_blur, kernel_size
from udaseg.core.context import Batch, BuildContext, PseudoLabels, StepContext, StepRng, View
from udaseg.core.masking import Blocks
from udaseg.core.mixing import choose_classes, class_mask, class_slots, mix, present_classes
from udaseg.core.teacher import Teacher
from udaseg.core.terms.cross_entropy import cross_entropy, segmentation_loss
from udaseg.core.terms.feature_distance import FeatureDistance, downscale_label
from udaseg.core.weighting import ConfidenceShare
from udaseg.data.classes import CITYSCAPES
from udaseg.data.loading import Normalise
from udaseg.engine.optim import PolyWarmup
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD, Box, Decoded, Encoded, Output

PIECES = json.loads((DATA / "uda_pieces.json").read_text())
THINGS = ("traffic light", "traffic sign", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
CPU = torch.device("cpu")


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{name}.npz") as file:
        return dict(file)


def tensor(key: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(randn(key, shape))


def labels(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).long()[:, 0]


def build_context(**how: tuple[int, int]) -> BuildContext:
    return BuildContext(CITYSCAPES.names, Normalise(IMAGENET_MEAN, IMAGENET_STD), **how)


def step_context(pretrained_encoder: nn.Module | None = None, **batch: torch.Tensor) -> StepContext:
    empty = torch.zeros(2, 3, 8, 8)
    full = {"source_image": empty, "source_label": torch.zeros(2, 8, 8).long(), **batch}
    rng, segmentor = StepRng(0, 0, CPU), nn.Identity()
    return StepContext(0, Batch(**full), rng, segmentor, pretrained_encoder=pretrained_encoder)  # type: ignore[arg-type]


# --- class mix -----------------------------------------------------------------------------------------------------


def as_chosen(choices: list[list[int]]) -> torch.Tensor:
    chosen = torch.zeros(len(choices), 20, dtype=torch.bool)
    for row, classes in zip(chosen, choices, strict=True):
        row[[19 if c == 255 else c for c in classes]] = True
    return chosen


def test_class_mask_pastes_the_chosen_classes() -> None:
    expected = arrays("uda_classmix")
    slots = class_slots(labels(blocks("label/classmask", (2, 64, 64), block=8)), 19)
    chosen = as_chosen(PIECES["classmask_chosen_classes_seed7"])
    assert torch.equal(class_mask(slots, chosen), torch.from_numpy(expected["mask_seed7"][:, 0]).bool())
    given = as_chosen([expected["given_chosen"].tolist()] * 2)
    assert torch.equal(class_mask(slots, given), torch.from_numpy(expected["mask_given"][:, 0]).bool())


def test_classes_come_from_the_whole_batch_and_half_rounded_up_are_chosen() -> None:
    slots = class_slots(labels(blocks("label/classmask", (2, 64, 64), block=8)), 19)
    present = present_classes(slots, 19)
    names = [255 if s == 19 else s for s in range(20) if present[s]]
    assert names == PIECES["classmask_unique"]
    for kinds in range(1, 21):
        present = torch.arange(20) < kinds
        chosen = choose_classes(present, torch.rand(50, 20))
        assert (chosen.sum(1) == (kinds + 1) // 2).all()
        assert not (chosen & ~present).any()


def test_every_present_class_is_chosen_equally_often() -> None:
    present = torch.tensor([True, False, True, True, True])
    share = choose_classes(present, torch.rand(20000, 5, generator=torch.Generator().manual_seed(0))).float().mean(0)
    torch.testing.assert_close(share, torch.tensor([0.5, 0, 0.5, 0.5, 0.5]), atol=0.02, rtol=0)


def test_mix_is_exact() -> None:
    expected = arrays("uda_classmix")
    mask = torch.from_numpy(expected["mask_given"][:, 0]).bool()
    source = View(tensor("input/mix_src", 2, 3, 64, 64), labels(blocks("label/classmask", (2, 64, 64), block=8)))
    pseudo_label = labels(blocks("label/mix_pl", (2, 64, 64), block=4, extra=0))
    pseudo = PseudoLabels(pseudo_label, torch.ones(2, 64, 64), torch.full((2, 64, 64), 0.25))
    for name in ("mask_given", "mask_seed7"):
        mask = torch.from_numpy(expected[name][:, 0]).bool()
        mixed = mix(mask, source, tensor("input/mix_trg", 2, 3, 64, 64), pseudo)
        assert mixed.weight is not None
        if np.array_equal(expected["mixed_lbl"][:, 0], mixed.label.numpy()):
            assert np.array_equal(mixed.image.numpy(), expected["mixed_img"])
            assert np.array_equal(mixed.weight.numpy(), expected["mixed_weight"][:, 0])
            return
    pytest.fail("neither mask gives the fixture's mixed label")


# --- colour jitter and blur ----------------------------------------------------------------------------------------


def unit_image() -> torch.Tensor:
    return torch.from_numpy(uint8_noise("image/jitter", (2, 3, 40, 56))).float() / 255


def jitter(parameters: dict[str, list[float]], image: torch.Tensor) -> torch.Tensor:
    def pick(*names: str) -> list[float]:
        return next(parameters[n] for n in names if n in parameters)

    factors = torch.tensor(
        [
            pick("b", "brightness_factor"),
            pick("c", "contrast_factor"),
            pick("s", "saturation_factor"),
            pick("h", "hue_factor"),
        ]
    ).T
    return colour_jitter(image, torch.tensor([parameters["order"]] * 2), factors)


@pytest.mark.parametrize("name", ["jitter0", "jitter1", "jitter2"])
def test_jitter_is_that_of_the_old_kornia(name: str) -> None:
    result = jitter(PIECES["jitter_params"][name], unit_image())
    np.testing.assert_allclose(result.numpy(), arrays("uda_jitter")[f"{name}_unit"], atol=1e-5, rtol=0)


def test_images_of_a_batch_may_have_their_own_order() -> None:
    image, expected = unit_image(), arrays("uda_jitter")
    first, second = PIECES["jitter_params"]["jitter0"], PIECES["jitter_params"]["jitter1"]
    factors = torch.tensor([[first[k][0] for k in "bcsh"], [second[k][1] for k in "bcsh"]])
    result = colour_jitter(image, torch.tensor([first["order"], second["order"]]), factors).numpy()
    np.testing.assert_allclose(result[0], expected["jitter0_unit"][0], atol=1e-5, rtol=0)
    np.testing.assert_allclose(result[1], expected["jitter1_unit"][1], atol=1e-5, rtol=0)


def test_full_jitter_of_a_normalised_image() -> None:
    normalise, image = Normalise(IMAGENET_MEAN, IMAGENET_STD), unit_image()
    normalised = normalise((image * 255).round())
    (parameters,) = PIECES["full_jitter"]["params"]
    result = normalise.redo(jitter(parameters, normalise.undo(normalised)))
    np.testing.assert_allclose(result.numpy(), arrays("uda_jitter")["full_jitter_normalised"], atol=5e-5, rtol=0)


def test_operations_have_the_numbers_of_the_fixture() -> None:
    assert (BRIGHTNESS, CONTRAST, SATURATION, HUE) == (0, 1, 2, 3)


@pytest.mark.parametrize("name", ["blur0", "blur1", "blur2"])
def test_separable_blur_equals_the_dense_one(name: str) -> None:
    result = gaussian_blur(tensor("input/blur", 1, 3, 50, 64), torch.tensor([PIECES["blur"][name]["sigma"]]))
    np.testing.assert_allclose(result.numpy(), arrays("uda_blur")[name], atol=1e-6, rtol=0)


def test_blur_sizes_and_the_taps_left_out() -> None:
    for length, taps in PIECES["blur"]["kernel_size_for_length"].items():
        assert kernel_size(int(length)) == taps
    image, sigma = tensor("input/wide", 1, 1, 512, 64).double(), torch.tensor([1.15], dtype=torch.float64)
    position = torch.arange(-25, 26).double()
    dense = torch.exp(-(position**2) / (2 * 1.15**2))
    padded = nn.functional.pad(image, (0, 0, 25, 25), mode="reflect")
    full = nn.functional.conv2d(padded, (dense / dense.sum())[None, None, :, None])
    ours = gaussian_blur(image[..., :20], sigma)  # 20 columns: one tap across
    assert kernel_size(20) == 1
    torch.testing.assert_close(ours, full[..., :20], atol=1e-9, rtol=0)


# --- pseudo-labels and teacher -------------------------------------------------------------------------------------


def test_pseudo_labels_and_their_weights() -> None:
    expected, logits = arrays("uda_pseudo"), 4 * tensor("input/pl_logits", 2, 19, 160, 64)
    found = ConfidenceShare(build_context(crop_margins=(15, 120)), threshold=0.968)(logits, step_context())
    assert np.array_equal(found.label.numpy(), expected["label"])
    assert np.array_equal(found.weight.numpy(), expected["weight_hw"])
    mask = torch.from_numpy(rng_for("mask/valid").integers(0, 2, size=(2, 1, 160, 64), dtype=np.uint8))[:, 0]
    found = ConfidenceShare(build_context(), threshold=0.968)(logits, step_context(target_valid=mask))
    assert np.array_equal(found.weight.numpy(), expected["weight_valid_mask"])


class Toy(nn.Module):
    """The tensors of the EMA fixture, with its names."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.a, self.bn = nn.Linear(5, 4), nn.BatchNorm1d(4)
        self.sc = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            for name, value in self.state_dict().items():
                if value.dtype.is_floating_point:
                    value.copy_(torch.from_numpy(np.asarray(randn(f"ema/{owner}/{name}", tuple(value.shape)))))


@pytest.mark.parametrize("alpha", [0.999, 0.99])
@pytest.mark.parametrize("t", [0, 1, 2, 10, 500, 998, 999, 2000])
def test_teacher_averages_parameters_only(t: int, alpha: float) -> None:
    expected = {k.split("/", 1)[1]: v for k, v in arrays("uda_ema").items() if k.startswith(f"it{t}_a{alpha}/")}
    student = Toy("student")
    teacher = Teacher(Toy("teacher"), alpha=alpha)  # type: ignore[arg-type]
    teacher.update(student, t)  # type: ignore[arg-type]
    state = teacher.segmentor.state_dict()
    for name, value in expected.items():
        np.testing.assert_allclose(state[name].numpy(), value, atol=1e-7, rtol=0, err_msg=name)


def test_teacher_labels_with_batch_statistics_and_without_dropout() -> None:
    teacher = Teacher(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout2d(0.5)))  # type: ignore[arg-type]
    norm, dropout = teacher.segmentor[0], teacher.segmentor[1]  # type: ignore[index]
    assert norm.training and not dropout.training
    teacher.eval()
    teacher.train()
    assert norm.training and not dropout.training


# --- losses --------------------------------------------------------------------------------------------------------


def test_cross_entropy_is_a_mean_over_all_pixels() -> None:
    expected, gradients = json.loads((DATA / "loss.json").read_text()), arrays("loss")
    label = labels(blocks("label/loss", (2, 96, 160), block=8, extra=6))
    weight = torch.from_numpy(rng_for("weight/loss").random((2, 96, 160), dtype=np.float32))
    for name, given in (("noweight", None), ("weight", weight)):
        logits = tensor("input/loss", 2, 19, 24, 40).requires_grad_()
        loss = cross_entropy(logits, label, given)
        loss.backward()
        assert loss.item() == pytest.approx(expected[name]["loss_seg"], rel=1e-6)
        np.testing.assert_allclose(logits.grad.numpy(), gradients[f"grad_{name}"], atol=1e-8, rtol=1e-4)
    assert loss.item() != pytest.approx(expected["torch_mean_over_valid_only (for contrast)"], rel=0.1)


def test_a_prediction_with_a_box_sees_its_part_of_the_label() -> None:
    label = labels(blocks("label/loss", (2, 96, 160), block=8, extra=6))
    weight = torch.from_numpy(rng_for("weight/loss").random((2, 96, 160), dtype=np.float32))
    logits, box = tensor("input/loss", 2, 19, 24, 40), Box(16, 64, 40, 120)
    whole = Decoded(logits, coefficient=0.9)
    part = Decoded(logits[..., 4:16, 10:30], box, 0.1)
    both = segmentation_loss((whole, part), View(label, label, weight))
    expected = 0.9 * cross_entropy(logits, label, weight) + 0.1 * cross_entropy(
        logits[..., 4:16, 10:30], label[:, 16:64, 40:120], weight[:, 16:64, 40:120]
    )
    torch.testing.assert_close(both, expected)


def fd_label() -> torch.Tensor:
    return labels(noisy("label/fd", (2, 128, 128), block=16, share=0.2, noise_key="label/fd_noise"))


@pytest.mark.parametrize(("factor", "ratio"), [(32, 0.75), (16, 0.75), (16, 0.5), (8, 0.75), (4, 0.5)])
def test_label_downscaling(factor: int, ratio: float) -> None:
    expected = arrays("uda_fd")[f"down_sf{factor}_r{ratio}"][:, 0]
    assert np.array_equal(downscale_label(fd_label(), factor, 19, ratio).numpy(), expected)


@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_label_downscaling_of_ties_and_exact_ratios(ratio: float) -> None:
    fixture = arrays("uda_fd")
    label = labels(fixture["tie_in"])
    assert np.array_equal(downscale_label(label, 4, 19, ratio).numpy(), fixture[f"tie_{ratio}"][:, 0])


class Constant(nn.Module):
    """A frozen encoder that always answers the same."""

    def __init__(self, feature: torch.Tensor) -> None:
        super().__init__()
        self.feature = feature

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.feature,)


def distance(
    label: torch.Tensor, class_names: tuple[str, ...] | None, feature: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    term = FeatureDistance(build_context(), class_names=class_names, min_ratio=0.5)
    context = step_context(Constant(tensor("input/fd_f2", 2, 512, 8, 8)))
    output = Output((Encoded((feature,), torch.zeros(2, 3, 8, 8)),), (Decoded(feature),))
    loss = term(View(torch.zeros(2, 3, 128, 128), label), output, context)
    assert loss.present is not None
    return loss.value, loss.present


def test_feature_distance_and_its_gradient() -> None:
    feature = tensor("input/fd_f1", 2, 512, 8, 8).requires_grad_()
    value, present = distance(fd_label(), THINGS, feature)
    (0.005 * value).backward()
    assert present and value.item() == pytest.approx(PIECES["fd"]["value_masked"], rel=1e-5)
    np.testing.assert_allclose(feature.grad[:, ::16].numpy(), arrays("uda_fd")["fd_grad_c16"], rtol=1e-5, atol=1e-10)
    everywhere, _ = distance(fd_label(), None, feature.detach())
    assert everywhere.item() == pytest.approx(PIECES["fd"]["value_nomask"], rel=1e-5)


def test_feature_distance_without_cells_is_absent_with_zero_gradient() -> None:
    feature = tensor("input/fd_f1", 2, 512, 8, 8).requires_grad_()
    value, present = distance(torch.zeros(2, 128, 128).long(), THINGS, feature)
    value.backward()
    assert not present and value.item() == 0 and feature.grad.abs().max() == 0


def test_feature_distance_zero_has_no_nan_gradient() -> None:
    feature = tensor("input/fd_f2", 2, 512, 8, 8).requires_grad_()
    value, _ = distance(fd_label(), THINGS, feature)
    value.backward()
    assert value.item() == 0 and feature.grad.abs().max() == 0


# --- learning rate -------------------------------------------------------------------------------------------------


def test_learning_rate_of_every_iteration() -> None:
    warm, plain = PolyWarmup(40000), PolyWarmup(40000, warmup=0, minimum=1e-4)
    for key, schedule in (("poly10warm", warm), ("poly10_sgd_minlr1e4", plain)):
        for t, rates in PIECES["lr"][key].items():
            for base, expected in zip((6e-5, 6e-4), rates, strict=True):
                assert schedule.rate(base, int(t)) == pytest.approx(expected, rel=1e-12), (key, t)


class Given(StepRng):
    """Answers with the fixture's noise."""

    def __init__(self, noise: np.ndarray) -> None:
        self.noise = torch.from_numpy(noise)

    def per_image(self, images: int, *shape: int) -> torch.Tensor:
        assert (images, *shape) == tuple(self.noise.shape)
        return self.noise


@pytest.mark.parametrize("case", "abcd")
def test_block_masks(case: str) -> None:
    """Grid of round(H / b) x round(W / b), kept where the number is above the ratio, brought up by nearest."""
    found, facts = arrays("uda_mic"), PIECES["mic"][case]
    masker = Blocks(build_context(), block=facts["block"] / facts["h"], ratio=facts["ratio"])
    shape = (2, facts["h"], facts["w"])
    mask = masker(torch.zeros(shape, dtype=torch.int64), Given(found[f"{case}_rand"]))
    np.testing.assert_array_equal(mask.numpy(), found[f"{case}_mask"])
    masked = tensor(f"input/mic_{case}", 2, 3, *shape[1:]) * mask
    np.testing.assert_array_equal(masked[:, :, ::4, ::4].numpy(), found[f"{case}_masked_hw4"])
