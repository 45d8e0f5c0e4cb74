"""Metrics for Prometheus: jobs, batches, deliveries, plugin errors, and what waits.

`CAPTIONER_METRICS_PORT` opens an endpoint on the worker; without it the numbers are only kept.
"""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack

from prometheus_client import REGISTRY, Counter, Histogram, start_http_server

from captioner import Event, WorkerStats, hookimpl
from captioner_metrics.totals import Totals

__all__ = ["JOBS", "REGISTRY", "STAGE_SECONDS", "TOTALS"]

logger = logging.getLogger(__name__)

JOBS = Counter("captioner_jobs", "Jobs ended by this worker.", ["state", "error_code"])
STAGE_SECONDS = Histogram(
    "captioner_stage_seconds",
    "Seconds a job spent in a stage.",
    ["stage"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
TOTALS = Totals()
REGISTRY.register(TOTALS)

_endpoint = ExitStack()


@hookimpl
def worker_ready() -> None:
    """Open the endpoint where the environment asks for one."""
    port = os.environ.get("CAPTIONER_METRICS_PORT")
    if not port:
        return
    address = os.environ.get("CAPTIONER_METRICS_ADDRESS", "127.0.0.1")
    server, thread = start_http_server(int(port), addr=address)
    _endpoint.callback(thread.join)
    _endpoint.callback(server.server_close)
    _endpoint.callback(server.shutdown)
    logger.info("metrics at http://%s:%s/metrics", address, port)


@hookimpl
def observe(event: Event) -> None:
    """Count a job that ended."""
    JOBS.labels(event.state, event.error_code or "").inc()
    for stage, seconds in event.timings:
        STAGE_SECONDS.labels(stage).observe(seconds)


@hookimpl
def worker_stats(stats: WorkerStats) -> None:
    """Keep what the worker has done so far."""
    TOTALS.stats = stats


@hookimpl
def worker_stopping() -> None:
    """Close the endpoint."""
    _endpoint.close()
