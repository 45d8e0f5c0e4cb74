"""When image states are seen as they are: for many images of which little is asked."""

from __future__ import annotations

import pytest
import torch

from captioner.inference.captions import Request, start_captions
from captioner.inference.checkpoint import open_checkpoint
from captioner.inference.fused_weights import load_blip
from captioner.inference.unprojected import UnprojectedRunner
from captioner.options import GenerationOptions
from checkpoints import save_tiny_blip


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> UnprojectedRunner:
    folder = save_tiny_blip(tmp_path_factory.mktemp("tiny"))
    checkpoint = open_checkpoint(str(folder))
    return UnprojectedRunner(load_blip(checkpoint, torch.device("cpu"), torch.float32))


@pytest.mark.parametrize(
    ("images", "beams", "prompt_tokens", "projected"),
    [
        (4, 3, 1, False),
        (4, 1, 32, False),
        (3, 3, 1, True),
        (4, 4, 1, True),
        (4, 1, 33, True),
    ],
)
def test_states_are_projected_where_much_is_asked(
    runner: UnprojectedRunner, images: int, beams: int, prompt_tokens: int, projected: bool
) -> None:
    options = GenerationOptions(num_beams=beams)
    prompts = [(1,)] * (images - 1) + [(1,) * prompt_tokens]
    requests = [Request((index,), prompt, options, seed=0) for index, prompt in enumerate(prompts)]
    states = torch.zeros(images, 5, runner.model.vision.positions.shape[1])
    cache = runner._new_cache(states, start_captions(requests, 1))
    assert bool(cache.image_keys) is projected
    assert cache.image_states == ([] if projected else [states])
