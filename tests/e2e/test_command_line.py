"""What a person types, on the embedded database and broker, from an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from captioner.demo.scenes import draw, scenes
from processes import captioner, environment, running_worker

SCENE = next(iter(scenes(3, 1)))
UNKNOWN = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    draw(SCENE, 256).save(path)
    return path


@pytest.mark.long
def test_submit_wait_status_list_cancel(env: dict[str, str], picture: Path, tmp_path: Path) -> None:
    empty = captioner("list", env=env)
    assert empty.returncode == 0
    assert "no jobs yet" in empty.stderr
    submitted = captioner(
        "submit", "scene.png", "--prompt", "a photography of", "--client-key", "asset:1",
        "--metadata", '{"asset": 1}', "--json", env=env, cwd=tmp_path,
    )  # fmt: skip
    assert submitted.returncode == 0, submitted.stderr
    (job,) = json.loads(submitted.stdout)
    assert (job["state"], job["source"]) == ("queued", str(picture))
    again = captioner(
        "submit", "scene.png", "--prompt", "a photography of", "--client-key", "asset:1",
        "--json", env=env, cwd=tmp_path,
    )  # fmt: skip
    assert json.loads(again.stdout)[0]["id"] == job["id"]
    other = captioner("submit", "scene.png", "--client-key", "asset:1", env=env, cwd=tmp_path)
    assert (other.returncode, other.stdout) == (1, "")
    assert "asset:1" in other.stderr
    late = captioner("wait", job["id"], "--timeout", "0.2", env=env)
    assert late.returncode == 1
    assert "have not ended" in late.stderr
    canceled = captioner("submit", "scene.png", env=env, cwd=tmp_path).stdout.split()[0]
    assert captioner("cancel", canceled, env=env).returncode == 0
    with running_worker(tmp_path, env) as worker:
        waited = captioner("wait", job["id"], "--timeout", "60", "--json", env=env)
        assert waited.returncode == 0, waited.stderr + worker.log
        assert worker.stop() == 0
    (done,) = json.loads(waited.stdout)
    assert done["state"] == "succeeded"
    assert done["captions"][0]["text"] == f"a photography of {SCENE.caption}"
    assert done["captions"][0]["continuation"] == SCENE.caption
    assert done["metadata"] == {"asset": 1}
    assert captioner("cancel", job["id"], env=env).returncode == 1  # too late for that
    listed = json.loads(captioner("list", "--json", env=env).stdout)
    assert listed["counts"] == {
        "queued": 0, "processing": 0, "succeeded": 1, "failed": 0, "canceled": 1, "expired": 0,
    }  # fmt: skip
    shown = captioner("status", job["id"], canceled, env=env)
    assert SCENE.caption in shown.stdout
    assert "canceled" in shown.stdout


@pytest.mark.long
def test_captions_of_local_files_and_folders_need_no_broker(
    env: dict[str, str], picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    result = captioner("caption", str(tmp_path), "--json", "--sidecar", env=env)
    assert result.returncode == 1
    broken, right = json.loads(result.stdout)
    assert broken["error"]["code"] == "decode_failed"
    assert right["caption"] == SCENE.caption
    assert picture.with_suffix(".txt").read_text() == SCENE.caption + "\n"
    assert not (tmp_path / "broken.txt").exists()
    assert "1 of 2 failed" in result.stderr
    plain = captioner("caption", str(picture), "-o", "num_beams=1", env=env)
    first, alt_text = plain.stdout.splitlines()
    assert first == f"{picture}: {SCENE.caption}"
    assert alt_text.strip() == f"alt text: {SCENE.caption.capitalize()}"
    assert plain.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit", "missing.png"], 2, "no such file"),
        (["submit", ".", "scene.png"], 2, "files or folders, not both"),
        (["submit", ".", "--client-key", "k"], 2, "--client-key"),
        (["submit", "scene.png", "--from", "items.jsonl"], 2, "either sources or --from"),
        (["submit", "--from", "missing.jsonl"], 2, "missing.jsonl: No such file"),
        (["submit"], 2, "Missing argument"),
        (["submit", "scene.png", "-o", "beams=3"], 2, "unknown option beams"),
        (["submit", "scene.png", "-o", "num_beams=-1"], 2, "num_beams must be from 1"),
        (["submit", "scene.png", "-o", "num_beams"], 2, "NAME=VALUE"),
        (["submit", "scene.png", "--metadata", "[1]"], 2, "JSON object"),
        (["submit", "scene.png", "--beams", "3"], 2, "No such option"),
        (["submit", "a", "b", "--client-key", "k"], 2, "--client-key"),
        (["status", UNKNOWN], 1, f"no job has the id {UNKNOWN}"),
        (["status", "17"], 2, "not a job id"),
        (["cancel", UNKNOWN], 1, "no job has the id"),
        (["wait", UNKNOWN], 1, "no job has the id"),
        (["list", "--state", "pending"], 2, "pending"),
        (["caption", "missing.png"], 2, "no such file"),
        (["caption", "scene.png", "--dtype", "int8"], 2, "CAPTIONER_MODEL__DTYPE"),
        (["caption", "scene.png", "--model", "{folder}"], 1, "config.json"),
        (["caption", "scene.png", "-o", "max_new_tokens=64"], 1, "prompt_too_long"),
        (["db", "current", "--database", "mysql://root:secret@db/x"], 2, "must begin with"),
        (["list", "--database", "postgresql://u:secret@127.0.0.1:1/x"], 1, "cannot be"),
        (["nonsense"], 2, "No such command"),
    ],
)
def test_bad_input_is_one_clear_line(
    env: dict[str, str],
    picture: Path,
    tmp_path: Path,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    result = captioner(*filled, env=env, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr
    assert "secret" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.endswith(" failed")]
    assert len(lines) == 1, result.stderr


@pytest.mark.long
def test_the_schema_is_shown_and_upgraded(tmp_path: Path, database_url: str) -> None:
    env = environment(tmp_path, DATABASE__URL=database_url)
    before = captioner("db", "current", env=env)
    assert before.returncode == 1
    assert "run: captioner db upgrade" in before.stdout
    refused = captioner("list", env=env)
    assert refused.returncode == 1
    assert "run: captioner db upgrade" in refused.stderr
    assert captioner("db", "upgrade", env=env).returncode == 0
    assert "is up to date" in captioner("db", "upgrade", env=env).stdout
    assert captioner("db", "current", env=env).returncode == 0
    assert captioner("list", env=env).returncode == 0


def test_plugins_are_listed(env: dict[str, str]) -> None:
    listed = {
        one["name"]: one for one in json.loads(captioner("plugins", "--json", env=env).stdout)
    }
    assert {one["state"] for one in listed.values()} == {"enabled"}
    assert "observe" in listed["metrics"]["hooks"]
    off = env | {"CAPTIONER_PLUGINS__DISABLED": "metrics"}
    assert "disabled" in captioner("plugins", env=off).stdout


HEAVY = "{'torch', 'transformers', 'PIL', 'numpy', 'httpx'} & set(sys.modules)"


@pytest.mark.parametrize(
    "code",
    [
        "from captioner import jobs; print(jobs.get(jobs.submit(sys.argv[1]).id).state)",
        (
            "from captioner.cli import main; sys.argv[1:1] = ['submit']\n"
            "try: main()\nexcept SystemExit as end: assert not end.code"
        ),
    ],
    ids=["jobs", "command line"],
)
def test_submitting_needs_no_more_than_the_base_installation(
    env: dict[str, str], picture: Path, code: str
) -> None:
    program = f"import sys\n{code}\nassert not {HEAVY}, {HEAVY}"
    result = subprocess.run(
        [sys.executable, "-c", program, str(picture)],
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "queued" in result.stdout


def test_what_is_not_installed_is_named(env: dict[str, str], picture: Path) -> None:
    program = (
        "import sys; sys.modules['PIL'] = None; sys.argv[1:1] = ['caption'];"
        "from captioner.cli import main; main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(picture)],
        env=env,
        text=True,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr == ("captioner: this needs PIL; run: pip install 'captioner[worker]'\n")
