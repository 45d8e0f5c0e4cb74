"""From a decoded frame to an upright 8-bit RGB picture, as a player would show it."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, cast

import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Colorspace, ColorTrc
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Mapping

    from av.buffer import Buffer
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

#: Untagged pictures of so many lines are BT.709, as players have it; smaller ones BT.601.
HD_LINES = 720
#: What paper white is in HDR, in candela a square metre (ITU-R BT.2408); it becomes SDR's white.
WHITE_NITS = 203.0
#: Up to this part of paper white light stays as it is; what is brighter nears 1.
KNEE = 0.75

_UNTAGGED = 2
_HUNDREDTH = 655
_HDR_SIDE = 1_024
_BT2020_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]],
    np.float32,
)
#: Where the picture's right and its lower side point to on the screen: to the right (1) or to the
#: left (-1), and down or up.
_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset(
    {
        Image.Transpose.TRANSPOSE,
        Image.Transpose.ROTATE_270,
        Image.Transpose.TRANSVERSE,
        Image.Transpose.ROTATE_90,
    }
)


def upright_picture(frame: VideoFrame) -> Image.Image:
    """The frame as mode RGB, turned and mirrored as its file says, transparency on white.

    HDR (PQ, HLG) is mapped to what an SDR screen shows: paper white is nearly white, what is
    brighter is compressed. Anamorphic pixels are not stretched, as frames are squared anyway:
    `seen_ratio` tells how they are seen.
    """
    if frame.color_trc in (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67):
        picture = Image.fromarray(_from_hdr(frame))
    elif any(component.is_alpha for component in frame.format.components):
        rgba = Image.fromarray(_reformatted(frame, "rgba"))
        picture = Image.new("RGB", rgba.size, "white")
        picture.paste(rgba, mask=rgba.getchannel("A"))
    else:
        picture = Image.fromarray(_reformatted(frame, "rgb24"))
    turn = _turn(frame)
    return picture if turn is None else picture.transpose(turn)


def seen_ratio(frame: VideoFrame, pixel_ratio: float) -> float:
    """Width over height of the upright picture on a screen, `pixel_ratio` being that of a pixel."""
    ratio = frame.width * pixel_ratio / frame.height
    return 1 / ratio if _turn(frame) in _SIDEWAYS else ratio


def _turn(frame: VideoFrame) -> Image.Transpose | None:
    """From the display matrix itself: its angle alone turns mirrored pictures upside down."""
    # PyAV's own types know of one kind alone.
    side_data = cast("Mapping[Type, Buffer]", frame.side_data)
    if (matrix := side_data.get(Type.DISPLAYMATRIX)) is None:
        return None
    right_x, right_y, _, down_x, down_y = struct.unpack_from("=5i", bytes(matrix))
    return _TURNS.get((_sign(right_x), _sign(right_y), _sign(down_x), _sign(down_y)))


def _sign(fixed: int) -> int:
    """-1, 0 or 1; what is less than a hundredth in 16.16 fixed point is rounding."""
    return 0 if abs(fixed) < _HUNDREDTH else 1 if fixed > 0 else -1


def _reformatted(frame: VideoFrame, pixel_format: str) -> NDArray[np.uint8]:
    """`[height, width, channels]`; deeper samples are rounded to 8 bits."""
    colorspace = None
    if frame.colorspace == _UNTAGGED and frame.height >= HD_LINES:
        colorspace = Colorspace.ITU709
    rgb = frame.reformat(format=pixel_format, src_colorspace=colorspace, threads=1)
    return rgb.to_ndarray().astype(np.uint8, copy=False)


def _from_hdr(frame: VideoFrame) -> NDArray[np.uint8]:
    """Scaled down first: the arithmetic is in floats."""
    scale = min(1.0, _HDR_SIDE / max(frame.width, frame.height))
    rgb = frame.reformat(
        width=max(1, round(frame.width * scale)),
        height=max(1, round(frame.height * scale)),
        format="rgb48le",
        threads=1,
    ).to_ndarray()
    is_pq = frame.color_trc == ColorTrc.SMPTE2084
    codes = np.linspace(0, 1, 2**16, dtype=np.float32)
    light = (_pq_nits(codes) if is_pq else _hlg_nits(codes)) / np.float32(WHITE_NITS)
    linear = np.asarray(light[rgb] @ _BT2020_TO_BT709.T, np.float32)
    return np.rint(_srgb(_compressed(linear)) * 255).astype(np.uint8)


def _pq_nits(codes: NDArray[np.float32]) -> NDArray[np.float32]:
    """SMPTE ST 2084."""
    power = codes ** np.float32(1 / 78.84375)
    light = np.maximum(power - 0.8359375, 0) / (18.8515625 - 18.6875 * power)
    return np.asarray(10_000 * light ** (1 / 0.1593017578125), np.float32)


def _hlg_nits(codes: NDArray[np.float32]) -> NDArray[np.float32]:
    """ARIB STD-B67, on a screen of 1,000 candela; its gamma taken for each channel alone."""
    bright = (np.exp((codes - 0.55991073) / 0.17883277) + 0.28466892) / 12
    scene = np.where(codes <= 0.5, codes**2 / 3, bright)
    return np.asarray(1_000 * scene**1.2, np.float32)


def _compressed(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light of which 1 is paper white, bent so that lights and reflections fit below 1, too."""
    light = np.maximum(light, 0)
    room = 1 - KNEE
    bent = KNEE + room * (1 - np.exp((KNEE - light) / room))
    return np.asarray(np.where(light <= KNEE, light, bent), np.float32)


def _srgb(linear: NDArray[np.float32]) -> NDArray[np.float32]:
    low = linear * 12.92
    return np.asarray(
        np.where(linear <= 0.0031308, low, 1.055 * np.maximum(linear, 1e-6) ** (1 / 2.4) - 0.055),
        np.float32,
    )
