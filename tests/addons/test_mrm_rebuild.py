"""MRM: every key of the term does what the paper says, it costs what the paper says, and inference never sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import toy
from engine.test_step import NoReading
from safetensors.torch import load_file
from steps import StubTeacher, build_context, rng, step
from torch import Tensor, nn
from toy import run

from udaseg.addons.mrm.rebuild import Rebuild, masked_mean, patches, restrained, spread
from udaseg.addons.mrm.rebuilder import ChannelNorm, Projector, Rebuilder, sine_positions
from udaseg.config.load import load
from udaseg.core.context import StepContext, View
from udaseg.core.step import clip_terms
from udaseg.core.terms.cross_entropy import segmentation_loss
from udaseg.engine.assembly import assemble
from udaseg.engine.networks import load_weights, segmentor_of
from udaseg.engine.profile import Passes, counting
from udaseg.engine.trainer import Trainer
from udaseg.errors import UserError
from udaseg.models.segmentor import FeatureMaps, Segmentor

KEY = "views.mixed.terms.rebuild"
SMALL = tuple(f"{KEY}.{setting}" for setting in ("embed_dim=16", "heads=2", "blocks=1", "grid=4"))
RECIPES = ("dacs_mrm", "daformer_mrm", "hrda_mrm", "mic_mrm")
SIZE = {"embed_dim": 16, "heads": 2, "blocks": 1, "grid": 4}


def trainer_of(name: str, *overrides: str, base: tuple[str, ...] = toy.MIT) -> Trainer:
    return assemble(toy.load(name, "train.iterations=4", *SMALL, *overrides, base=base)).trainer


def student_of(name: str = "dacs", *, base: tuple[str, ...] = toy.MIT) -> Segmentor:
    torch.manual_seed(0)
    recipe = toy.load(name, base=base).recipe
    student = segmentor_of(recipe)
    for module in student.modules():
        if isinstance(module, nn.Dropout2d) or type(module).__name__ == "DropPath":
            module.p = module.rate = 0.0  # type: ignore[assignment]
        if getattr(module, "kernel_size", None) and module.out_channels == 19:  # logits that say something
            nn.init.normal_(module.weight, std=0.5)
    return student


def crop_of(student: Segmentor) -> int:
    return 64 if type(student) is Segmentor else 128


def a_view(size: int = 64, seed: int = 0) -> View:
    g = torch.Generator().manual_seed(seed)
    image = torch.randn(2, 3, size, size, generator=g)
    return View(image, torch.randint(19, (2, size, size), generator=g), torch.rand(2, size, size, generator=g))


def term_of(student: Segmentor, **options: Any) -> Rebuild:
    torch.manual_seed(1)
    side = crop_of(student)
    return Rebuild(build_context(feature_maps=student.feature_maps((side, side))), **{**SIZE, **options})


def step_of(student: Segmentor, teacher: nn.Module | None = None) -> StepContext:
    """A step whose teacher has this encoder."""
    return step(segmentor=student, teacher=StubTeacher(teacher) if teacher else None)


def gradients_of(student: Segmentor, term: Rebuild, teacher: nn.Module | None = None) -> tuple[Tensor, set[str]]:
    """The term's value, and which parts have a gradient from it: encoder, decoder, own."""
    student.zero_grad()
    view = a_view(crop_of(student))
    loss = term(view, student(view.image), step_of(student, teacher)).value
    loss.backward()
    parts = {
        "encoder" if name.startswith("encoder.") else "decoder"
        for name, parameter in student.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().sum() > 0
    }
    own = {"own"} if any(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters()) else set()
    return loss.detach(), parts | own


