"""From media to frames: in the caller's thread, or in limited processes of their own."""

from __future__ import annotations

from captioner.sampling.api import Sampler
from captioner.sampling.inline import InlineSampler, open_plugins
from captioner.sampling.pool import ChildSampler, decoder_count, open_sampler

__all__ = [
    "ChildSampler",
    "InlineSampler",
    "Sampler",
    "decoder_count",
    "open_plugins",
    "open_sampler",
]
