"""What is done to pixels on the device is what `pixels.normalise` does, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from captioner.inference.normalisation import PIXEL_ZERO, prepare
from captioner.inference.pixels import PixelSettings, normalise

#: Every value in every colour.
PIXELS = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
BATCH = torch.from_numpy(np.stack([PIXELS, PIXELS[::-1].copy()]))
OTHER = PixelSettings(16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), rescale_factor=1 / 250)


@pytest.mark.parametrize("settings", [PixelSettings(16), OTHER])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normalised_pixels_are_equal_bit_for_bit(
    settings: PixelSettings, dtype: torch.dtype
) -> None:
    made = prepare(BATCH, dtype, settings)
    expected = normalise(PIXELS, settings).transpose(1, 2, 0)
    assert made.dtype == dtype
    assert np.array_equal(made[0].numpy(), expected)
    assert np.array_equal(made[1].numpy(), expected[::-1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_take_the_pixels_themselves(dtype: torch.dtype) -> None:
    made = prepare(BATCH, dtype, PixelSettings(16))
    assert made.dtype == dtype
    assert torch.equal(made.long() + PIXEL_ZERO, BATCH.long())