# --- the Rebuilder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (16, "Conv2d ChannelNorm"),
        (32, "ConvTranspose2d Conv2d ChannelNorm"),
        (64, "ConvTranspose2d ChannelNorm GELU ConvTranspose2d Conv2d ChannelNorm"),
        (
            128,
            "ConvTranspose2d ChannelNorm GELU ConvTranspose2d ChannelNorm GELU ConvTranspose2d Conv2d ChannelNorm",
        ),
    ],
)
def test_projector_doubles_as_often_as_its_map_needs(side: int, expected: str) -> None:
    projector = Projector(32, to=7, grid=16, side=side)
    assert " ".join(type(layer).__name__ for layer in projector.layers) == expected
    widths = [layer.out_channels for layer in projector.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert widths == [16, 8, 8][: len(widths)]
    made = projector(torch.randn(2, 32, 16, 16))
    assert made.shape == (2, 7, side, side)
    torch.testing.assert_close(made.mean(1), torch.zeros(2, side, side), atol=1e-5, rtol=0)  # normalised over channels


def test_layer_norm_is_over_channels() -> None:
    x = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(ChannelNorm(5)(x), (x - x.mean(1, True)) / (x.var(1, False, True) + 1e-5).sqrt())


def test_positions_tell_all_cells_apart_and_are_fixed() -> None:
    table = sine_positions(16, 32)
    assert table.shape == (256, 32) and torch.cdist(table, table).fill_diagonal_(9).min() > 0.1
    torch.testing.assert_close(table[0], torch.cat([torch.zeros(8), torch.ones(8)] * 2))
    torch.testing.assert_close(table[16 * 3, 0], torch.tensor(3.0).sin())  # row 3, column 0
    torch.testing.assert_close(table[5, 16], torch.tensor(5.0).sin())
    assert "position" not in dict(Rebuilder(8, projectors=[], embed_dim=16, blocks=1, heads=2, grid=4).state_dict())


def rebuilder(**options: int) -> Rebuilder:
    torch.manual_seed(0)
    settings = {"embed_dim": 16, "blocks": 2, "heads": 2, "grid": 4, **options}
    return Rebuilder(8, projectors=[nn.Identity()], **settings)


def test_masked_cells_are_not_seen_and_kept_ones_are() -> None:
    module, last = rebuilder(), torch.randn(1, 8, 4, 4)
    keep = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    keep[..., 1, 2] = False
    (before,) = module(last, keep, [(4, 4)])
    hidden, shown = last.clone(), last.clone()
    hidden[..., 1, 2] += 5
    shown[..., 2, 1] += 5
    assert torch.equal(module(hidden, keep, [(4, 4)])[0], before)
    changed = (module(shown, keep, [(4, 4)])[0] - before).abs().amax(1)
    assert (changed > 1e-5).all()  # attention carries it everywhere, into the masked cell too


def test_masked_cells_differ_by_their_position() -> None:
    (made,) = rebuilder()(torch.randn(1, 8, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.bool), [(4, 4)])
    cells = made.flatten(2)[0].T
    assert torch.cdist(cells, cells).fill_diagonal_(9).min() > 1e-3


def test_linear_layers_start_as_published() -> None:
    module = rebuilder(embed_dim=64)
    for linear in [m for m in module.modules() if isinstance(m, nn.Linear)]:
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert linear.bias.abs().max() == 0 and 0.9 * bound < linear.weight.abs().max() <= bound
    assert module.token.std().item() == pytest.approx(0.02, rel=0.3)
    assert all(m.eps == 1e-5 for m in module.modules() if isinstance(m, nn.LayerNorm))


def test_blocks_are_pre_norm_attention_and_mlp() -> None:
    """Against torch's own encoder layer."""
    block = rebuilder().blocks[0]
    x = torch.randn(2, 16, 16)
    theirs = nn.TransformerEncoderLayer(16, 2, 64, 0.0, nn.functional.gelu, batch_first=True, norm_first=True)
    renamed = {
        "self_attn.in_proj_weight": "qkv.weight", "self_attn.in_proj_bias": "qkv.bias",
        "self_attn.out_proj.weight": "out.weight", "self_attn.out_proj.bias": "out.bias",
        "linear1.weight": "mlp.0.weight", "linear1.bias": "mlp.0.bias",
        "linear2.weight": "mlp.2.weight", "linear2.bias": "mlp.2.bias",
    }  # fmt: skip
    own = block.state_dict()
    theirs.load_state_dict({key: own[renamed.get(key, key)] for key in theirs.state_dict()})
    torch.testing.assert_close(block(x), theirs(x))


def test_widths_that_do_not_fit_are_refused() -> None:
    for bad in ({"embed_dim": 18}, {"embed_dim": 16, "heads": 3}):
        with pytest.raises(ValueError, match="multiple of 4 and of heads"):
            rebuilder(**bad)


# --- masks ---------------------------------------------------------------------------------------------------------


def drawn(iteration: int = 0, images: int = 64, **options: Any) -> Tensor:
    maps = FeatureMaps((64, 64), (8,), (8,), (0,))
    term = Rebuild(build_context(feature_maps=maps), **{**SIZE, "grid": 16, **options})
    return term.draw(torch.zeros(images, 1), rng(iteration))


def test_a_cell_is_masked_with_the_ratio_as_probability() -> None:
    keep = drawn()
    assert keep.shape == (64, 1, 16, 16) and keep.dtype == torch.bool
    assert keep.float().mean() == pytest.approx(0.6, abs=0.01)
    assert keep.flatten(1).sum(1).unique().numel() > 5  # no exact count
    assert torch.equal(keep, drawn()) and not torch.equal(keep, drawn(1))


@pytest.mark.parametrize("ratio", [0.0, 0.4, 0.75, 1.0])
def test_exact_masks_that_share_of_every_image(ratio: float) -> None:
    keep = drawn(images=5, exact=True, mask_ratio=ratio)
    assert ((~keep).flatten(1).sum(1) == round(ratio * 256)).all()
    assert ratio in (0.0, 1.0) or not torch.equal(keep[0], keep[1])


def test_everything_is_kept_at_ratio_zero_and_nothing_at_one() -> None:
    assert drawn(mask_ratio=0.0).all() and not drawn(mask_ratio=1.0).any()


# --- masked features -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dacs", "hrda"])
@pytest.mark.parametrize("mode", ["rebuild", "mask_only"])
def test_features_come_back_untouched_when_all_is_kept(name: str, mode: str) -> None:
    student = student_of(name)
    term = term_of(student, mask_ratio=0.0, mode=mode)
    output = student(a_view(crop_of(student)).image)
    for branch in output.branches:
        assert all(
            torch.equal(a, b) for a, b in zip(term.masked(branch, step_of(student)), branch.features, strict=True)
        )


def test_nothing_of_the_features_is_left_when_all_is_masked() -> None:
    student = student_of()
    (branch,) = student(a_view().image).branches
    rebuilt = term_of(student, mask_ratio=1.0).masked(branch, step_of(student))
    assert [x.shape for x in rebuilt] == [x.shape for x in branch.features]
    assert all((x - y).abs().mean() > 0.1 for x, y in zip(rebuilt, branch.features, strict=True))
    emptied = term_of(student, mask_ratio=1.0, mode="mask_only").masked(branch, step_of(student))
    assert all(x.abs().max() == 0 for x in emptied)


def test_one_mask_for_all_maps_kept_places_as_they_were() -> None:
    """Eq. 7: the mask of the grid at every map's size."""
    student = student_of()
    (branch,) = student(a_view().image).branches
    term = term_of(student)
    keep = term.draw(branch.image, rng())
    rebuilt = term.masked(branch, step_of(student))
    for x, y in zip(rebuilt[:3], branch.features, strict=False):  # (16, 8, 4) cells a side
        factor = x.shape[-1] // 4
        same = (x == y).all(1, keepdim=True)
        assert torch.equal(same, keep.repeat_interleave(factor, 2).repeat_interleave(factor, 3))


@pytest.mark.parametrize(
    ("decoder", "levels"), [("deeplabv2", (3,)), ("deeplabv3plus", (0, 3)), ("segformer", (0, 1, 2, 3))]
)
def test_maps_that_the_decoder_does_not_read_are_not_rebuilt(decoder: str, levels: tuple[int, ...]) -> None:
    base = (*toy.SMALL, "model.encoder=mit_b0", f"model.decoder={decoder}")
    student = student_of(base=base)
    assert student.feature_maps((64, 64)).read == levels
    term = term_of(student)
    assert term.rebuilder is not None and len(term.rebuilder.projectors) == len(levels)
    (branch,) = student(a_view().image).branches
    features = tuple(x.detach().requires_grad_() for x in branch.features)
    student.decoder(features).sum().backward()
    assert tuple(i for i, x in enumerate(features) if x.grad is not None) == levels


def test_under_hrda_maps_are_those_of_a_branch() -> None:
    student = student_of("hrda")
    maps, branches = student.feature_maps((128, 128)), student(a_view(128).image).branches
    for branch in branches:
        assert branch.image.shape[-2:] == maps.image == (64, 64)
        assert [64 // stride for stride in maps.strides] == [x.shape[-1] for x in branch.features]


@pytest.mark.parametrize("crop", [(96, 64), (64, 128)])
@pytest.mark.parametrize("grid", [2, 3, 8, 16])
def test_any_crop_and_grid(crop: tuple[int, int], grid: int) -> None:
    student = student_of()
    term = Rebuild(build_context(feature_maps=student.feature_maps(crop)), **{**SIZE, "grid": grid})
    view = View(torch.randn(1, 3, *crop), torch.zeros(1, *crop, dtype=torch.long))
    assert term(view, student(view.image), step_of(student)).value.isfinite()


# --- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dacs", "hrda"])
def test_value_is_the_views_own_cross_entropy_of_what_is_decoded(name: str) -> None:
    """Same labels, same pixel weights, same coefficients: with nothing masked the view's loss itself."""
    student = student_of(name).eval()
    view = a_view(crop_of(student))
    output = student(view.image)
    plain = segmentation_loss(output.predictions, view)
    term = term_of(student, mask_ratio=0.0)
    torch.testing.assert_close(term(view, output, step_of(student)).value, plain)
    masked = term_of(student, mask_ratio=0.4)(view, output, step_of(student)).value
    assert (masked - plain).abs() > 1e-3 * plain
    weightless = view._replace(weight=torch.zeros_like(view.label, dtype=torch.float))
    assert term_of(student)(weightless, output, step_of(student)).value == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"encoder", "decoder", "own"}),
        ({"train_encoder": False}, {"decoder", "own"}),
        ({"train_decoder": False}, {"encoder", "own"}),
        ({"train_encoder": False, "train_decoder": False}, {"own"}),
        ({"mode": "mask_only"}, {"encoder", "decoder"}),
        ({"position": "input"}, {"encoder", "decoder", "own"}),
        ({"position": "input", "train_encoder": False}, {"decoder", "own"}),
        ({"position": "input", "train_decoder": False}, {"encoder", "own"}),
        ({"objective": "feature_student"}, {"encoder", "own"}),
        ({"objective": "feature_student", "train_encoder": False}, {"own"}),
        ({"objective": "feature_teacher"}, {"encoder", "own"}),
        ({"objective": "pixel_regression"}, {"encoder", "own"}),
    ],
)
def test_who_gets_a_gradient(options: dict[str, Any], expected: set[str]) -> None:
    student = student_of()
    teacher = student_of().encoder
    value, found = gradients_of(student, term_of(student, **options), teacher)
    assert found == expected and value.isfinite() and value > 0
    assert all(p.requires_grad for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("options", [{"mode": "off"}, {"position": "none"}])
def test_off_is_off(options: dict[str, str]) -> None:
    student = student_of()
    term = term_of(student, **options)
    assert not list(term.parameters())
    view = a_view()
    loss = term(view, student(view.image), step_of(student))
    loss.value.backward()
    assert loss.value == 0 and not loss.present
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in student.parameters())


