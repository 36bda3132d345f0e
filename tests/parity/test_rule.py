"""The generator of rule.py against the values recorded with the fixtures."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest

from parity import rule

CHECK: dict[str, dict[str, Any]] = json.loads((rule.DATA / "rule_check.json").read_text())
FLOATS = [key for key in CHECK if "(" not in key]
LABELS = {
    "label/hrda_train": lambda key: rule.blocks(key, (2, 128, 128), block=8),
    **{f"label/step_dacs/{i}": lambda key: rule.noisy(key, (2, 128, 128), block=32) for i in range(3)},
    **{f"label/step_mic/{i}": lambda key: rule.noisy(key, (2, 256, 256), block=64) for i in range(2)},
    "label/fd": lambda key: rule.noisy(key, (2, 128, 128), block=16, share=0.2, noise_key="label/fd_noise"),
}


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("key", FLOATS)
def test_floats(key: str) -> None:
    shape = tuple(CHECK[key]["shape"])
    values = rule.randn(key, shape) if key.startswith("input/") else rule.weight(key, shape)
    assert values.dtype == np.float32
    assert values.reshape(-1)[:6].tolist() == CHECK[key]["first6"]
    assert digest(values) == CHECK[key]["sha256"]


@pytest.mark.parametrize("key", LABELS)
def test_labels(key: str) -> None:
    expected = next(value for name, value in CHECK.items() if name.startswith(key + " ("))
    label = LABELS[key](key)
    assert list(label.shape) == expected["shape"]
    assert int(label.sum()) == expected["sum"]
    assert digest(label.astype(np.uint8)) == expected["sha256_uint8"]


def test_every_recorded_tensor_is_checked() -> None:
    assert {key.split(" (")[0] for key in CHECK} == {*FLOATS, *LABELS}


def test_uint8_noise_covers_the_range() -> None:
    noise = rule.uint8_noise("image/jitter", (2, 3, 40, 56))
    assert noise.dtype == np.uint8 and noise.min() == 0 and noise.max() == 255
