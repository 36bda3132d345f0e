"""Translation engines and random styles: what they change, what they leave, what they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from PIL import Image
from steps import NORMALISE, build_context
from steps import step as step_of
from torch import Tensor

from udaseg.addons.t2s import style_networks, styles
from udaseg.addons.t2s.engines import ColorJitter, GaussianBlur, Untranslated
from udaseg.addons.t2s.fourier import FDA, TranslatedRegion, around, swap_amplitude, with_amplitude
from udaseg.config.load import Loaded, load
from udaseg.core.context import Batch, StepContext
from udaseg.data import dataset
from udaseg.data.dataset import TrainingPairs
from udaseg.data.images import read_image
from udaseg.data.transforms import Crop, resize_image
from udaseg.engine.assembly import assemble
from udaseg.engine.domains import index_of, training_pairs
from udaseg.errors import UserError

CONTEXT = build_context()


def step(size: tuple[int, int] = (32, 48), t: int = 0, rank: int = 0, world: int = 1) -> StepContext:
    """Two source and two target images."""
    generator = torch.Generator().manual_seed(3)
    source, target = (NORMALISE.redo(torch.rand(2, 3, *size, generator=generator)) for _ in range(2))
    share = slice(rank * 2 // world, (rank + 1) * 2 // world)
    batch = Batch(source[share], torch.zeros(2 // world, *size, dtype=torch.int64), target[share])
    return step_of(batch, t=t, rank=rank, world=world)


def augmentors(*use: str, **settings: Any) -> styles.Augmentors:
    return styles.Augmentors(CONTEXT, use=use, **settings)  # type: ignore[arg-type]


def reference(source: np.ndarray, style: np.ndarray, beta: float) -> np.ndarray:
    """Eq. 6-8 by the whole, centred spectrum in float64."""
    height, width = source.shape
    spectrum, other = np.fft.fftshift(np.fft.fft2(source)), np.fft.fftshift(np.fft.fft2(style))
    widest, y, x = int(np.floor(beta * min(height, width))), height // 2, width // 2
    amplitude = np.abs(spectrum)
    window = slice(y - widest, y + widest + 1), slice(x - widest, x + widest + 1)
    amplitude[window] = np.abs(other)[window]
    return np.fft.ifft2(np.fft.ifftshift(amplitude * np.exp(1j * np.angle(spectrum)))).real


@pytest.mark.parametrize("size", [(32, 48), (31, 40), (40, 33), (64, 64)])
@pytest.mark.parametrize("beta", [0.0, 0.01, 0.1, 0.3])
def test_fda_is_the_float64_reference(size: tuple[int, int], beta: float) -> None:
    rng = np.random.default_rng(1)
    source, style = rng.random((2, 2, 3, *size))
    ours = swap_amplitude(torch.from_numpy(source), torch.from_numpy(style), beta)
    assert ours.dtype == torch.float32
    for i in range(2):
        for channel in range(3):
            expected = reference(source[i, channel], style[i, channel], beta)
            np.testing.assert_allclose(ours[i, channel], expected, atol=2e-6)


def test_fda_swaps_with_its_own_partner_and_stays_in_range() -> None:
    context = step()
    image = NORMALISE.undo(FDA(CONTEXT, beta=0.1, scope="crop")(context))
    source, target = NORMALISE.undo(context.batch.source_image), NORMALISE.undo(context.batch.target)
    assert image.min() >= -1e-6 and image.max() <= 1 + 1e-6
    torch.testing.assert_close(image, swap_amplitude(source, target, 0.1).clamp(0, 1), atol=1e-5, rtol=0)
    means = FDA(CONTEXT, beta=0.0, scope="crop")(context).mean((2, 3))  # frequency 0 is the mean colour
    torch.testing.assert_close(means, context.batch.target.mean((2, 3)), atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [(32, 48), (31, 40), (40, 33), (64, 64)])
@pytest.mark.parametrize("beta", [0.0, 0.01, 0.1, 0.3, 0.6, 1.0])
def test_the_loaders_fda_is_the_float64_reference_in_8_bits(size: tuple[int, int], beta: float) -> None:
    source, style = np.random.default_rng(1).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    ours = with_amplitude(source, style, beta)
    tensors = (torch.from_numpy(image.transpose(2, 0, 1).copy() / 255)[None] for image in (source, style))
    by_torch = swap_amplitude(*tensors, beta).clamp(0, 1)[0].numpy() * 255  # type: ignore[misc]
    assert ours.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_allclose(ours[..., channel], by_torch[channel], atol=0.501)
        if beta < 0.5:  # a window within the spectrum
            expected = reference(source[..., channel].astype(float), style[..., channel].astype(float), beta)
            np.testing.assert_allclose(ours[..., channel], expected.clip(0, 255), atol=0.501)


# --- before the images are cropped -------------------------------------------------------------------------------

EXTRA = "extra/" + TranslatedRegion(0.01, (1, 2)).name


def loaded(*overrides: str) -> TrainingPairs:
    return training_pairs(toy.load("daformer_t2s", "train.iterations=8", *overrides, base=toy.MIT).recipe)


def placed(crop: Tensor, images: list[np.ndarray]) -> tuple[int, int, int, bool]:
    """(image, row, column, flipped) of a crop (3, h, w) of one of the images."""
    pixels = crop.permute(1, 2, 0).numpy()
    for i, image in enumerate(images):
        for flipped, wanted in ((False, pixels), (True, pixels[:, ::-1])):
            windows = np.lib.stride_tricks.sliding_window_view(image, wanted.shape)[:, :, 0]
            for y, x in np.argwhere((windows[:, :, 0, 0] == wanted[0, 0]).all(-1)):
                if np.array_equal(windows[y, x], wanted):
                    return i, int(y), int(x), flipped
    raise AssertionError("the crop is of none of the images")


def test_fda_is_done_on_whole_images_and_then_cropped_and_flipped(streets: Path) -> None:
    """64 x 64 crops of 64 x 128 images: the region is the image. Against numpy's whole spectrum."""
    pairs = loaded("data.cat_max_ratio=1")
    assert pairs.target is not None
    sources, targets = ([domain.load(i)[0] for i in range(len(domain))] for domain in (pairs.source, pairs.target))
    flips = set()
    for k in range(8):
        sample = pairs[k]
        i, y, x, flipped = placed(sample["source_image"], sources)
        style = targets[placed(sample["target_image"], targets)[0]]
        for channel in range(3):
            whole = reference(sources[i][..., channel].astype(float), style[..., channel].astype(float), 0.01)
            expected = whole.clip(0, 255)[y : y + 64, x : x + 64]
            found = sample[EXTRA][channel].numpy()
            np.testing.assert_allclose(found[:, ::-1] if flipped else found, expected, atol=0.501)
        flips.add(flipped)
    assert flips == {True, False}