def test_every_parameter_of_the_term_is_trained() -> None:
    for options in ({}, {"objective": "pixel_regression"}, {"position": "input"}):
        student = student_of()
        term = term_of(student, **options)
        gradients_of(student, term)
        assert list(term.parameters()) and all(p.grad is not None for p in term.parameters()), options


def test_regression_does_not_run_the_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of()
    view = a_view()
    output = student(view.image)
    monkeypatch.setattr(student.decoder, "forward", None)
    for objective in ("pixel_regression", "feature_student", "feature_teacher"):
        term = term_of(student, objective=objective)
        assert term(view, output, step_of(student, student_of().encoder)).value > 0
    with pytest.raises(TypeError):
        term_of(student)(view, output, step_of(student))


def test_regression_is_measured_at_masked_places_only() -> None:
    error, masked = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]]), torch.zeros(1, 1, 2, 2)
    masked[..., 1] = 1
    assert masked_mean(error, masked.bool()) == pytest.approx((2 + 4 + 6 + 8) / 4)
    assert masked_mean(error, masked.bool() & False) == 0
    student = student_of()
    nothing = term_of(student, objective="feature_student", mask_ratio=0.0)
    assert gradients_of(student, nothing)[0] == 0


@pytest.mark.parametrize("objective", ["feature_student", "feature_teacher", "pixel_regression"])
def test_what_is_to_be_rebuilt_has_no_gradient(objective: str) -> None:
    student = student_of()
    (branch,) = student(a_view().image).branches
    targets = term_of(student, objective=objective).targets(branch, step_of(student, student.encoder))
    assert len(targets) == (1 if objective == "pixel_regression" else 4)
    assert not any(target.requires_grad for target in targets)
    assert objective != "feature_student" or all(map(torch.equal, targets, branch.features))


