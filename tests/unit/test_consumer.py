"""Which tasks a worker knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from celery import Task
from pydantic import SecretStr

from captioner.celery import CAPTION_TASK, DELIVER_TASK, SUBMIT_TASK, create_app
from captioner.consumer import Consumer
from captioner.settings import BrokerSettings, Settings


def nothing() -> None:
    """What a site's own task does."""


def test_a_worker_knows_the_applications_tasks_and_none_of_celerys_own(tmp_path: Path) -> None:
    broker = BrokerSettings(url=SecretStr("redis://nowhere"))
    app = create_app(Settings(data_dir=tmp_path, broker=broker))
    app.loader.import_default_modules()
    app.task(nothing, name="site.task")
    app.finalize()
    consumer: Any = Consumer.__new__(Consumer)
    consumer.app, consumer.strategies, consumer.hostname = app, {}, "here"
    with patch.object(Task, "start_strategy"):
        consumer.update_strategies()
    assert {"celery.group", "celery.chord"} <= set(app.tasks)
    ours = {CAPTION_TASK, SUBMIT_TASK, DELIVER_TASK, "site.task"}
    assert set(consumer.strategies) == ours