def test_the_region_lies_around_the_crop_anywhere() -> None:
    """A box of 20 x 30 at (10, 50) in 40 x 100: regions of 30 x 60 begin in rows 0..10 and columns 20..40."""
    rng, box = np.random.default_rng(0), Crop(10, 30, 50, 80)
    found = [around(box, (1.5, 2), (100, 40), rng) for _ in range(4000)]
    assert all((r.y2 - r.y1, r.x2 - r.x1) == (30, 60) for r in found)
    rows, columns = (np.bincount(values) for values in np.array([(r.y1, r.x1) for r in found]).T)
    assert len(rows) == 11 and rows.min() > 280 and len(columns) == 41 and columns[20:].min() > 130
    assert columns[:20].sum() == 0
    assert around(box, (9, 9), (100, 40), rng) == Crop(0, 40, 0, 100)  # clipped to the image
    assert around(box, (1, 1), (100, 40), rng) == box


def test_a_region_within_larger_images(streets: Path) -> None:
    """The same numbers of the same sample, and a target that is smaller than the region is resized."""
    pairs = loaded("data.source.size=[256,128]", "data.target.size=[96,48]", "data.cat_max_ratio=1")
    assert pairs.target is not None
    sources = [pairs.source.load(i)[0] for i in range(len(pairs.source))]
    targets = [resize_image(pairs.target.load(i)[0], (128, 64)) for i in range(len(pairs.target))]
    for k in range(4):
        i, y, x, flipped = placed(pairs[k]["source_image"], sources)
        rng = np.random.default_rng([pairs.seed, k, 2])
        region = around(Crop(y, y + 64, x, x + 64), (1, 2), (256, 128), rng)
        found = pairs[k][EXTRA].permute(1, 2, 0).numpy()
        source = sources[i][region.y1 : region.y2, region.x1 : region.x2]
        made = [with_amplitude(source, style, 0.01) for style in targets]
        top, left = y - region.y1, x - region.x1
        crops = [image[top : top + 64, left : left + 64] for image in made]
        assert any(np.array_equal(found[:, ::-1] if flipped else found, crop) for crop in crops)


