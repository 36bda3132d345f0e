"""Pictures of every kind, logits in strips and bands, sizes that no training saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from udaseg.data.images import as_rgb, image_size
from udaseg.deploy import model as deploy
from udaseg.errors import UserError
from udaseg.models.segmentor import upsample
from udaseg.models.windows import bands, grid, slide

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def saved(path: Path, picture: Image.Image, **options: object) -> np.ndarray:
    picture.save(path, **options)  # type: ignore[arg-type]
    return as_rgb(path)


def test_pictures_of_every_mode(tmp_path: Path) -> None:
    rgb = Image.fromarray(PIXELS)
    assert (saved(tmp_path / "rgb.png", rgb) == PIXELS).all()
    assert (saved(tmp_path / "rgba.png", rgb.convert("RGBA")) == PIXELS).all()
    grey = saved(tmp_path / "grey.png", Image.fromarray(PIXELS[..., 0]))
    assert (grey == PIXELS[..., :1]).all() and grey.shape == PIXELS.shape
    for mode, name in (("P", "p.gif"), ("1", "1.tif"), ("CMYK", "cmyk.jpg"), ("LA", "la.png")):
        found = saved(tmp_path / name, rgb.convert(mode))
        assert found.shape == PIXELS.shape and found.dtype == np.uint8


def test_a_png_without_image_data(tmp_path: Path) -> None:
    path = tmp_path / "empty.png"
    Image.fromarray(PIXELS).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"IDAT") - 4] + data[data.index(b"IEND") - 4 :])
    with pytest.raises(UserError, match=r"empty.png has no image data"):
        image_size(path)


@pytest.mark.parametrize("kind", [np.uint16, np.int32])
def test_of_sixteen_bits_the_high_eight_are_kept(tmp_path: Path, kind: type) -> None:
    deep = np.array([[0, 255, 256, 300], [32768, 65279, 65280, 65535]]).astype(kind)
    found = saved(tmp_path / "deep.tif", Image.fromarray(deep))
    assert found[..., 0].tolist() == [[0, 0, 1, 1], [128, 254, 255, 255]] and found.shape == (2, 4, 3)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown turned clockwise by a quarter
    found = saved(tmp_path / "turned.png", Image.fromarray(PIXELS), exif=exif)
    assert (found == np.rot90(PIXELS, -1)).all()


@pytest.mark.filterwarnings("error")
def test_damaged_pictures_are_errors_that_name_them_and_nothing_else(tmp_path: Path) -> None:
    """Pillow warns of damaged tags, in the middle of a progress bar; and reads a picture it is given only when used."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8))
    assert saved(tmp_path / "tags.jpg", picture, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0").shape == (
        60,
        90,
        3,
    )
    picture.save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:900])
    with Image.open(tmp_path / "cut.jpg") as picture, pytest.raises(UserError, match=r"cut\.jpg: cannot be read"):
        as_rgb(picture)


@pytest.mark.parametrize("size", [(37, 50), (7, 5), (14, 200), (90, 13)])
def test_strips_are_the_up_sampled_whole(size: tuple[int, int]) -> None:
    logits = torch.randn(4, 14, 13, generator=torch.Generator().manual_seed(0))
    whole = upsample(logits[None], size)[0]
    (one,) = deploy.strips(logits, size)
    assert torch.equal(one, whole)
    parts = list(deploy.strips(logits, size, most=4 * size[1] * 3))
    assert len(parts) == -(-size[0] // 3)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5)
    assert [part.shape[1] for part in deploy.strips(logits, size, most=1)] == [1] * size[0]


@pytest.mark.parametrize(("size", "window"), [((50, 37), (16, 16)), ((16, 40), (32, 16)), ((33, 20), (16, 24))])
def test_bands_are_what_sliding_gives(size: tuple[int, int], window: tuple[int, int]) -> None:
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
    boxes = grid(size, window, [side // 2 for side in window])

    def centred(tile: torch.Tensor) -> torch.Tensor:
        return tile - tile.mean((2, 3), keepdim=True)  # the logits of a window depend on where it lies

    whole, visits = torch.zeros_like(image), torch.zeros(size)
    for box in boxes:
        place = (..., slice(box.top, box.bottom), slice(box.left, box.right))
        whole[place] += centred(image[place])
        visits[place] += 1
    for tiles in (1, 2, 7):
        parts = list(bands(centred, image, boxes, tiles=tiles))
        assert torch.equal(torch.cat(parts, 2), slide(centred, image, boxes))
        if tiles == 1:
            assert len(parts) == len({box.top for box in boxes})
    torch.testing.assert_close(torch.cat(parts, 2), whole / visits, rtol=1e-5, atol=1e-6)
    assert [part.shape[2] for part in bands(centred, image, boxes)] == [size[0]]


@pytest.mark.parametrize(
    ("native", "box", "expected"),
    [
        ((2048, 1024), (1280, 720), (1280, 640)), ((1024, 2048), (1280, 720), (640, 1280)),
        ((1, 4000), (128, 64), (1, 128)), ((30, 20), None, (30, 20)), ((20, 10), (128, 64), (128, 64)),
    ],
)  # fmt: skip
def test_fitted(native: tuple[int, int], box: tuple[int, int] | None, expected: tuple[int, int]) -> None:
    assert deploy.fitted(native, box) == expected


@pytest.mark.parametrize("size", [None, (128, 64)])
def test_any_size_of_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int] | None) -> None:
    """Also a large one at its own size, which is looked at through windows: the same as a network told to slide."""
    from cli.test_deploy import weights

    model = deploy.load(weights(tmp_path / "w.safetensors", size=size))
    for shape in ((1, 1), (1, 300), (150, 1), (65, 31)):
        assert model.predict(np.full((*shape, 3), 99, np.uint8)).label.shape == shape
    image = np.random.default_rng(0).integers(0, 256, (150, 130, 3), dtype=np.uint8)
    slid = deploy.load(weights(tmp_path / "s.safetensors", size=size, inference="slide")).predict(image).label
    usual = model.predict(image).label
    monkeypatch.setattr(deploy, "LARGE", 100)
    large = model.predict(image).label
    if size is None:
        assert (large == slid).mean() > 0.999 and (large != usual).any()
    else:
        assert (large == usual).all()


def test_images_smaller_than_the_cells_of_a_network(tmp_path: Path) -> None:
    from cli.test_deploy import weights

    parts = {"encoder": {"kind": "mit_b0"}, "decoder": {"kind": "daformer", "width": 16}, "wrapper": {"kind": "hrda"}}
    model = deploy.load(weights(tmp_path / "w.safetensors", size=None, **parts))
    assert model.predict(np.zeros((3, 1, 3), np.uint8)).label.shape == (3, 1)
