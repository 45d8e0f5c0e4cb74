"""Fetching from a hub: a small server that answers as the Hugging Face hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from captioner.errors import ModelLoadError
from captioner.inference.checkpoint import open_checkpoint
from captioner.inference.hub import looks_like_hub_id
from checkpoints import change_json, save_tiny_blip

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """Serves one model, `acme/tiny`, from a folder."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.fetched: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if "/acme/gated" in path:
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path in ("/api/models/acme/tiny", "/api/models/acme/tiny/revision/main"):
            self._json({"id": "acme/tiny", "sha": _COMMIT, "siblings": []})
        elif path == f"/api/models/acme/tiny/tree/{_COMMIT}":
            files = self.server.folder.iterdir()
            self._json(
                [
                    {
                        "type": "file",
                        "path": file.name,
                        "size": file.stat().st_size,
                        "oid": file.name,
                    }
                    for file in files
                ]
            )
        elif path.startswith(f"/acme/tiny/resolve/{_COMMIT}/"):
            self._file(path.rpartition("/")[2])
        elif path.startswith("/api/models/acme/tiny/revision/"):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        else:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _file(self, name: str) -> None:
        content = (self.server.folder / name).read_bytes()
        if self.command == "GET":
            self.server.fetched.add(name)
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._answer(200, content, {"ETag": etag, "X-Repo-Commit": _COMMIT})

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = save_tiny_blip(tmp_path / "served", layout="hub")
    for name in ("pytorch_model.bin", "tf_model.h5", "modeling_evil.py", "README.md"):
        (folder / name).write_bytes(b"never fetched")
    with Hub(folder) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(tmp_path)
        yield server
        server.shutdown()


def test_a_hub_id_loads_and_is_stamped_with_its_commit(hub: Hub) -> None:
    checkpoint = open_checkpoint("acme/tiny")
    assert checkpoint.revision == _COMMIT
    assert checkpoint.model_id == "acme/tiny"
    assert hub.fetched == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "vocab.txt",
    }


def test_a_commit_may_be_asked_for(hub: Hub) -> None:
    assert open_checkpoint("acme/tiny", _COMMIT).revision == _COMMIT


def test_offline_the_cache_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    open_checkpoint("acme/tiny")
    hub.shutdown()
    hub.server_close()
    assert open_checkpoint("acme/tiny").revision == _COMMIT
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert open_checkpoint("acme/tiny").revision == _COMMIT


@pytest.mark.parametrize(
    ("model_id", "revision", "problem"),
    [
        ("acme/absent", None, "neither a local folder nor a model"),
        ("acme/gated", None, "gated"),
        ("acme/tiny", "no-such-branch", "no such revision"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(
    hub: Hub, model_id: str, revision: str | None, problem: str
) -> None:
    with pytest.raises(ModelLoadError, match=problem) as caught:
        open_checkpoint(model_id, revision)
    assert "CAPTIONER_MODEL__ID" in str(caught.value)
    assert model_id in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("offline", [False, True])
def test_unreachable_and_not_cached(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, *, offline: bool
) -> None:
    hub.shutdown()
    hub.server_close()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(ModelLoadError, match=r"cannot be reached.*local folder") as caught:
        open_checkpoint("acme/tiny")
    assert "\n" not in str(caught.value)


def test_a_model_of_the_hub_with_pickled_weights_only(hub: Hub) -> None:
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no weights: expected model\.safetensors"):
        open_checkpoint("acme/tiny")
    assert "pytorch_model.bin" not in hub.fetched


def test_a_model_of_another_kind_is_refused_before_its_weights_are_fetched(hub: Hub) -> None:
    change_json(hub.folder / "config.json", lambda value: value.update(model_type="blip-2"))
    with pytest.raises(ModelLoadError, match=r"'acme/tiny' cannot be used: .* 'blip-2'"):
        open_checkpoint("acme/tiny")
    assert hub.fetched == {"config.json"}


@pytest.mark.parametrize(
    ("model_id", "expected"),
    [
        ("Salesforce/blip-image-captioning-large", True),
        ("a_b/c.d-e", True),
        ("/a/b", False),
        ("./a", False),
        ("../a", False),
        ("a/b/c", False),
        ("a/", False),
        ("blip", False),
        ("C:\\models", False),
    ],
)
def test_hub_ids_are_told_from_paths(model_id: str, *, expected: bool) -> None:
    assert looks_like_hub_id(model_id) is expected