def test_teacher_features_are_those_of_the_very_image_and_computed_once() -> None:
    student, teacher = student_of("hrda"), student_of("hrda")
    nn.init.zeros_(next(teacher.encoder.parameters()))
    view, stub = a_view(128), StubTeacher(teacher.encoder)
    output, context = student(view.image), step(segmentor=student, teacher=stub)
    term = term_of(student, objective="feature_teacher")
    first = term(view, output, context).value
    assert [any(image is branch.image for branch in output.branches) for image in stub.seen] == [True, True]
    term(view, output, context)
    assert len(stub.seen) == 2
    assert not any(x.requires_grad for branch in output.branches for x in context.features("teacher", branch.image))
    same = term_of(student, objective="feature_student")(view, output, step_of(student)).value
    assert (first - same).abs() > 1e-6  # another network's features


def test_features_of_a_teacher_that_does_not_exist_are_the_users_error() -> None:
    student = student_of()
    with pytest.raises(UserError, match="no view needs a target"):
        gradients_of(student, term_of(student, objective="feature_teacher"))


def test_patches_are_normalised_one_by_one() -> None:
    image = torch.randn(2, 3, 32, 64) * 7 + 3
    cut = patches(image, 4, (8, 16))
    assert cut.shape == (2, 3 * 8 * 16, 4, 4)
    torch.testing.assert_close(cut.mean(1), torch.zeros(2, 4, 4), atol=1e-4, rtol=0)
    torch.testing.assert_close(cut.var(1), torch.ones(2, 4, 4), atol=1e-3, rtol=0)
    one = image[1, :, 8:16, 48:64].flatten()
    torch.testing.assert_close(cut[1, :, 1, 3], (one - one.mean()) / one.std(), atol=1e-4, rtol=0)
    assert patches(image, 5, (6, 12)).shape == (2, 3 * 6 * 12, 5, 5)


