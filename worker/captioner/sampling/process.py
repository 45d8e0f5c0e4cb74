"""The life of a decoder: a process that samples one media after the other, within limits."""

from __future__ import annotations

import logging
import os
from multiprocessing.connection import Connection
from typing import Any

from captioner.errors import JobError
from captioner.logs import configure_logging, job_context
from captioner.sampling.inline import InlineSampler, open_plugins
from captioner.sampling.limits import allow_cpu, limit_process, resident_bytes
from captioner.sampling.wire import Ready, pack
from captioner.settings import LogSettings, MediaSettings, PluginSettings

#: A decoder is replaced after so many jobs, or when it has grown by so much: libraries leak.
JOBS_PER_DECODER = 5_000
GROWTH_BYTES = 256 * 2**20

logger = logging.getLogger(__name__)


def run_decoder(
    connection: Connection[Any, Any],
    plugins: PluginSettings,
    limits: MediaSettings,
    log: LogSettings,
) -> None:
    """Take jobs from the pipe and send their frames, until the pipe ends.

    A job is a tuple of media, request, image size and times that are done; `wire` has what comes
    back. The pipe is the flow control: it holds less than one frame of a real model's size, so that
    a decoder is never far ahead of who reads.
    """
    log_stream = os.fdopen(os.dup(2), "w", buffering=1)
    # libtiff and others print what they think of a file; in the worker's log it would be noise.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    # Before logging is set up: the worker itself has told of plugins that do not load.
    sampler = InlineSampler(open_plugins(plugins, limits), limits)
    configure_logging(log, log_stream)
    try:
        _serve(connection, sampler, limits)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the worker needs no more, or is gone
    except Exception:
        logger.exception("a decoder failed")
        raise


def _serve(connection: Connection[Any, Any], sampler: InlineSampler, limits: MediaSettings) -> None:
    limit_process(limits.decoder_memory_bytes, limits.max_image_bytes)
    largest_bytes = resident_bytes() + GROWTH_BYTES
    connection.send_bytes(pack(Ready()))
    for number in range(1, JOBS_PER_DECODER + 1):
        media, request, image_size, done_seconds = connection.recv()
        error = None
        with job_context(request.id):
            try:
                allow_cpu(limits.decode_timeout_seconds)
                for frame in sampler.sample(media, request, image_size, done_seconds=done_seconds):
                    connection.send_bytes(pack(frame))
                    allow_cpu(limits.decode_timeout_seconds)
            except JobError as failure:
                error = failure
        retires = number == JOBS_PER_DECODER or resident_bytes() > largest_bytes
        connection.send_bytes(pack(Ready(error, retires)))
