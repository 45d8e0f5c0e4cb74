from __future__ import annotations

import urllib.request
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from prometheus_client import generate_latest

import captioner_metrics
from captioner import Event, JobState, WorkerStats
from captioner.plugins import load_plugins
from captioner.settings import PluginSettings, Settings
from servers import free_port


def test_jobs_are_counted_and_the_endpoint_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("CAPTIONER_METRICS_PORT", str(port))
    plugins = load_plugins(PluginSettings(enabled=("metrics",)))
    plugins.notify("worker_ready", settings=Settings())
    event = Event(
        job_id=uuid4(),
        type="caption.failed",
        state=JobState.FAILED,
        attempt=1,
        occurred_at=datetime.now(UTC),
        error_code="decode_failed",
        timings=(("fetch", 0.02),),
    )
    sample = {"state": "failed", "error_code": "decode_failed"}
    before = captioner_metrics.REGISTRY.get_sample_value("captioner_jobs_total", sample) or 0
    plugins.notify("observe", event=event)
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    assert f'captioner_jobs_total{{error_code="decode_failed",state="failed"}} {before + 1}' in text
    assert 'captioner_stage_seconds_bucket{le="0.025",stage="fetch"}' in text
    plugins.notify("worker_stopping")
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=10)


def test_the_workers_totals_are_shown_as_it_told_them() -> None:
    plugins = load_plugins(PluginSettings(enabled=("metrics",)))
    stats = WorkerStats(
        batches=3,
        pictures=70,
        busy_seconds=1.5,
        engine_restarts=1,
        plugin_errors={("mine", "observe"): 4},
        deliveries={("webhook", "delivered"): 9, ("webhook", "dead"): 1},
        unfinished_jobs={"queued": 10_000, "processing": 96},
    )
    plugins.notify("worker_stats", stats=stats)
    lines = generate_latest(captioner_metrics.REGISTRY).decode().splitlines()
    shown = [line for line in lines if line.startswith("captioner_") and "_created" not in line]
    totals = [line for line in shown if not line.startswith(("captioner_jobs", "captioner_stage"))]
    assert sorted(totals) == [
        "captioner_batches_total 3.0",
        'captioner_deliveries_total{outcome="dead",plugin="webhook"} 1.0',
        'captioner_deliveries_total{outcome="delivered",plugin="webhook"} 9.0',
        "captioner_engine_busy_seconds_total 1.5",
        "captioner_engine_restarts_total 1.0",
        "captioner_pictures_total 70.0",
        'captioner_plugin_errors_total{hook="observe",plugin="mine"} 4.0',
        'captioner_unfinished_jobs{state="processing"} 96.0',
        'captioner_unfinished_jobs{state="queued"} 10000.0',
    ]
