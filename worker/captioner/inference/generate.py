"""From image states to captions: the loop over tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from captioner.inference.beams import BeamSearch
from captioner.inference.captions import Generated, Request, start_captions
from captioner.inference.decoding import Decoding, without
from captioner.inference.processors import Processors
from captioner.inference.runners import Runner
from captioner.inference.sampling import Sampling

#: Prompts up to this many tokens go together, whatever their lengths; longer ones with those up
#: to double their length, so that one very long prompt does not lengthen its neighbours' work.
_SHORT_PROMPT = 16


def generate(
    runner: Runner, states: Tensor, requests: Sequence[Request], sep: int
) -> list[list[Generated]]:
    """Generate captions for all requests.

    Requests that differ in more than tensors can hold side by side run one group after another:
    by number of captions, of frames, by beams or none, and by order of magnitude of the prompt.

    Args:
        runner: runs the model.
        states: `[images, N, W]`, of all the images that requests name.
        requests: in any order and mixture.
        sep: the token that ends a caption.

    Returns:
        Per request its captions, best first.
    """
    results: list[list[Generated]] = [[] for _ in requests]
    for members in _groups(requests):
        group = [requests[member] for member in members]
        images = torch.tensor([one.images for one in group], device=states.device)
        decoding = place(runner, states[images].flatten(1, 2), group, sep)
        for member, captions in zip(members, _run(decoding, runner, group), strict=True):
            results[member] = captions
    return results


def place(runner: Runner, states: Tensor, requests: Sequence[Request], sep: int) -> Decoding:
    """Put one group's captions to where they are to be generated.

    Args:
        runner: runs the model.
        states: `[B, N, W]`.
        requests: B.
        sep: the token that ends a caption.
    """
    captions = start_captions(requests, runner.multiple)
    search = (BeamSearch if _searches_beams(requests[0]) else Sampling).of(requests, captions, sep)
    return runner.place(states, captions, search, Processors.of(requests, captions, sep))


def _groups(requests: Sequence[Request]) -> Iterable[list[int]]:
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, request in enumerate(requests):
        key = (
            _searches_beams(request),
            request.captions,
            len(request.images),
            (max(len(request.prompt), _SHORT_PROMPT) - 1).bit_length(),
        )
        groups.setdefault(key, []).append(index)
    return groups.values()


def _searches_beams(request: Request) -> bool:
    return request.options.num_beams > 1


def _run(decoding: Decoding, runner: Runner, requests: Sequence[Request]) -> list[list[Generated]]:
    """Caption one group; what is finished leaves the work."""
    results: list[list[Generated]] = [[] for _ in requests]
    going = list(range(len(requests)))
    longest = max(request.options.max_new_tokens for request in requests)

    for step in range(1, longest + 1):
        if decoding.recordable:
            runner.do(decoding, Decoding.start if step == 1 else Decoding.step)
        else:
            decoding.choose(runner.do(decoding, Decoding.begin if step == 1 else Decoding.read))
        if step < longest and step % runner.steps_between_questions:
            continue
        ended = decoding.search.ended.tolist()
        places = [place for place, one in enumerate(ended) if one]
        captions = decoding.search.results(decoding.captions, places) if places else []
        for place, best in zip(places, captions, strict=True):
            member = going[place]
            results[member] = best[: requests[member].options.num_return_sequences]
        if all(ended):
            break
        if places:
            kept = without(ended)
            going = [going[place] for place in kept]
            decoding.keep(kept)
    return results
