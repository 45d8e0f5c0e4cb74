"""The worker's own totals as metrics: it counts, and Prometheus asks."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from captioner import WorkerStats


class Totals(Collector):
    """Shows the last stats the worker told."""

    def __init__(self) -> None:
        """Begin with zeros."""
        self.stats = WorkerStats()

    def describe(self) -> Iterator[Metric]:
        """Names and labels alone."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """One family a number; mean batch size is `pictures` over `batches`."""
        stats = self.stats
        yield CounterMetricFamily(
            "captioner_batches", "Batches the model has finished.", stats.batches
        )
        yield CounterMetricFamily("captioner_pictures", "Pictures in batches.", stats.pictures)
        yield CounterMetricFamily(
            "captioner_engine_busy_seconds", "Seconds the model worked.", stats.busy_seconds
        )
        yield CounterMetricFamily(
            "captioner_engine_restarts", "Engines started anew.", stats.engine_restarts
        )
        errors = CounterMetricFamily(
            "captioner_plugin_errors", "Failures of plugins.", labels=["plugin", "hook"]
        )
        for labels, count in stats.plugin_errors.items():
            errors.add_metric(labels, count)
        yield errors
        deliveries = CounterMetricFamily(
            "captioner_deliveries", "Attempts to deliver events.", labels=["plugin", "outcome"]
        )
        for labels, count in stats.deliveries.items():
            deliveries.add_metric(labels, count)
        yield deliveries
        waiting = GaugeMetricFamily(
            "captioner_unfinished_jobs",
            "Jobs of the installation that have not ended, counted up to 10,000 a state.",
            labels=["state"],
        )
        for state, count in stats.unfinished_jobs.items():
            waiting.add_metric([state], count)
        yield waiting