def test_input_masking_hides_patches_behind_one_learnable_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    student = student_of()
    term, view = term_of(student, position="input"), a_view()
    assert {name for name, _ in term.named_parameters()} == {"pixel_token"}
    output = student(view.image)
    seen: list[Tensor] = []
    student.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    term(view, output, step_of(student))
    keep = term.draw(view.image, rng()).repeat_interleave(16, 2).repeat_interleave(16, 3)
    assert len(seen) == 1 and term.pixel_token is not None
    assert torch.equal(seen[0], torch.where(keep, view.image, term.pixel_token))


def statistics(module: nn.Module) -> list[Tensor]:
    return [b.clone() for name, b in module.named_buffers() if "running" in name]


@pytest.mark.parametrize(("bn", "moved"), [("train", True), ("frozen", False)])
def test_batch_norm_of_the_second_decode(bn: str, moved: bool) -> None:
    student = student_of()
    view = a_view()
    output = student(view.image)
    before = statistics(student)
    term_of(student, bn=bn)(view, output, step_of(student))
    after = statistics(student)
    assert before and moved == any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(module.training for module in student.modules())


@pytest.mark.parametrize(
    ("resolution", "changed", "predictions"),
    [("both", [True, True], 2), ("context", [True, False], 1), ("detail", [False, True], 2)],
)
def test_resolution_chooses_branches(resolution: str, changed: list[bool], predictions: int) -> None:
    student = student_of("hrda")
    view = a_view(128)
    output = student(view.image)
    decoded: list[Any] = []
    decode = student.decode
    student.decode = lambda branches: decoded.extend(branches) or decode(branches)  # type: ignore[method-assign]
    term = term_of(student, resolution=resolution)
    said = term.decode_again(view, output, step_of(student))
    assert len(said) == predictions
    different = [
        not torch.equal(new.features[-2], old.features[-2]) for new, old in zip(decoded, output.branches, strict=True)
    ]
    assert different == changed
    assert [new.box for new in decoded] == [old.box for old in output.branches]


def test_restraints_end_when_something_fails() -> None:
    student = student_of()
    with pytest.raises(RuntimeError), restrained(student, False, False, frozen_bn=True):
        assert not any(p.requires_grad for p in student.parameters())
        raise RuntimeError
    assert all(p.requires_grad for p in student.parameters()) and all(m.training for m in student.modules())


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "feature_student", "mode": "mask_only"},
        {"objective": "pixel_regression", "position": "input"},
        {"mode": "mask_only", "position": "input"},
    ],
)
def test_combinations_without_a_meaning_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="only with"):
        term_of(student_of(), **options)


