from __future__ import annotations

import urllib.request
from datetime import UTC, datetime
from uuid import uuid4

import pytest

import captioner_metrics
from captioner import Event, JobState
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
