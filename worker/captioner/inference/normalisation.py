"""Pixels as the model takes them: normalised on the device, or by its own first layer."""

from __future__ import annotations

import torch
from torch import Tensor

from captioner.inference.pixels import PixelSettings

#: What uint8 pixels are moved by where normalisation is folded into the patch projection: integers
#: around 0 are exact in both half types, and products with them round no more than with
#: normalised pixels.
PIXEL_ZERO = 128


def prepare(pixels: Tensor, dtype: torch.dtype, settings: PixelSettings) -> Tensor:
    """Make the model's input, where the pixels are.

    Args:
        pixels: uint8 `[B, side, side, 3]`.
        dtype: the model's.
        settings: the checkpoint's.

    Returns:
        The same shape, in the model's type. In float32 it equals `pixels.normalise` bit for bit.
    """
    if folds_normalisation(dtype):
        return pixels.to(dtype).sub_(PIXEL_ZERO)
    # The order and the types of the arithmetic are those of `pixels.normalise`.
    rescaled = pixels.double().mul_(settings.rescale_factor).float()
    mean, std = rescaled.new_tensor(settings.mean), rescaled.new_tensor(settings.std)
    return rescaled.sub_(mean).div_(std).to(dtype)


def folds_normalisation(dtype: torch.dtype) -> bool:
    """True where the model takes uint8 pixels: float32 and float64 are exact, and fold nothing."""
    return dtype in (torch.float16, torch.bfloat16)


def fold_normalisation(
    weight: Tensor, bias: Tensor, settings: PixelSettings
) -> tuple[Tensor, Tensor]:
    """Let the patch projection take uint8 pixels less `PIXEL_ZERO` instead of normalised ones.

    Args:
        weight: `[W, 3, patch, patch]`.
        bias: `[W]`.
        settings: the checkpoint's.

    Returns:
        Both in float64, of the same shapes.
    """
    mean = torch.tensor(settings.mean, dtype=torch.float64, device=weight.device).view(3, 1, 1)
    std = torch.tensor(settings.std, dtype=torch.float64, device=weight.device).view(3, 1, 1)
    scaled = weight.double() / std
    shift = PIXEL_ZERO * settings.rescale_factor - mean
    return scaled * settings.rescale_factor, bias.double() + (scaled * shift).sum((1, 2, 3))
