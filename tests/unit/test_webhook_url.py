"""The webhook URL of a job: checked, kept in full, and never shown in full."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from captioner.cli.items import items_of_file
from captioner.domain import CaptionRequest
from captioner.errors import InvalidRequestError
from captioner.request_json import request_from_item
from captioner.source import Source
from captioner.store import Store, create_store_engine, upgrade

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "https://cms.example:8443/hooks/17?token=s3cret"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hook",
        "/hook",
        "ftp://cms.example/hook",
        "https://",
        "https:///hook",
        "https://cms.example:99999/",
        "https://cms.example:0/",
        "https://[::1/",
        "https://cms%2eexample/",
        "https://cms.example\\.s3cret.example/",
        "https://[fe80::1%25eth0]/",
        "https://a%40[::1]/",
        "https://[::1]a.example/",
        "https://a.example:443:443/",
        "https://a.example:+443/",
        "https://cms.example;s3cret/",
        "https://s3cret@cms.example/",
        "https://name:s3cret@cms.example/",
        "https://cms.example/s3cret hook",
        "https://cms.example/s3cret\n",
        "https://cms.example/s3crét",
        "https://cms.example/" + "s3cret" * 400,
    ],
)
def test_what_is_no_url_to_post_to_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="webhook_url must") as caught:
        CaptionRequest(source=Source("/a.png"), webhook_url=url)
    assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize("value", [7, ["https://cms.example/"], True])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(InvalidRequestError, match="webhook_url must be a URL"):
        request_from_item({"source": "/a.png", "webhook_url": value}, {})


def test_it_is_stored_in_full_and_shown_redacted(sqlite_url: str) -> None:
    upgrade(sqlite_url)
    request = CaptionRequest(source=Source("/a.png"), webhook_url=SECRET, client_key="k")
    with Store(create_store_engine(sqlite_url)) as store:
        created = store.add([request])[0].job
        job = store.get(request.id)
        assert created.webhook_url == job.webhook_url == job.request.webhook_url == SECRET
        assert job.as_mapping()["webhook_url"] == "https://cms.example:8443/…"
        assert "s3cret" not in f"{request!r} {job!r} {json.dumps(job.as_mapping())}"
        # Whoever submits again with another one means the same job, which keeps its own.
        other = CaptionRequest(
            source=Source("/a.png"), webhook_url="https://elsewhere.example/", client_key="k"
        )
        (again,) = store.add([other])
        assert (again.created, again.job.webhook_url) == (False, SECRET)


def test_items_without_one_have_that_of_the_command(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.touch()
    lines = [{"source": str(picture)}, {"source": str(picture), "webhook_url": SECRET}]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    items = items_of_file(str(path), {}, {}, webhook_url="https://default.example/")
    found = [request.webhook_url for _, request in items if isinstance(request, CaptionRequest)]
    assert found == ["https://default.example/", SECRET]
