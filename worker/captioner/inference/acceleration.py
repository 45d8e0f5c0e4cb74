"""The one place where speed is switched on; without it the model runs as blip.py is written."""

from __future__ import annotations

from captioner.inference.blip import Blip
from captioner.inference.decoding import EagerRunner, Runner


def accelerate(model: Blip) -> Runner:
    """Prepare a loaded model for its device and type, and say what is to run its decoder."""
    return EagerRunner(model.text)
