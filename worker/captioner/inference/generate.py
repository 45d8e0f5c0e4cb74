"""From image states to captions: the loop over tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from captioner.inference.beams import BeamSearch
from captioner.inference.blip import TextDecoder
from captioner.inference.decoding import Decoding, Generated, Request, Runner, without
from captioner.inference.processors import Processors
from captioner.inference.sampling import Sampling

#: Prompts up to this many tokens go together, whatever their lengths; longer ones with those up
#: to double their length, so that one very long prompt does not lengthen its neighbours' work.
_SHORT_PROMPT = 16
#: On CUDA the question whether an image has ended waits for the device.
_STEPS_BETWEEN_QUESTIONS = 4


def generate(
    decoder: TextDecoder, runner: Runner, states: Tensor, requests: Sequence[Request], sep: int
) -> list[list[Generated]]:
    """Generate captions for all requests.

    Requests that differ in more than tensors can hold side by side run one group after another:
    by number of captions, of frames, by beams or none, and by order of magnitude of the prompt.

    Args:
        decoder: reads prompts.
        runner: runs the decoder on what is generated.
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
        own = states[images].flatten(1, 2)
        decoding = Decoding(decoder, runner, own, group)
        for member, captions in zip(members, _run(decoding, group, sep), strict=True):
            results[member] = captions
    return results


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


def _run(decoding: Decoding, requests: Sequence[Request], sep: int) -> list[list[Generated]]:
    """Caption one group; what is finished leaves the work."""
    device = decoding.device
    beams = _searches_beams(requests[0])
    search = (BeamSearch if beams else Sampling)(requests, sep, device)
    processors = Processors([request.options for request in requests], sep, device)
    results: list[list[Generated]] = [[] for _ in requests]
    going = list(range(len(requests)))
    longest = max(request.options.max_new_tokens for request in requests)

    logits = decoding.begin()
    while True:
        plain = logits.log_softmax(-1)
        processed = processors(plain if beams else logits, decoding.history)
        tokens, parents = search.choose(plain, processed, decoding)
        last = decoding.step + 1 == longest
        if last or device.type == "cpu" or decoding.step % _STEPS_BETWEEN_QUESTIONS == 0:
            ended = search.ended.tolist()
            for place, member in enumerate(going):
                if ended[place]:
                    wanted = requests[member].options.num_return_sequences
                    results[member] = search.results(place, wanted)
            if all(ended):
                return results
            if any(ended):
                kept = without(ended)
                going = [going[place] for place in kept]
                order = torch.tensor(kept, device=device)
                tokens, parents = tokens[order], parents if parents is None else parents[order]
                for part in (decoding, search, processors):
                    part.keep(kept)
        logits = decoding.advance(tokens, parents)
