"""What the servers want: numbers of the official splits, pixel values, and checks that refuse anything else."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from unit.data_files import png, save, truncate

from udaseg.data.layouts import DATASETS
from udaseg.data.servers import SERVERS, check_prediction, encode, pack
from udaseg.errors import UserError

SMALL = dataclasses.replace(SERVERS["cityscapes"], size=(6, 4))


def test_numbers_sizes_and_values() -> None:
    assert {name: sum(server.images.values()) for name, server in SERVERS.items()} == {
        "cityscapes": 1525, "acdc": 2000, "dark_zurich": 151,
    }  # fmt: skip
    for name, server in SERVERS.items():
        spec = DATASETS[server.dataset]
        assert sum(server.images.values()) == spec.expected["test"] and "test" in spec.unlabelled, name
    assert SERVERS["cityscapes"].size == (2048, 1024) and SERVERS["acdc"].size == (1920, 1080)
    assert SERVERS["cityscapes"].values[:3] == (7, 8, 11) and SERVERS["cityscapes"].values[-3:] == (31, 32, 33)
    assert SERVERS["acdc"].values == SERVERS["dark_zurich"].values == tuple(range(19))


def test_train_ids_become_the_values_of_the_server(tmp_path: Path) -> None:
    ids = np.arange(24, dtype=np.int64).reshape(4, 6) % 19
    file = tmp_path / "x.png"
    file.write_bytes(encode(SMALL, ids))
    with Image.open(file) as picture:
        assert picture.mode == "L" and picture.size == (6, 4)
        assert np.array(picture).ravel()[[0, 2, 13, 18, 19]].tolist() == [7, 11, 26, 33, 7]
    check_prediction(SMALL, file)


def test_files_that_a_server_would_refuse(tmp_path: Path) -> None:
    ids = np.full((4, 6), 7, np.uint8)
    wrong = {
        "size": (ids[:, :5], "5x4, not 6x4"),
        "void": (np.where(np.eye(4, 6) > 0, 0, ids).astype(np.uint8), r"values \[0\]"),
        "depth": (ids.astype(np.uint16), "16 bits"),
    }
    for name, (array, words) in wrong.items():
        with pytest.raises(UserError, match=rf"(?s){words}.*Delete .*{name}\.png"):
            check_prediction(SMALL, save(tmp_path / f"{name}.png", array))
    (tmp_path / "colour.png").write_bytes(png(np.full((4, 6, 3), 7, np.uint8)))
    with pytest.raises(UserError, match=r"colour\.png holds colours"):
        check_prediction(SMALL, tmp_path / "colour.png")
    truncate(save(tmp_path / "cut.png", ids))
    with pytest.raises(UserError, match=r"cut\.png"):
        check_prediction(SMALL, tmp_path / "cut.png")


def test_a_zip_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        pack(SMALL, [save(tmp_path / "a.png", np.zeros((4, 6), np.uint8)), tmp_path / "gone.png"], tmp_path / "x.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
