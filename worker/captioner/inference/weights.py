"""The weights of a checkpoint: which files hold them, and whether every tensor is as it must be.

Checked from the files' headers before a model is built, so that a wrong file is a clear line and
never a model with random numbers in it, which transformers would return with a warning.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from captioner.errors import ModelLoadError
from captioner.inference.architecture import (
    IGNORED_TENSORS,
    TIED_COPIES,
    Architecture,
    expected_tensors,
)
from captioner.inference.json_files import read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
#: What a shard may be called: nothing that leads out of the folder.
_SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})
_SHOWN = 5


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint folder, in order.

    Raises:
        ModelLoadError: there are none, only pickled ones, or a shard is missing.
    """
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelLoadError(
            f"{folder} has only pickled weights ({_listed(pickles)}), which can run code when they "
            "are opened and are refused; convert them where you trust the file: "
            "BlipForConditionalGeneration.from_pretrained(FOLDER, use_safetensors=False)"
            ".save_pretrained(NEW_FOLDER)"
        )
    raise ModelLoadError(f"{folder} has no weights: expected {WEIGHTS}, or {INDEX} and its shards")


def _shards(folder: Path) -> tuple[Path, ...]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    named = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not named or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in named):
        raise ModelLoadError(f"{folder / INDEX} has no usable weight_map")
    names = sorted(set(named))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelLoadError(f"{folder} lacks the weights {_listed(missing)} that {INDEX} names")
    return tuple(folder / name for name in names)


def check_weights(files: Sequence[Path], architecture: Architecture) -> dict[str, Path]:
    """Check that the files hold exactly the model's tensors, and no others.

    Accepted besides those that transformers 5 writes: `IGNORED_TENSORS`, and `TIED_COPIES` that
    are equal to what they copy.

    Returns:
        The file of every tensor the model needs, by the tensor's name; tied copies left out.

    Raises:
        ModelLoadError: a file is damaged, or a tensor is missing, unknown, of another shape or
            type, stored twice, or a copy that differs.
    """
    expected = expected_tensors(architecture)
    copies = {copy: expected[source] for copy, source in TIED_COPIES.items()}
    found = _locate(files, {**expected, **copies})
    needed = expected if architecture.tied else {**expected, **copies}
    if missing := [name for name in needed if name not in found]:
        raise ModelLoadError(f"the weights lack {len(missing)} tensors: {_listed(missing)}")
    for copy, source in TIED_COPIES.items():
        if copy in found and not torch.equal(_tensor(found, copy), _tensor(found, source)):
            raise ModelLoadError(
                f"the weights contradict themselves: {copy} must be a copy of {source} and differs"
            )
    return {name: found[name] for name in expected}


def _locate(files: Sequence[Path], known: Mapping[str, tuple[int, ...]]) -> dict[str, Path]:
    """Where each tensor is, its shape and type checked. Reads headers only."""
    found: dict[str, Path] = {}
    wrong: list[str] = []
    for path in files:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - the handle is no mapping
                if name in IGNORED_TENSORS:
                    continue
                if name not in known:
                    wrong.append(f"{name} is unknown")
                    continue
                part = file.get_slice(name)
                shape, dtype = tuple(part.get_shape()), part.get_dtype()
                if name in found:
                    wrong.append(f"{name} is stored twice")
                elif shape != known[name]:
                    wrong.append(f"{name} is {list(shape)}, config.json asks {list(known[name])}")
                elif dtype not in _FLOATS:
                    wrong.append(f"{name} is of type {dtype}, not a floating-point one")
                found[name] = path
    if wrong:
        raise ModelLoadError(f"the weights do not fit a BLIP captioner: {_listed(wrong)}")
    return found


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:  # safetensors' own class is untyped
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelLoadError(
            f"{path} is damaged or no safetensors file ({error}); fetch or copy it again"
        ) from None
    except OSError as error:
        raise ModelLoadError(f"cannot read {path}: {error}") from None


def _tensor(found: Mapping[str, Path], name: str) -> torch.Tensor:
    with _opened(found[name]) as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def sha256_of(files: Sequence[Path]) -> str:
    """The SHA-256 of the files' bytes, one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