def test_spread_is_nearest() -> None:
    keep = torch.tensor([[[[True, False], [False, True]]]])
    assert torch.equal(spread(keep, torch.zeros(1, 1, 4, 4)), keep.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(spread(keep, torch.zeros(1, 1, 1, 1)), keep[..., :1, :1])


# --- in the step ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_no_further_encoder_pass(streets: Path, name: str) -> None:
    counts = []
    for recipe in (name.removesuffix("_mrm"), name):
        built = assemble(toy.load(recipe, *(SMALL if recipe == name else ()), base=toy.MIT)).trainer
        passes = Passes(built)
        losses, _ = built.step(next(built.batches(0, 1)), 0)
        counts.append(passes.close())
    assert counts[0] == counts[1]
    assert losses["mixed/rebuild"].value > 0


@pytest.mark.parametrize(
    "settings",
    [("clip=0.1", "exact=true"), ("position=input", "bn=frozen"), ("objective=feature_teacher",), ("mode=off",)],
)
def test_nothing_reads_the_device(streets: Path, settings: tuple[str, ...]) -> None:
    trainer = trainer_of("dacs_mrm", *(f"{KEY}.{setting}" for setting in settings), base=toy.TINY)
    raw = next(trainer.batches(0, 1))
    with NoReading():
        trainer.step(raw, 0)


def test_passes_that_settings_cost_are_said_and_taken(streets: Path) -> None:
    from udaseg.commands.recipes import passes as said

    plain = total_calls(trainer_of("dacs_mrm"))
    for setting, who in (("position=input", "student"), ("objective=feature_teacher", "teacher")):
        found = total_calls(trainer_of("dacs_mrm", f"{KEY}.{setting}"))
        assert {key: found[key] - plain[key] for key in plain} == {"student": 0, "teacher": 0} | {who: 1}
        loaded = toy.load("dacs_mrm", f"{KEY}.{setting}", base=toy.MIT)
        assert f"{who} 1 more for mixed/rebuild" in said(loaded)
    for setting in ("mode=off", "position=none", "grid=8"):
        assert "more" not in said(toy.load("dacs_mrm", f"{KEY}.{setting}", base=toy.MIT))


def total_calls(trainer: Trainer) -> dict[str, int]:
    calls = {"student": 0, "teacher": 0}
    assert trainer.teacher is not None
    for who, encoder in (
        ("student", trainer.learner.segmentor.encoder),
        ("teacher", trainer.teacher.segmentor.encoder),
    ):
        encoder.register_forward_pre_hook(lambda *_, who=who: calls.update({who: calls[who] + 1}))
    trainer.step(next(trainer.batches(0, 1)), 0)
    return calls


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {"mixed/rebuild"}),
        (("views.mixed.terms.rebuild=null",), set()),
        (("views.mixed.terms.rebuild=null", "views.source.terms.rebuild={grid: 4}"), {"source/rebuild"}),
        (("views.source.terms.rebuild={grid: 4}",), {"source/rebuild", "mixed/rebuild"}),
        (("views.mixed.terms.rebuild=null", "views.target.terms.rebuild={grid: 4}"), {"target/rebuild"}),
    ],
)
def test_the_domain_is_the_view(streets: Path, overrides: tuple[str, ...], expected: set[str]) -> None:
    small = () if "views.mixed.terms.rebuild=null" in overrides else SMALL
    sure = "pseudo_labels.threshold=0"
    trainer = assemble(toy.load("dacs_mrm", sure, *small, *overrides, base=toy.MIT)).trainer
    losses, _ = trainer.step(next(trainer.batches(0, 1)), 0)
    assert {name for name in losses if "rebuild" in name} == expected
    assert all(losses[name].value > 0 for name in expected)


def test_learning_rate_and_decay_of_its_own(streets: Path) -> None:
    trainer = trainer_of("dacs_mrm", f"{KEY}.learning_rate=3e-4")
    (group,) = [g for g in trainer.optimiser.param_groups if g["name"] == "term"]
    term = trainer.learner.stages["mixed"].terms["rebuild"]  # type: ignore[index, union-attr]
    assert group["initial_lr"] == 3e-4 and group["weight_decay"] == 0.01
    assert {id(p) for p in group["params"]} == {id(p) for p in term.parameters()}
    (default,) = [g for g in trainer_of("dacs_mrm").optimiser.param_groups if g["name"] == "term"]
    assert default["initial_lr"] == 2e-4


