"""`captioner evaluate` with the demo model, drawn scenes and a real Java."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from captioner.demo.scenes import draw, scenes
from captioner.errors import CaptionerError
from captioner.evaluate import METRICS, ImageId, score
from captioner.evaluate.tokens import tokenize
from captioner.options import PAPER
from processes import captioner, environment

SCENES = list(scenes(11, 12))
#: As people write: the tokenizer makes them equal to what the model says.
TRUTH: dict[ImageId, list[str]] = {
    number: [f"{scene.caption.capitalize()}."] for number, scene in enumerate(SCENES)
}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    return environment(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A caption set of drawn scenes in COCO's format, and a folder `images`."""
    (tmp_path / "images").mkdir()
    for number, scene in enumerate(SCENES):
        draw(scene, 256).save(tmp_path / "images" / f"{number}.png")
    document = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in TRUTH],
        "annotations": [
            {"id": number, "image_id": number, "caption": caption}
            for number, (caption,) in TRUTH.items()
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(document))
    return tmp_path


def evaluate(
    *more: str, env: dict[str, str], folder: Path, captions: str = "captions.json"
) -> subprocess.CompletedProcess[str]:
    return captioner(
        "evaluate", "--annotations", captions, "--images", "images", *more, env=env, cwd=folder
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.long
def test_right_captions_score_high_and_a_second_run_goes_on(
    env: dict[str, str], folder: Path
) -> None:
    greedy = ("--json", "-o", "num_beams=1")
    first = evaluate(*greedy, env=env, folder=folder)
    assert (first.returncode, first.stderr) == (0, "")
    report = json.loads(first.stdout)
    assert tuple(report["scores"]) == METRICS
    assert {name: report["scores"][name] for name in METRICS[:6]} == pytest.approx(
        dict.fromkeys(METRICS[:6], 1), abs=1e-6
    )
    assert report["scores"]["CIDEr"] == pytest.approx(10)
    assert "SPICE" in report["left_out"]
    assert (report["images"], report["model"]["id"]) == (12, "demo")
    made = folder / "captions.predictions.jsonl"
    assert [row["continuation"] for row in rows(made)] == [scene.caption for scene in SCENES]

    # The first is made a wrong one, the last is cut off as by a crash: only that is made again.
    lines = made.read_text().splitlines(keepends=True)
    wrong = {**json.loads(lines[0]), "continuation": "two dogs in the snow"}
    kept = [json.dumps(wrong) + "\n", *lines[1:-1]]
    made.write_text("".join(kept) + lines[-1][:40])
    second = evaluate(*greedy, env=env, folder=folder)
    assert second.returncode == 0, second.stderr
    *before, again = made.read_text().splitlines(keepends=True)
    assert before == kept
    # Alone it is not rounded as among others.
    score = json.loads(lines[-1])["score"]
    assert json.loads(again) == {**json.loads(lines[-1]), "score": pytest.approx(score, abs=1e-3)}
    lower = json.loads(second.stdout)["scores"]
    assert all(lower[name] < report["scores"][name] - 0.02 for name in METRICS)

    other = evaluate("-o", "num_beams=3", env=env, folder=folder)
    assert (other.returncode, other.stdout) == (2, "")
    assert "num_beams 1, but asked for is demo with num_beams 3" in other.stderr


@pytest.mark.long
def test_the_setting_of_the_paper_scores_what_comes_after_its_prompt(
    env: dict[str, str], folder: Path
) -> None:
    document = json.loads((folder / "captions.json").read_text())
    document["images"].append({"id": 99, "file_name": "uncaptioned.png"})
    document["annotations"].append({"image_id": 100, "caption": "a cat"})
    (folder / "more.json").write_text(json.dumps(document))
    result = evaluate(
        "--setting", "paper", "--predictions", "p.jsonl",
        env=env, folder=folder, captions="more.json",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == [
        "1 images have no captions and are left out",
        "1 captions are of no listed image and are left out",
    ]
    assert "12 pictures, 12 captions of people" in result.stdout
    assert result.stdout.splitlines()[4].split() == ["BLEU-4", "1.0000", "100.0"]
    assert 'prompt "a picture of", max_new_tokens 16, min_new_tokens 1' in result.stdout
    assert "SPICE is left out" in result.stdout
    for row, scene in zip(rows(folder / "p.jsonl"), SCENES, strict=True):
        assert row["options"] == PAPER.as_mapping()
        assert row["caption"] == f"a picture of {scene.caption}"
        assert row["continuation"] == scene.caption
    # What is said beside it comes after it, the prompt too.
    other = ("--setting", "paper", "--prompt", "a", "--predictions", "q.jsonl")
    result = evaluate(*other, env=env, folder=folder)
    assert result.returncode == 0, result.stderr
    assert rows(folder / "q.jsonl")[0]["options"] == PAPER.as_mapping() | {"prompt": "a"}


def test_without_every_caption_there_are_no_scores(env: dict[str, str], folder: Path) -> None:
    (folder / "images" / "3.png").write_bytes(b"no picture")
    result = evaluate("-o", "num_beams=1", env=env, folder=folder)
    assert (result.returncode, result.stdout) == (1, "")
    assert "1 of 12 pictures could not be captioned" in result.stderr
    assert "3.png: unsupported_media_type" in result.stderr
    assert result.stderr.count("\n") == 1
    assert len(rows(folder / "captions.predictions.jsonl")) == 11


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--annotations", "none.json"], 2, "none.json"),
        (["--annotations", "empty.json"], 2, "none of its 0 images has a caption"),
        (["--annotations", "images/0.png"], 2, "images/0.png is not JSON"),
        (["--images", "none"], 2, "none"),
        (["--images", "."], 1, "12 of 12 pictures are not in .; the first is 0.png"),
        (["--annotations", "forging.json"], 1, "the first is a.png�captioner: done"),
        (["--setting", "fast"], 2, "paper"),
        (["-o", "beams=1"], 2, "unknown option beams"),
        (["--predictions", "none/p.jsonl"], 2, "there is no folder"),
        (["--predictions", "captions.json"], 2, "captions.json, line 1: not a prediction"),
        (["--prompt", "a " * 60], 1, "prompt"),
    ],
)
def test_bad_input_is_one_clear_line(
    env: dict[str, str], folder: Path, arguments: list[str], code: int, said: str
) -> None:
    (folder / "empty.json").write_text('{"images": [], "annotations": []}')
    forging = {
        "images": [{"id": 1, "file_name": "a.png\ncaptioner: done"}],
        "annotations": [{"image_id": 1, "caption": "a cat"}],
    }
    (folder / "forging.json").write_text(json.dumps(forging))
    before = (folder / "captions.json").read_bytes()
    result = evaluate(*arguments, env=env, folder=folder)
    assert (result.returncode, result.stdout) == (code, "")
    assert said in result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    assert (folder / "captions.json").read_bytes() == before


