from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, BlipImageProcessorPil

from captioner.errors import InvalidRequestError, ModelLoadError
from captioner.inference import pixels as pixels_module
from captioner.inference.pixels import PixelSettings, normalise, read_pixel_settings, resize
from checkpoints import save_tiny_blip

_SIZES = [(1, 1), (1, 300), (17, 5), (31, 33), (32, 32), (211, 97), (480, 640), (1001, 333)]


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height * 10_000 + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), _SIZES)
@pytest.mark.parametrize("size", [32, 45])
def test_pixels_equal_the_pil_processor_bit_for_bit(height: int, width: int, size: int) -> None:
    picture = Image.fromarray(_noise(height, width))
    processor = BlipImageProcessorPil(size={"height": size, "width": size})
    expected = processor(images=picture, return_tensors="np")["pixel_values"][0]

    made = normalise(resize(picture, size), PixelSettings(size))

    assert made.dtype == np.float32
    assert made.shape == (3, size, size)
    assert made.tobytes() == np.ascontiguousarray(expected, dtype=np.float32).tobytes()


def test_pixels_of_a_checkpoint_equal_those_of_the_processor_it_names(tmp_path: Path) -> None:
    folder = save_tiny_blip(tmp_path, layout="hub")
    BlipImageProcessorPil(
        size={"height": 32, "width": 32},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.25, 0.3],
        rescale_factor=1 / 250,
    ).save_pretrained(folder)
    processor: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")  # type: ignore[no-untyped-call]
    settings = read_pixel_settings(processor.to_dict(), 32)
    picture = _noise(77, 51)

    expected = processor(images=Image.fromarray(picture), return_tensors="np")["pixel_values"][0]

    assert settings.mean == (0.5, 0.4, 0.3)
    assert np.array_equal(normalise(resize(picture, 32), settings), expected)


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA", "LA", "YCbCr"])
def test_other_modes_become_rgb_as_in_the_processor(mode: str) -> None:
    picture = Image.fromarray(_noise(20, 30)).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.linear_gradient("L").resize((30, 20)))
    processor = BlipImageProcessorPil(size={"height": 16, "width": 16})

    expected = processor(images=picture, return_tensors="np")["pixel_values"][0]

    assert np.array_equal(normalise(resize(picture, 16), PixelSettings(16)), expected)


def test_premultiplied_grey_is_on_white_like_any_other() -> None:
    picture = Image.fromarray(_noise(20, 30)).convert("LA")
    picture.putalpha(255)
    assert np.array_equal(resize(picture.convert("La"), 16), resize(picture, 16))


def test_an_array_and_its_pil_image_give_the_same_pixels() -> None:
    array = _noise(50, 70)
    assert np.array_equal(resize(array, 32), resize(Image.fromarray(array), 32))
    turned = array.transpose(1, 0, 2)  # not contiguous
    assert np.array_equal(resize(turned, 32), resize(Image.fromarray(turned.copy()), 32))


def test_pixels_already_of_the_size_stay_as_they_are() -> None:
    array = _noise(32, 32)
    assert np.array_equal(resize(array, 32), array)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((32, 32), np.uint8),
        np.zeros((32, 32, 4), np.uint8),
        np.zeros((32, 32, 3), np.float32),
        np.zeros((0, 32, 3), np.uint8),
        np.zeros((32, 0, 3), np.uint8),
        Image.new("RGB", (0, 5)),
        "a path",
        None,
    ],
)
def test_other_shapes_and_types_are_refused(picture: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"uint8|no pixels"):
        resize(picture, 32)  # type: ignore[arg-type]


def test_settings_left_out_are_the_published_ones() -> None:
    settings = read_pixel_settings({}, 384)
    default = BlipImageProcessorPil()
    assert settings.mean == tuple(default.image_mean)
    assert settings.std == tuple(default.image_std)
    assert settings.rescale_factor == default.rescale_factor


@pytest.mark.parametrize(
    "processor",
    [
        {"size": 384},
        {"size": {"height": 384, "width": 384}},
        {"do_pad": True, "do_center_crop": None, "resample": 3},
    ],
)
def test_settings_found_in_the_wild_are_accepted(processor: dict[str, object]) -> None:
    assert read_pixel_settings(processor, 384).size == 384


@pytest.mark.parametrize(
    ("processor", "named"),
    [
        ({"size": {"height": 224, "width": 224}}, "size"),
        ({"size": {"shortest_edge": 384}}, "size"),
        ({"do_resize": False}, "do_resize"),
        ({"do_rescale": False}, "do_rescale"),
        ({"do_normalize": False}, "do_normalize"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"resample": 2}, "resample"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"rescale_factor": float("inf")}, "rescale_factor"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "image_mean"),
        ({"image_mean": [0.5, 0.5, 10**400]}, "image_mean"),
        ({"image_std": [0.5, 0.5, float("nan")]}, "image_std"),
        ({"image_mean": [0.5]}, "image_mean"),
        ({"image_mean": "abc"}, "image_mean"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std"),
    ],
)
def test_settings_that_would_give_other_pixels_are_refused(
    processor: dict[str, object], named: str
) -> None:
    with pytest.raises(ModelLoadError, match=named):
        read_pixel_settings(processor, 384)


def test_the_module_needs_no_torch() -> None:
    tree = ast.parse(Path(pixels_module.__file__).read_text(encoding="utf-8"))
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    ]
    assert not {"torch", "transformers"} & {module.partition(".")[0] for module in modules}
