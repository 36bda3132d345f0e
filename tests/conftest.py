"""Lets tests import what they share: ``from parity.rule import ...``."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(__file__))
