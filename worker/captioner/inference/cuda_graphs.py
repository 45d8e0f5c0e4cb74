"""The decoder on CUDA, recorded once and replayed at every step.

A step is some 300 small kernels, which take longer to launch one by one than to run. A recording
launches them all at once, but always on the same memory and for the same number of images. So:

- cache and inputs lie in buffers that stay, a set of them for each number of captions and slots;
- recordings for 1, 2, 4 … images work on the first rows of the same buffers, and are made when they
  are first needed; rows without an image compute something that nobody reads;
- a step looks at all slots, and the mask says which count.

What does not fit (large batches, many captions), and everything once a recording has failed or has
not given what the decoder gives, runs as `EagerRunner` runs it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from captioner.errors import describe
from captioner.inference.blip import Cache, TextDecoder, Tokens
from captioner.inference.decoding import EagerRunner

_logger = logging.getLogger(__name__)

#: Image states in one set of buffers, 64 images' of BLIP-large (1.4 GB in float16); with more, or
#: with more captions of each, steps are no longer bound by launches.
_MOST_STATES = 64 * 577
_MOST_CAPTIONS = 8
#: Slots are rounded up to a multiple, so that requests of different lengths share buffers.
_SLOTS = 32
#: Sets of buffers kept, those longest unused let go first.
_MOST_BUFFERS = 3
#: Between a recording and the decoder, which run the same kernels.
_TOLERANCE = 1e-2

#: Runs a function and records it. Returns what runs it again, and the tensor with its result.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]


@dataclass(slots=True)
class _Buffers:
    """Memory that recordings read and write."""

    #: Rows, the most images.
    images: int
    #: Of all rows.
    cache: Cache
    #: Of all rows, with a mask and all slots used.
    tokens: Tokens
    #: By number of rows.
    recordings: dict[int, tuple[Callable[[], None], Tensor]] = field(default_factory=dict)


class GraphRunner:
    """Replays recordings of the decoder wherever there can be some; see `Runner`."""

    def __init__(self, decoder: TextDecoder, record: Record | None = None) -> None:
        """`record` is `record_on_cuda` or, in tests, a stand-in that needs no CUDA."""
        self._decoder, self._eager = decoder, EagerRunner(decoder)
        self._record = record or record_on_cuda
        self._kept: OrderedDict[tuple[int, ...], _Buffers] = OrderedDict()
        self._current: _Buffers | None = None
        self._works = True

    def look(self, states: Tensor, captions: int, slots: int) -> Cache:
        """See `Runner.look`."""
        self._current = None
        images, states_each = states.shape[:2]
        fresh = self._decoder.look(states, slots)
        rows = _rows(images)
        if not self._works or rows * states_each > _MOST_STATES or captions > _MOST_CAPTIONS:
            return fresh
        try:
            buffers = self._buffers(rows, captions, -(-slots // _SLOTS) * _SLOTS, fresh)
        except torch.OutOfMemoryError:
            self.release()
            return fresh
        for kept, new in (
            (buffers.cache.image_keys, fresh.image_keys),
            (buffers.cache.image_values, fresh.image_values),
        ):
            for target, source in zip(kept, new, strict=True):
                target[:images] = source
        # A slot that is not seen counts 0 times; times an infinity left there that would be NaN.
        for target in (*buffers.cache.token_keys, *buffers.cache.token_values):
            target.zero_()
        self._current = buffers
        return buffers.cache.first(images)

    def read(self, tokens: Tokens, cache: Cache) -> Tensor:
        """See `Runner.read`; the result is overwritten by the next call."""
        buffers, images = self._current, len(tokens.ids)
        if buffers is None:
            return self._eager.read(tokens, cache)
        _fill(buffers.tokens, tokens)
        rows = _rows(images)
        if rows not in buffers.recordings and not self._add_recording(buffers, rows, images):
            return self._eager.read(tokens, cache)
        run_again, logits = buffers.recordings[rows]
        run_again()
        return logits[:images]

    def release(self) -> None:
        """Give back all buffers and recordings."""
        self._current = None
        self._kept.clear()

    def _buffers(self, rows: int, captions: int, slots: int, like: Cache) -> _Buffers:
        """A set of buffers for so many images or more, an old one if there is one."""
        key = (captions, slots, like.image_keys[0].shape[2])
        found = self._kept.pop(key, None)
        if found is None or found.images < rows:
            found = None  # its memory first
            while len(self._kept) >= _MOST_BUFFERS:
                self._kept.popitem(last=False)
            found = _allocate(rows, captions, slots, like)
        self._kept[key] = found
        return found

    def _add_recording(self, buffers: _Buffers, rows: int, images: int) -> bool:
        """Record a step for so many rows, and check it on the images at hand.

        Where that does not work nothing is recorded any more, and the images at hand go on without.
        """
        tokens = buffers.tokens
        mask = None if tokens.mask is None else tokens.mask[:rows]
        first = replace(tokens, ids=tokens.ids[:rows], positions=tokens.positions[:rows], mask=mask)
        cache = buffers.cache.first(rows)
        try:
            expected = self._eager.read(first, cache)[:images].clone()
            run_again, logits = self._record(lambda: self._eager.read(first, cache))
            logits.zero_()
            run_again()
            _require_equal(logits[:images], expected)
        except RuntimeError as error:
            self.release()
            # Memory may be there the next time; what else can happen would happen again.
            self._works = isinstance(error, torch.OutOfMemoryError)
            _logger.warning("decoding without CUDA graphs: %s", describe(error))
            return False
        buffers.recordings[rows] = (run_again, logits)
        return True


def _require_equal(found: Tensor, expected: Tensor) -> None:
    if not torch.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True):
        raise RuntimeError("the recording does not give what the decoder gives")


def record_on_cuda(run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record a function as a CUDA graph. See `Record`."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()  # libraries set up their work space at the first run, which cannot be recorded
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    # The other threads' business with the device is not to end the recording.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()
    return graph.replay, result


def _rows(images: int) -> int:
    """The next power of two."""
    return 1 << (images - 1).bit_length()


def _allocate(rows: int, captions: int, slots: int, like: Cache) -> _Buffers:
    def buffer(tensor: Tensor, length: int) -> Tensor:
        return tensor.new_zeros(rows, tensor.shape[1], length, tensor.shape[3])

    states = like.image_keys[0].shape[2]
    ids = torch.zeros(rows, captions, dtype=torch.long, device=like.image_keys[0].device)
    return _Buffers(
        images=rows,
        cache=Cache(
            image_keys=[buffer(tensor, states) for tensor in like.image_keys],
            image_values=[buffer(tensor, states) for tensor in like.image_values],
            token_keys=[buffer(tensor, slots) for tensor in like.token_keys],
            token_values=[buffer(tensor, slots) for tensor in like.token_values],
        ),
        tokens=Tokens(
            ids=ids,
            positions=torch.zeros_like(ids),
            slots=torch.arange(captions, device=ids.device),
            used=slots,
            mask=like.token_keys[0].new_zeros(rows, 1, captions, slots),
        ),
    )


def _fill(kept: Tokens, tokens: Tokens) -> None:
    """Copy what is to be read into the first rows of the buffers."""
    images = len(tokens.ids)
    kept.ids[:images] = tokens.ids
    kept.positions[:images] = tokens.positions
    kept.slots.copy_(tokens.slots)
    if kept.mask is not None:
        kept.mask[:images] = -torch.inf
        kept.mask[:images, ..., : tokens.used] = 0 if tokens.mask is None else tokens.mask