def test_fda_changes_no_crop_and_decodes_nothing_twice(streets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    original = dataset.read_image
    monkeypatch.setattr(dataset, "read_image", lambda path: reads.append(path) or original(path))
    ours, plain = loaded()[5], training_pairs(toy.load("daformer", "train.iterations=8", base=toy.MIT).recipe)[5]
    assert len(reads) == 4 and set(ours) - set(plain) == {EXTRA}
    assert all(torch.equal(ours[key], value) for key, value in plain.items())
    assert torch.equal(loaded()[5][EXTRA], ours[EXTRA])
    changed = (ours[EXTRA].float() - ours["source_image"].float()).abs().mean()
    assert 1 < changed < 128


def test_the_loaders_image_is_the_view_and_the_crop_scope_needs_none(streets: Path) -> None:
    trainer = assemble(toy.load("daformer_t2s", base=toy.MIT)).trainer
    raw = next(trainer.batches(0, 1))
    view = trainer.learner.stages["stylised"].build_view(step_of(trainer.make_batch(raw)))  # type: ignore[union-attr, operator]
    assert torch.equal(view.image, trainer.normalise(raw[EXTRA]))
    assert EXTRA not in loaded("views.stylised.engine.scope=crop")[0]
    two = loaded("views.stylised.engine.region=[1.5,3]", "views.source.terms.contrast={key: stylised}")[0]
    assert {EXTRA, EXTRA.replace("1x2", "1.5x3")} <= set(two)
    with pytest.raises(UserError, match=r"engine.region.1: 0.5 is not allowed: .*greater than or equal to 1"):
        loaded("views.stylised.engine.region=[1,0.5]")


@pytest.mark.parametrize(
    "engine", [ColorJitter(CONTEXT, probability=1.0), GaussianBlur(CONTEXT, probability=1.0), augmentors("A", "D", "E")]
)
def test_engines_draw_for_every_image_and_iteration_and_share_over_ranks(engine: Any) -> None:
    context = step()
    context.batch = Batch(context.batch.source_image[:1].repeat(2, 1, 1, 1), context.batch.source_label)
    image = engine(context)
    assert not torch.equal(image[0], image[1]) and not torch.equal(image, context.batch.source_image)
    whole, other = engine(step()), engine(step(t=1))
    assert not torch.equal(whole, other)
    torch.testing.assert_close(torch.cat([engine(step(rank=r, world=2)) for r in (0, 1)]), whole)


def test_simclr_jitter_multiplies_the_brightness_within_its_range() -> None:
    """torchvision's brightness is a factor of 0.2 to 1.8; with kornia's it would be a shift."""
    engine, factors = ColorJitter(CONTEXT, contrast=0, saturation=0, hue=0, probability=1.0), []
    for t in range(40):
        context = step(t=t)
        before, after = NORMALISE.undo(context.batch.source_image), NORMALISE.undo(engine(context))
        for old, new in zip(before, after, strict=True):
            inside = (new < 0.999) & (old > 0.05)
            factor = (new[inside] / old[inside]).median()
            torch.testing.assert_close(new, (old * factor).clamp(0, 1), atol=2e-3, rtol=0)
            factors.append(factor.item())
    assert 0.19 < min(factors) < 0.4 and 1.6 < max(factors) < 1.81


@pytest.mark.parametrize(("engine", "share"), [(ColorJitter(CONTEXT), 0.8), (GaussianBlur(CONTEXT), 0.5)])
def test_simclr_probabilities_are_of_each_image(engine: Any, share: float) -> None:
    changed = []
    for t in range(150):
        context = step(t=t)
        source = context.batch.source_image
        changed += (engine(context) - source).abs().amax((1, 2, 3)).gt(1e-4).tolist()
    assert sum(changed) / len(changed) == pytest.approx(share, abs=0.09)


def test_untranslated_is_the_source() -> None:
    context = step()
    assert Untranslated(CONTEXT)(context) is context.batch.source_image


# --- images translated before ------------------------------------------------------------------------------------


@pytest.fixture
def translated(streets: Path) -> Path:
    """A folder with the inverse of every source image at twice the size, under its name alone."""
    folder = streets / "translated"
    folder.mkdir()
    for pair in (index := index_of(load("daformer_t2s", benchmark="streets").recipe.data.source)).pairs:
        image = resize_image(read_image(index.root / pair.image), (128, 64))
        Image.fromarray(255 - image).save(folder / pair.image.name)
    return folder


def offline(folder: Path, *overrides: str) -> Loaded:
    engine = f"views.stylised.engine={{kind: offline, folder: {folder}}}"
    return toy.load("daformer_t2s", engine, "train.iterations=3", *overrides, base=toy.MIT)


def test_a_translated_image_has_the_crop_and_flip_of_its_source(translated: Path) -> None:
    pairs = training_pairs(offline(translated).recipe)
    for k in range(6):
        sample = pairs[k]
        inverse = 255 - sample[f"extra/{translated}"].float()
        assert torch.equal(inverse, sample["source_image"].float())
        plain = training_pairs(toy.load("daformer", "train.iterations=3", base=toy.MIT).recipe)[k]
        assert all(torch.equal(plain[key], sample[key]) for key in plain)


def test_a_translated_image_reaches_the_view(translated: Path) -> None:
    trainer = assemble(offline(translated)).trainer
    raw = next(trainer.batches(0, 1))
    batch = trainer.make_batch(raw)
    view = trainer.learner.stages["stylised"].build_view(step_of(batch))  # type: ignore[union-attr, operator]
    assert torch.equal(view.image, trainer.normalise(raw[f"extra/{translated}"])) and view.label is batch.source_label


def test_missing_translations_are_counted_and_the_first_named(translated: Path) -> None:
    (gone := sorted(translated.iterdir())[3]).unlink()
    message = rf"(?s)views.stylised.engine.folder: 1 of 24 images of streets_source have no.*{gone.name}"
    with pytest.raises(UserError, match=message):
        assemble(offline(translated))


def test_a_missing_folder_is_said(streets: Path) -> None:
    with pytest.raises(UserError, match=r"views.stylised.engine.folder: no such folder: .*nowhere; .* streets_source"):
        assemble(offline(streets / "nowhere"))


def test_two_folders_are_both_read(translated: Path) -> None:
    """The image as it is, and upside down."""
    (other := translated.parent / "other").mkdir()
    for path in translated.iterdir():
        Image.open(path).transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(other / path.name)
    engine = f"{{key: stylised, engine: {{kind: offline, folder: {other}}}}}"
    sample = training_pairs(offline(translated, f"views.source.terms.contrast={engine}").recipe)[0]
    assert {key for key in sample if key.startswith("extra/")} == {f"extra/{translated}", f"extra/{other}"}
    assert not torch.equal(sample[f"extra/{translated}"], sample[f"extra/{other}"])


# --- random styles ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", [*styles.WEATHER, styles.cartoon])
def test_styles_change_the_image_and_keep_its_places(style: styles.Style) -> None:
    """A bright square stays brighter than what is around it."""
    image = torch.full((1, 3, 64, 64), 0.3)
    image[..., 16:48, 16:48] = 0.7
    torch.manual_seed(0)
    done = style(image, torch.rand(1, 4), torch.rand(1, 3, 64, 64)).clamp(0, 1)
    assert done.shape == image.shape and torch.isfinite(done).all()
    assert (done - image).abs().mean() > 0.01
    assert done[..., 20:44, 20:44].mean() > done[..., :12, :].mean() + 0.05


def test_bilateral_smooths_planes_and_keeps_edges() -> None:
    torch.manual_seed(0)
    image = 0.02 * torch.randn(1, 3, 32, 32)
    image[..., 16:] += 1
    done = styles.bilateral(image, spread=0.1)
    assert done[..., 2:14].std() < 0.5 * image[..., 2:14].std()
    assert (done[..., 16] - done[..., 15]).mean() > 0.98


def test_style_images_of_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (10, 20), (200, 10, 10)).save(tmp_path / "red.png")
    engine = augmentors("A", styles=str(tmp_path))
    image = NORMALISE.undo(engine(step()))
    assert image[:, 0].mean() > 0.7 and image[:, 1:].mean() < 0.2
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"no images in {empty}"):
        augmentors("A", styles=str(empty))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{use: [B]}", "B needs a folder `weights`"),
        ("{use: [C], weights: nowhere}", "C needs a folder `styles`"),
        ("{use: [B], weights: nowhere}", "no such weights file: nowhere/checkpoint_transformer.pth"),
        ("{use: []}", "at least one of A, B, C, D, E"),
    ],
)
def test_what_is_missing_for_a_style_is_said(streets: Path, settings: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        assemble(toy.load("dg_t2s", f"views.stylised.engine={settings[:-1]}, kind: augmentors}}", base=toy.MIT))


def public_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The style network's tensors as the public file calls them."""
    return {
        name.replace(".first.conv.", ".conv1.").replace(".second.conv.", ".conv2.")
        .replace(".first.fc_beta.", ".fc_beta1.").replace(".second.fc_beta.", ".fc_beta2.")
        .replace(".first.fc_gamma.", ".fc_gamma1.").replace(".second.fc_gamma.", ".fc_gamma2."): value
        for name, value in state.items() if name not in ("mean", "root")
    }  # fmt: skip


def test_the_style_network_reads_the_public_names(tmp_path: Path) -> None:
    network = style_networks.StyleNetwork()
    torch.save({"state_dict_ghiasi": public_names(network.state_dict())}, tmp_path / "checkpoint_transformer.pth")
    half = torch.randn(style_networks.STYLE, style_networks.STYLE)
    drawn = {"pbn_embedding_mean": torch.randn(1, style_networks.STYLE), "pbn_embedding_covariance": half @ half.T}
    torch.save(drawn, tmp_path / "checkpoint_embeddings.pth")
    read = style_networks.style_network(tmp_path)
    torch.testing.assert_close(read.root @ read.root.T, drawn["pbn_embedding_covariance"], atol=1e-2, rtol=1e-3)
    assert torch.equal(read.mean, drawn["pbn_embedding_mean"][0])
    for name, value in network.state_dict().items():
        assert name in ("mean", "root") or torch.equal(read.state_dict()[name], value), name
    image = augmentors("B", weights=str(tmp_path))(step())
    assert image.shape == (2, 3, 32, 48) and torch.isfinite(image).all()
    torch.save(drawn, tmp_path / "checkpoint_transformer.pth")
    with pytest.raises(UserError, match="does not fit the network"):
        style_networks.style_network(tmp_path)


def test_adain_reads_the_public_layers_and_takes_the_styles_statistics(tmp_path: Path) -> None:
    network = style_networks.AdaIN()
    convolutions = [int(name.split(".")[0]) for name in network.encoder.state_dict() if name.endswith("weight")]
    assert convolutions == [0, 2, 5, 9, 12, 16, 19, 22, 25, 29]  # of the public vgg_normalised.pth
    assert [int(n.split(".")[0]) for n in network.decoder.state_dict() if n.endswith("weight")] == [
        *(1, 5, 8, 11, 14, 18, 21, 25, 28)
    ]
    torch.save({**network.encoder.state_dict(), "32.weight": torch.zeros(1)}, tmp_path / "vgg_normalised.pth")
    torch.save(network.decoder.state_dict(), tmp_path / "decoder.pth")
    read = style_networks.adain(tmp_path)
    assert torch.equal(read.decoder[1].weight, network.decoder[1].weight)  # type: ignore[union-attr]
    seen: list[Tensor] = []
    read.decoder.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    style = torch.rand(1, 3, 64, 64)
    assert read(torch.rand(1, 3, 64, 64), style).shape == style.shape
    like = read.encoder(style)
    torch.testing.assert_close(seen[0].mean((2, 3)), like.mean((2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(seen[0].std((2, 3)), like.std((2, 3)), atol=1e-3, rtol=2e-2)