@pytest.mark.parametrize("clip", [None, 1e-3, 1e6])
def test_clip_limits_the_gradient_of_the_term_alone(streets: Path, clip: float | None) -> None:
    def gradients(*overrides: str) -> tuple[Tensor, Tensor]:
        trainer = trainer_of("dacs_mrm", *overrides)
        trainer.step(next(trainer.batches(0, 1)), 0)
        own, others = [], []
        for name, parameter in trainer.learner.named_parameters():
            (own if name.startswith("stages.") else others).append(parameter.grad)
        return torch.cat([g.flatten() for g in own]), torch.cat([g.flatten() for g in others])

    plain = gradients()
    found = gradients(f"{KEY}.clip={clip or 'null'}")
    assert torch.equal(found[1], plain[1])
    if clip == 1e-3:
        assert plain[0].norm() > 2 * clip and found[0].norm() == pytest.approx(clip, rel=1e-3)
    else:
        torch.testing.assert_close(found[0], plain[0])


@pytest.mark.parametrize(("clip", "expected"), [(0.5, 0.5 / 3**0.5), (100.0, 3.0)])
def test_clipping_follows_unscaling(clip: float, expected: float) -> None:
    """With a loss scale of 1024 the norm is that of the true gradient, three times 3."""
    term = nn.Linear(2, 1)
    term.clip = clip  # type: ignore[assignment]
    learner: Any = SimpleNamespace(terms=lambda: [term])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimiser = torch.optim.SGD(term.parameters(), lr=1.0)
    scaler.scale((term(torch.ones(1, 2)) * 3).sum()).backward()
    clip_terms(learner, optimiser, scaler)
    flat = torch.cat([p.grad.flatten() for p in term.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(flat, torch.full((3,), expected), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", RECIPES)
def test_segmentor_and_inference_are_those_of_the_plain_recipe(streets: Path, name: str) -> None:
    plain = assemble(toy.load(name.removesuffix("_mrm"), base=toy.MIT)).trainer.learner.segmentor.eval()
    trainer = trainer_of(name)
    segmentor = trainer.learner.segmentor.eval()
    assert segmentor.state_dict().keys() == plain.state_dict().keys()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(segmentor.logits(image), plain.logits(image))
    assert trainer.teacher is not None and trainer.teacher.state_dict().keys() == {
        f"segmentor.{key}" for key in plain.state_dict()
    }


def train(folder: str, *more: str) -> int:
    steps = ("train.iterations=4", "runtime.log_every=1", "evaluation.every=100", "runtime.checkpoint_minutes=0")
    return run("train", "-r", "dacs_mrm", "-b", "streets", "--out", folder, *toy.MIT, *SMALL, *steps, *more)


def test_a_run_resumes_exactly_and_exports_the_segmentor_only(streets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train("whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Rebuild, "forward", failing_at(2, Rebuild.forward, torch.OutOfMemoryError("none left")))
        assert train("broken") == 2
    assert not Path("broken/result.json").exists() and list(Path("broken/checkpoints").glob("step-*.pt"))
    assert train("broken") == 0
    one, other = (torch.load(f"{f}/checkpoints/step-0000004.pt", weights_only=True) for f in ("whole", "broken"))
    assert any("rebuilder" in key for key in one["learner"])
    assert all(torch.equal(value, other["learner"][key]) for key, value in one["learner"].items())
    weights = load_file("whole/weights.safetensors")
    assert weights and all(key.split(".")[0] in ("encoder", "decoder") for key in weights)
    module, _ = load_weights(Path("whole/weights.safetensors"))
    plain = segmentor_of(toy.load("dacs", base=toy.MIT).recipe)
    plain.load_state_dict(
        {k.removeprefix("segmentor."): v for k, v in one["learner"].items() if k.startswith("segmentor.")}
    )
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(module.eval().logits(image), plain.eval().logits(image))


def failing_at(count: int, forward: Any, error: BaseException) -> Any:
    calls: Iterator[int] = iter(range(1000))

    def fails(self: Rebuild, *arguments: Any) -> Any:
        if next(calls) == count:
            raise error
        return forward(self, *arguments)

    return fails


def test_out_of_memory_is_recorded_and_forgotten_when_the_run_goes_on(
    streets: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 24 GiB.")
        patch.setattr(Rebuild, "forward", failing_at(2, Rebuild.forward, error))
        assert train("run") == 2
    err = capsys.readouterr().err
    assert "out of memory in phase 'mixed/rebuild' of iteration 2" in " ".join(err.split())
    record = json.loads(Path("run/failure.json").read_text())
    assert record == {"kind": "out of memory", "phase": "mixed/rebuild", "iteration": 2}
    assert not Path("run/result.json").exists()
    assert train("run") == 0
    assert not Path("run/failure.json").exists() and Path("run/result.json").exists()


def test_a_term_that_breaks_is_named_alone(streets: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    forward = Rebuild.forward

    def broken(self: Rebuild, view: View, output: Any, context: StepContext) -> Any:
        loss = forward(self, view, output, context)
        return loss._replace(value=loss.value * torch.tensor(float("nan") if context.iteration >= 1 else 1.0))

    monkeypatch.setattr(Rebuild, "forward", broken)
    assert train("run", "runtime.log_every=3", "runtime.checkpoint_minutes=10") == 2
    err = " ".join(capsys.readouterr().err.split())
    assert "mixed/rebuild is not finite since iteration 1" in err
    assert "source/cross_entropy" not in err and "clip" in err


def test_a_term_that_explodes_is_named_once(streets: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    forward = Rebuild.forward

    def growing(self: Rebuild, view: View, output: Any, context: StepContext) -> Any:
        loss = forward(self, view, output, context)
        return loss._replace(value=loss.value.detach() * 0 + 2.0 * 20.0**context.iteration)

    monkeypatch.setattr(Rebuild, "forward", growing)
    assert train("run") == 0
    log = Path("run/log.txt").read_text()
    assert log.count("mixed/rebuild explodes: 800 at iteration 3") == 1 and log.count("explodes") == 1


# --- cost ----------------------------------------------------------------------------------------------------------


def multiply_adds(**options: Any) -> dict[str, float]:
    """G of one 512 x 512 target image by phase, DACS with DeepLab-V2 on ResNet-101; counted on shapes alone."""
    with torch.device("meta"):
        student = segmentor_of(load("dacs_mrm").recipe)
        term = Rebuild(build_context(feature_maps=student.feature_maps((512, 512))), **options)
        view = View(torch.empty(1, 3, 512, 512), torch.zeros(1, 512, 512, dtype=torch.long), torch.ones(1, 512, 512))
    numbers = SimpleNamespace(per_image=lambda *shape: torch.empty(shape, device="meta"))
    context: Any = SimpleNamespace(segmentor=student, rng=numbers)
    with counting() as phases:
        with phases("view"):
            output = student(view.image)
            plain = segmentation_loss(output.predictions, view)
        with phases("term"):
            value = term(view, output, context).value
        with phases("backward"):
            (plain + value).backward()
    return {name: flops / 2e9 for name, flops in phases.spent.items()}


def test_cost_is_within_that_of_the_paper() -> None:
    """Supplement, Table 6: 182.34 G for the target image, 1.13 times with MRM, 2.00 with masked input."""
    plain, latent, masked_input = (multiply_adds(position=p) for p in ("none", "latent", "input"))
    assert plain["term"] == 0 and plain["view"] == pytest.approx(182.34, rel=0.01)
    assert 1.03 < (latent["view"] + latent["term"]) / plain["view"] <= 1.13
    assert 1.03 < sum(latent.values()) / sum(plain.values()) <= 1.13  # with the backward
    assert (masked_input["view"] + masked_input["term"]) / plain["view"] == pytest.approx(2.0, abs=0.001)
    assert sum(masked_input.values()) / sum(plain.values()) == pytest.approx(2.0, abs=0.01)


def test_profile_shows_the_term_by_itself(streets: Path, capsys: Any) -> None:
    found = []
    for recipe, more in (("dacs", ()), ("dacs_mrm", SMALL)):
        assert run("profile", "-r", recipe, "-b", "streets", *toy.MIT, *more, "--steps", "1", "--json") == 0
        found.append(json.loads(capsys.readouterr().out.strip().splitlines()[-1])["multiply_adds"])
    plain, mrm = found
    assert "mixed/rebuild" not in plain and mrm["mixed/rebuild"] > 0
    assert mrm["source"] == plain["source"] and mrm["teacher"] == plain["teacher"]
    assert mrm["mixed"] > plain["mixed"]  # the view's backward goes through the term, too