def test_what_is_not_installed_is_one_clear_line(env: dict[str, str], folder: Path) -> None:
    no_java = evaluate(env=env | {"PATH": str(folder)}, folder=folder)
    assert (no_java.returncode, no_java.stdout) == (2, "")
    assert "needs Java" in no_java.stderr
    assert no_java.stderr.count("\n") == 1
    program = (
        "import sys; sys.modules['pycocoevalcap'] = None;"
        "sys.argv[1:] = 'evaluate --annotations captions.json --images images'.split();"
        "from captioner.cli import main; main()"
    )
    no_metrics = subprocess.run(
        [sys.executable, "-c", program],
        env=env,
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
    )
    assert no_metrics.returncode == 2
    assert no_metrics.stderr == (
        "captioner: this needs pycocoevalcap; run: pip install 'captioner[evaluate]'\n"
    )


# --- Java, without a model ------------------------------------------------------------------------


def test_words_are_those_of_pycocoevalcap(capfd: pytest.CaptureFixture[str]) -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = [
        "A man's café (red), isn't it?", "", "  Two  dogs -- one “quoted” … ", "a | b ||| c",
        "1,000 cats & 3.5 dogs; don't!", "日本 street sign", "",
    ]  # fmt: skip
    theirs = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    capfd.readouterr()
    assert tokenize(captions) == [theirs[i][0] for i in range(len(captions))]
    assert tokenize(["one\u2028line", "two\x85too\n", ""]) == ["one line", "two too", ""]
    assert capfd.readouterr() == ("", "")


@pytest.mark.long
def test_half_a_character_costs_no_evaluation() -> None:
    assert tokenize([json.loads('"a \\ud83d cat"'), "a dog"]) == ["a cat", "a dog"]


def test_wrong_captions_score_low_and_empty_ones_nothing() -> None:
    others: dict[ImageId, str] = {
        number: SCENES[(number + 1) % len(SCENES)].caption for number in range(len(SCENES))
    }
    wrong, empty = score(TRUTH, others), score(TRUTH, dict.fromkeys(TRUTH, ""))
    for name in METRICS:
        assert 0.1 < wrong[name] < (3 if name == "CIDEr" else 0.8)
        assert empty[name] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("dies", "said"), [("-jar", "METEOR ended"), ("-cp", "out of memory")])
def test_a_java_that_dies_is_one_clear_error(
    dies: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = tmp_path / "java"
    launcher.write_text(
        f'#!/bin/sh\n[ "$1" = {dies} ] && echo out of memory >&2 && exit 1\n'
        f'exec {shutil.which("java")} "$@"\n'
    )
    launcher.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CaptionerError, match=said):
        score(TRUTH, dict.fromkeys(TRUTH, "a cat"))
