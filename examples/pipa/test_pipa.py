"""PiPa: the two losses against numpy, what is sampled, gradients, and recipes through the real command."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from udaseg import cli
from udaseg.config.load import load
from udaseg.config.plugins import load_plugins

HERE = Path(__file__).parent
load_plugins([str(HERE / "pipa.py")])

import pipa  # noqa: E402 - the plugin is importable once it is loaded
