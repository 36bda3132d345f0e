"""Translation engines and random looks: what they change, what they leave, what they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
from PIL import Image
from torch import Tensor, nn

from udaseg.addons.t2s import style_networks as styling
from udaseg.addons.t2s import styles as augmentors
from udaseg.addons.t2s.engines import FDA, ColorJitter, GaussianBlur, Untranslated
from udaseg.config.load import load
from udaseg.core.augment import swap_amplitude
from udaseg.core.context import Batch, Draws, Iteration
from udaseg.data.images import read_image
from udaseg.data.loading import Normalise
from udaseg.data.transforms import resize_image
from udaseg.engine import trainer
from udaseg.engine.assembly import assemble
from udaseg.engine.domains import index_of, training_pairs
from udaseg.errors import UserError
from udaseg.models.segmentor import IMAGENET_MEAN, IMAGENET_STD, Segmentor

CPU = torch.device("cpu")
NORMALISE = Normalise(IMAGENET_MEAN, IMAGENET_STD)


def iteration(size: tuple[int, int] = (32, 48), t: int = 0, rank: int = 0, world: int = 1) -> Iteration:
    """Two source and two target images."""
    generator = torch.Generator().manual_seed(3)
    source, target = (NORMALISE.redo(torch.rand(2, 3, *size, generator=generator)) for _ in range(2))
    share = slice(rank * 2 // world, (rank + 1) * 2 // world)
    batch = Batch(source[share], torch.zeros(2 // world, *size, dtype=torch.int64), target[share])
    draws = Draws(0, t, CPU, rank=rank, world=world)
    return Iteration(t, batch, draws, Segmentor(nn.Identity(), nn.Identity()))


def no_pictures(folder: str) -> Tensor:
    raise AssertionError("no style images were asked for")


def looks(*use: str, **settings: Any) -> augmentors.Augmentors:
    return augmentors.Augmentors(normalise=NORMALISE, pictures=no_pictures, use=use, **settings)  # type: ignore[arg-type]


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
    step = iteration()
    image = NORMALISE.undo(FDA(normalise=NORMALISE, beta=0.1)(step))
    source, target = NORMALISE.undo(step.batch.source_image), NORMALISE.undo(step.batch.target)
    assert image.min() >= -1e-6 and image.max() <= 1 + 1e-6
    torch.testing.assert_close(image, swap_amplitude(source, target, 0.1).clamp(0, 1), atol=1e-5, rtol=0)
    means = FDA(normalise=NORMALISE, beta=0.0)(step).mean((2, 3))  # frequency 0 is the mean colour
    torch.testing.assert_close(means, step.batch.target.mean((2, 3)), atol=0.02, rtol=0)


@pytest.mark.parametrize("engine", [ColorJitter(normalise=NORMALISE), GaussianBlur(), looks("A", "D", "E")])
def test_engines_draw_for_every_image_and_iteration_and_share_over_ranks(engine: Any) -> None:
    step = iteration()
    step.batch = Batch(step.batch.source_image[:1].repeat(2, 1, 1, 1), step.batch.source_label)
    image = engine(step)
    assert not torch.equal(image[0], image[1]) and not torch.equal(image, step.batch.source_image)
    whole, other = engine(iteration()), engine(iteration(t=1))
    assert not torch.equal(whole, other)
    torch.testing.assert_close(torch.cat([engine(iteration(rank=r, world=2)) for r in (0, 1)]), whole)


def test_untranslated_is_the_source() -> None:
    step = iteration()
    assert Untranslated()(step) is step.batch.source_image


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


def offline(folder: Path) -> build.Loaded:
    return toy.load(
        "daformer_t2s", f"views.stylised.engine={{kind: offline, folder: {folder}}}", "train.iterations=3", base=toy.MIT
    )


def test_a_translated_image_has_the_crop_and_flip_of_its_source(translated: Path) -> None:
    pairs = training_pairs(offline(translated).recipe)
    for k in range(6):
        sample = pairs[k]
        inverse = 255 - sample["source_translated"].float()
        assert torch.equal(inverse, sample["source_image"].float())
        plain = training_pairs(toy.load("daformer_t2s", "train.iterations=3", base=toy.MIT).recipe)[k]
        assert all(torch.equal(plain[key], sample[key]) for key in plain)


def test_a_translated_image_reaches_the_view(translated: Path) -> None:
    setup = assemble(offline(translated)).setup
    raw = next(setup.batches(0, 1))
    batch = trainer.make_batch(raw, setup)
    view = setup.learner.stages["stylised"].build(
        Iteration(0, batch, Draws(0, 0, CPU), setup.learner.segmentor)  # type: ignore[union-attr]
    )
    assert torch.equal(view.image, setup.normalise(raw["source_translated"])) and view.label is batch.source_label


def test_missing_translations_are_counted_and_the_first_named(translated: Path) -> None:
    (gone := sorted(translated.iterdir())[3]).unlink()
    with pytest.raises(UserError, match=rf"(?s)views.stylised.engine.folder: 1 of 24 images.*{gone.name}"):
        assemble(offline(translated))


def test_two_folders_are_refused() -> None:
    with pytest.raises(UserError, match="one folder of translated images is read, not 2: b, a"):
        load("daformer_t2s", overrides=[
            "views.stylised.engine={kind: offline, folder: a}",
            "views.source.terms.contrast={key: stylised, engine: {kind: offline, folder: b}}",
        ])  # fmt: skip


# --- random looks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [*augmentors.WEATHER, augmentors.cartoon])
def test_looks_change_the_image_and_keep_its_places(look: augmentors.Look) -> None:
    """A bright square stays brighter than what is around it."""
    image = torch.full((1, 3, 64, 64), 0.3)
    image[..., 16:48, 16:48] = 0.7
    torch.manual_seed(0)
    done = look(image, torch.rand(1, 4), torch.rand(1, 3, 64, 64)).clamp(0, 1)
    assert done.shape == image.shape and torch.isfinite(done).all()
    assert (done - image).abs().mean() > 0.01
    assert done[..., 20:44, 20:44].mean() > done[..., :12, :].mean() + 0.05


def test_bilateral_smooths_planes_and_keeps_edges() -> None:
    torch.manual_seed(0)
    image = 0.02 * torch.randn(1, 3, 32, 32)
    image[..., 16:] += 1
    done = augmentors.bilateral(image, spread=0.1)
    assert done[..., 2:14].std() < 0.5 * image[..., 2:14].std()
    assert (done[..., 16] - done[..., 15]).mean() > 0.98


def test_style_images_of_a_folder(tmp_path: Path) -> None:
    Image.new("RGB", (10, 20), (200, 10, 10)).save(tmp_path / "red.png")
    engine = augmentors.Augmentors(normalise=NORMALISE, pictures=build.pictures, use=("A",), styles=str(tmp_path))
    image = NORMALISE.undo(engine(iteration()))
    assert image[:, 0].mean() > 0.7 and image[:, 1:].mean() < 0.2
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"no images in {empty}"):
        build.pictures(str(empty))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{use: [B]}", "B needs a folder `weights`"),
        ("{use: [C], weights: nowhere}", "C needs a folder `styles`"),
        ("{use: [B], weights: nowhere}", "no such weights file: nowhere/checkpoint_transformer.pth"),
        ("{use: []}", "at least one of A, B, C, D, E"),
    ],
)
def test_what_is_missing_for_a_look_is_said(streets: Path, settings: str, message: str) -> None:
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
    network = styling.StyleNetwork()
    torch.save({"state_dict_ghiasi": public_names(network.state_dict())}, tmp_path / "checkpoint_transformer.pth")
    half = torch.randn(styling.STYLE, styling.STYLE)
    drawn = {"pbn_embedding_mean": torch.randn(1, styling.STYLE), "pbn_embedding_covariance": half @ half.T}
    torch.save(drawn, tmp_path / "checkpoint_embeddings.pth")
    read = styling.style_network(tmp_path)
    torch.testing.assert_close(read.root @ read.root.T, drawn["pbn_embedding_covariance"], atol=1e-2, rtol=1e-3)
    assert torch.equal(read.mean, drawn["pbn_embedding_mean"][0])
    for name, value in network.state_dict().items():
        assert name in ("mean", "root") or torch.equal(read.state_dict()[name], value), name
    image = looks("B", weights=str(tmp_path))(iteration())
    assert image.shape == (2, 3, 32, 48) and torch.isfinite(image).all()
    torch.save(drawn, tmp_path / "checkpoint_transformer.pth")
    with pytest.raises(UserError, match="does not fit the network"):
        styling.style_network(tmp_path)


def test_adain_reads_the_public_layers_and_takes_the_styles_statistics(tmp_path: Path) -> None:
    network = styling.AdaIN()
    convolutions = [int(name.split(".")[0]) for name in network.encoder.state_dict() if name.endswith("weight")]
    assert convolutions == [0, 2, 5, 9, 12, 16, 19, 22, 25, 29]  # of the public vgg_normalised.pth
    assert [int(n.split(".")[0]) for n in network.decoder.state_dict() if n.endswith("weight")] == [
        *(1, 5, 8, 11, 14, 18, 21, 25, 28)
    ]
    torch.save({**network.encoder.state_dict(), "32.weight": torch.zeros(1)}, tmp_path / "vgg_normalised.pth")
    torch.save(network.decoder.state_dict(), tmp_path / "decoder.pth")
    read = styling.adain(tmp_path)
    assert torch.equal(read.decoder[1].weight, network.decoder[1].weight)  # type: ignore[union-attr]
    seen: list[Tensor] = []
    read.decoder.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    style = torch.rand(1, 3, 64, 64)
    assert read(torch.rand(1, 3, 64, 64), style).shape == style.shape
    like = read.encoder(style)
    torch.testing.assert_close(seen[0].mean((2, 3)), like.mean((2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(seen[0].std((2, 3)), like.std((2, 3)), atol=1e-3, rtol=2e-2)
