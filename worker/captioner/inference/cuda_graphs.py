"""Steps of the decoder on CUDA, recorded once and replayed.

A step (read the newest tokens, choose the next ones) is some 400 small kernels, which take longer
to launch one by one than to run. A recording launches them all at once, but always on the same
memory and for the same number of images. So:

- cache and state lie in buffers that stay, a set of them for each number of captions and slots;
- recordings for 1, 2, 4 … images work on the first rows of the same buffers, and are made when they
  are first needed; rows without an image compute something that nobody reads;
- where choosing is not the same work for every batch (sampling, n-grams) only reading is recorded.

What does not fit (large batches, many captions), and everything once a recording has failed or has
not given what the eager path gives, runs as `EagerRunner` runs it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from captioner.errors import describe
from captioner.inference.blip import Blip, Cache, TextDecoder
from captioner.inference.captions import Captions
from captioner.inference.decoding import Decoding, Search
from captioner.inference.processors import Processors
from captioner.inference.recorded_encoder import RecordedEncoder
from captioner.inference.recordings import Record, RecordOnCuda, checked, next_power_of_two
from captioner.inference.runners import EagerRunner, Work

_logger = logging.getLogger(__name__)

#: Image states in all sets of buffers, 256 images' of BLIP-large (5.4 GB in float16); with more, or
#: with more captions of each, steps are no longer bound by launches.
_MOST_STATES = 256 * 577
_MOST_CAPTIONS = 8
#: Slots are rounded up to a multiple, so that requests of different lengths share buffers.
_SLOTS = 32
#: Sets of buffers kept, those longest unused let go first.
_MOST_BUFFERS = 3
#: Recordings on one set of buffers: clients choose how long prompts are, and must not fill the
#: memory with them.
_MOST_RECORDINGS = 64


@dataclass(slots=True)
class _Buffers:
    """Memory that recordings read and write."""

    #: Of the most images.
    decoder: TextDecoder
    states: Tensor
    cache: Cache
    captions: Captions
    #: By the kind of rules that recordings are for.
    rules: dict[Hashable, tuple[Search, Processors]] = field(default_factory=dict)
    #: By number of rows and what is recorded.
    recordings: dict[Hashable, tuple[Callable[[], None], Tensor]] = field(default_factory=dict)

    def take(
        self, states: Tensor, captions: Captions, search: Search, processors: Processors
    ) -> Decoding:
        """What is to be generated, in these buffers."""
        images = len(states)
        decoding = Decoding(
            decoder=self.decoder,
            states=self.states[:images].copy_(states),
            cache=self.cache.first(images),
            captions=captions.moved_to(self.captions),
            search=search,
            processors=processors,
        )
        if not decoding.recordable:
            decoding.search = search.to(states.device)
            decoding.processors = processors.to(states.device)
            return decoding
        kind = _rules(decoding)
        if kind not in self.rules:
            self.rules[kind] = (
                search.to(states.device).blank(len(self.states)),
                processors.to(states.device).blank(len(self.states)),
            )
        decoding.search = search.moved_to(self.rules[kind][0])
        decoding.processors = processors.moved_to(self.rules[kind][1])
        return decoding

    def first(self, rows: int, decoding: Decoding) -> Decoding:
        """So many rows, the first of which are those of `decoding`."""
        search, processors = decoding.search, decoding.processors
        if decoding.recordable:
            search, processors = self.rules[_rules(decoding)]
            search, processors = search.first(rows), processors.first(rows)
        # The length of the prompts is not in a tensor.
        captions = replace(self.captions, prompt_slots=decoding.captions.prompt_slots)
        return Decoding(
            decoder=self.decoder,
            states=self.states[:rows],
            cache=self.cache.first(rows),
            captions=captions.first(rows),
            search=search,
            processors=processors,
        )


class GraphRunner:
    """Replays recordings wherever there can be some; see `Runner`."""

    multiple = _SLOTS
    #: Each question waits for the device.
    steps_between_questions = 4

    def __init__(self, model: Blip, record: Record | None = None) -> None:
        """`record` is `RecordOnCuda` or, in tests, a stand-in that needs no CUDA."""
        self.model = model
        self._eager = EagerRunner(model)
        self._record = record or RecordOnCuda(model.vision.positions.device)
        self._encoder = RecordedEncoder(model.vision, self._record)
        self._kept: OrderedDict[tuple[int, ...], _Buffers] = OrderedDict()
        self._current: _Buffers | None = None
        self._works = True

    def encode(self, pixels: Tensor) -> Tensor:
        """See `Runner.encode`."""
        return self._encoder(pixels)

    def place(
        self, states: Tensor, captions: Captions, search: Search, processors: Processors
    ) -> Decoding:
        """See `Runner.place`."""
        self._current = None
        rows = next_power_of_two(len(states)) * states.shape[1]
        fits = rows <= _MOST_STATES and captions.ids.shape[1] <= _MOST_CAPTIONS
        if self._works and fits:
            try:
                self._current = self._buffers(states, captions)
                return self._current.take(states, captions, search, processors)
            except torch.OutOfMemoryError:
                self.release()
        return self._eager.place(states, captions, search, processors)

    def do(self, decoding: Decoding, work: Work) -> Tensor:
        """See `Runner.do`: replayed, recorded, or else as written."""
        buffers, images = self._current, decoding.images
        if buffers is None:
            return work(decoding)
        rows = next_power_of_two(images)
        key = (
            rows,
            work,
            _rules(decoding) if work in (Decoding.start, Decoding.step) else None,
            decoding.captions.prompt_slots if work in (Decoding.begin, Decoding.start) else None,
        )
        if key in buffers.recordings:
            run_again, result = buffers.recordings[key]
            run_again()
            return result[:images]
        if len(buffers.recordings) >= _MOST_RECORDINGS:
            buffers.recordings.clear()
        try:
            buffers.recordings[key] = self._recorded(buffers.first(rows, decoding), images, work)
        except RuntimeError as error:
            self.release()
            # Memory may be there the next time; what else can happen would happen again.
            self._works = isinstance(error, torch.OutOfMemoryError)
            _logger.warning("decoding without CUDA graphs: %s", describe(error))
            return work(decoding)
        return buffers.recordings[key][1][:images]

    def release(self) -> None:
        """Give back all buffers and recordings."""
        self._current = None
        self._kept.clear()
        self._encoder.release()

    def _recorded(
        self, decoding: Decoding, images: int, work: Work
    ) -> tuple[Callable[[], None], Tensor]:
        """Record some work, and leave it done once; see `checked`."""
        # The cache is left out: what is written there twice is the same.
        state = [*decoding.captions.tensors(), *decoding.search.tensors()]
        before = [tensor.clone() for tensor in state]

        def undo() -> None:
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)

        return checked(self._record, lambda: work(decoding), images, undo)

    def _buffers(self, states: Tensor, captions: Captions) -> _Buffers:
        """A set of buffers for so many images or more, an old one if there is one."""
        rows = next_power_of_two(len(states))
        key = (*captions.seen.shape[1:], captions.ids.shape[2], states.shape[1])
        found = self._kept.pop(key, None)
        if found is None or len(found.states) < rows:
            found = None  # its memory first
            while len(self._kept) >= _MOST_BUFFERS or (
                self._kept and self._states_kept() + rows * states.shape[1] > _MOST_STATES
            ):
                self._kept.popitem(last=False)
            blank = states.new_zeros(rows, *states.shape[1:])
            found = _Buffers(
                decoder=self.model.text,
                states=blank,
                cache=self.model.text.new_cache(blank, captions.seen.shape[2]),
                captions=captions.to(states.device).blank(rows),
            )
        self._kept[key] = found
        return found

    def _states_kept(self) -> int:
        return sum(one.states.shape[0] * one.states.shape[1] for one in self._kept.values())


def _rules(decoding: Decoding) -> Hashable:
    """What steps of two batches must have in common to be the same work."""
    processors = decoding.processors
    return (type(decoding.search), processors.repetition_asked, processors.least_asked)
