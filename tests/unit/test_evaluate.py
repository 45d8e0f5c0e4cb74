"""Evaluation without Java: caption sets, kept predictions, and metrics against ones by hand."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from captioner.domain import ModelInfo
from captioner.engine import InlineEngine
from captioner.errors import CaptionerError, ErrorCode, JobError
from captioner.evaluate import (
    EvaluationError,
    Picture,
    Prediction,
    Predictions,
    caption_missing,
    missing,
    read_captions,
    require_metrics,
    score,
)
from captioner.evaluate.metrics import overlap
from captioner.options import PAPER, GenerationOptions
from captioner.pipeline import Pipeline
from captioner.sampling import InlineSampler, open_plugins
from captioner.settings import MediaSettings, PluginSettings
from captioner.testing import FakeCaptionModel

MODEL = ModelInfo(
    id="some/model", revision="r1", dtype="float32", device="cpu", backend="fast", image_size=8
)
OPTIONS = GenerationOptions()
IMAGES = [{"id": 7, "file_name": "a.png"}, {"id": "eight", "file_name": "sub/b.png", "width": 3}]
CAT = {"image_id": 7, "caption": "a cat"}


def document(images: object = IMAGES, annotations: object = (CAT,)) -> str:
    return json.dumps({"images": images, "annotations": annotations, "info": {}})


# --- Caption sets ---------------------------------------------------------------------------------


def test_a_caption_set_is_read_and_what_cannot_be_scored_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    said = [CAT, {"image_id": 7, "caption": "Cat."}, {"image_id": 9, "caption": "a dog"}]
    path.write_text(document(annotations=said))
    found = read_captions(path)
    assert found.pictures == (Picture(7, "a.png", ("a cat", "Cat.")),)
    assert (found.images_without_captions, found.captions_without_image) == (1, 1)
    assert missing(found.pictures, tmp_path) == list(found.pictures)
    (tmp_path / "a.png").touch()
    assert missing(found.pictures, tmp_path) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not JSON"),
        ('{"images": [', "is not JSON"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", "is not JSON"),
        ("[]", 'no list "images"'),
        ('{"images": {}}', 'no list "images"'),
        ('{"images": []}', 'no list "annotations"'),
        (document(images=[1]), "images[0] is not an object"),
        (document(images=[{"file_name": "a"}]), 'images[0] has no "id"'),
        (document(images=[{"id": True, "file_name": "a"}]), 'images[0] has no "id"'),
        (document(images=[{"id": 7}]), 'images[0] has no text "file_name"'),
        (document(images=[IMAGES[0], IMAGES[0]]), "images[1]: the id 7 occurs twice"),
        (document(annotations=[CAT, {"caption": "x"}]), 'annotations[1] has no "image_id"'),
        (document(annotations=[{"image_id": 7}]), 'annotations[0] has no text "caption"'),
        (document(annotations=[CAT | {"caption": " "}]), 'annotations[0] has no text "caption"'),
        (document(annotations=[]), "none of its 2 images has a caption"),
        (document(annotations=[CAT | {"image_id": "7"}]), "1 captions are of other images"),
    ],
)
def test_what_is_no_caption_set_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(EvaluationError) as error:
        read_captions(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# --- Kept predictions -----------------------------------------------------------------------------


def prediction(number: int) -> Prediction:
    return Prediction(number, f"{number}.png", f"photo of {number}", str(number), -0.5)


def picture(number: int) -> Picture:
    return Picture(number, f"{number}.png", ("a cat",))


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A file of two predictions."""
    path = tmp_path / "p.jsonl"
    with Predictions(path, MODEL, OPTIONS) as predictions:
        predictions.add(prediction(1))
        predictions.add(prediction(2))
    return path


def test_karpathys_split_becomes_a_set_as_the_readme_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    images = [
        {
            "cocoid": number,
            "filepath": "val2014",
            "filename": f"COCO_val2014_{number:012}.jpg",
            "split": split,
            "sentences": [{"raw": f"a cat {number}"}, {"raw": "A cat."}],
        }
        for number, split in ((7, "test"), (8, "train"), (9, "test"))
    ]
    monkeypatch.chdir(tmp_path)
    Path("dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    exec(compile(code, "README.md", "exec"), {})
    found = read_captions(Path("karpathy-test.json"))
    assert found.pictures == (
        Picture(7, "val2014/COCO_val2014_000000000007.jpg", ("a cat 7", "A cat.")),
        Picture(9, "val2014/COCO_val2014_000000000009.jpg", ("a cat 9", "A cat.")),
    )


def test_predictions_are_lines_of_json_that_say_what_made_them(kept: Path) -> None:
    row, _ = map(json.loads, kept.read_text().splitlines())
    assert row["model"] == {
        "id": "some/model", "revision": "r1", "dtype": "float32", "backend": "fast",
    }  # fmt: skip
    assert row["options"] == OPTIONS.as_mapping()
    names = ("image_id", "file", "caption", "continuation", "score")
    assert tuple(row[name] for name in names) == (1, "1.png", "photo of 1", "1", -0.5)


@pytest.mark.parametrize("cut", [1, 5, 100, 10_000])
def test_a_half_written_line_is_cut_off_and_the_others_stay(kept: Path, cut: int) -> None:
    whole = kept.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    kept.write_bytes(whole[: -min(cut, len(last) - 1)])
    with Predictions(kept, MODEL, OPTIONS) as predictions:
        assert predictions.has(picture(1))
        assert not predictions.has(picture(2))
        predictions.add(prediction(2))
    assert kept.read_bytes() == whole


def test_the_same_model_by_another_name_goes_on(kept: Path) -> None:
    renamed = ModelInfo(**{name: getattr(MODEL, name) for name in MODEL.__slots__} | {"id": "./m"})
    with Predictions(kept, renamed, OPTIONS) as predictions:
        assert predictions[2] == prediction(2)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ({"revision": "r2"}, {}, 'revision "r1", but asked for is some/model with revision "r2"'),
        ({"dtype": "bfloat16"}, {}, 'dtype "bfloat16"'),
        ({"backend": "transformers"}, {}, 'backend "transformers"'),
        ({}, {"num_beams": 1}, "num_beams 3, but asked for is some/model with num_beams 1"),
        ({}, PAPER.as_mapping(), 'prompt "a picture of"'),
    ],
)
def test_captions_of_two_kinds_are_never_mixed(
    kept: Path, model: dict[str, str], options: dict[str, Any], said: str
) -> None:
    whole = kept.read_bytes()
    other = ModelInfo(**{name: getattr(MODEL, name) for name in MODEL.__slots__} | model)
    with pytest.raises(EvaluationError) as error:
        Predictions(kept, other, GenerationOptions(**options))
    assert said in str(error.value)
    assert "line 1" in str(error.value)
    assert "--predictions" in str(error.value)
    assert kept.read_bytes() == whole


def test_predictions_of_another_caption_set_are_refused(kept: Path) -> None:
    with (
        Predictions(kept, MODEL, OPTIONS) as predictions,
        pytest.raises(EvaluationError, match=r"image 1 was 1\.png, now other\.png"),
    ):
        predictions.has(Picture(1, "other.png", ("a cat",)))


@pytest.mark.parametrize(
    "content",
    [
        b"not a line of ours",
        b"{}\n",
        b'{"image_id": 1}\n',
        b"\n",
        b"[1]\n",
        b"\xff\n",
        pytest.param(b"[" * 100_000 + b"\n", id="too deep"),
    ],
)
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match="line 1: not a prediction"):
        Predictions(path, MODEL, OPTIONS)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "p.jsonl"
    with pytest.raises(EvaluationError, match=r"p\.jsonl: No such file"):
        Predictions(path, MODEL, OPTIONS)


# --- Captioning what is missing -------------------------------------------------------------------


class Stage:
    """Pictures 1 to 5 in a folder, and a fake model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = FakeCaptionModel()
        self.engine = InlineEngine(lambda: self.model, max_batch=2)
        self.engine.start()
        limits = MediaSettings(allowed_roots=(folder,))
        sampler = InlineSampler(open_plugins(PluginSettings(), limits), limits)
        self.pipeline = Pipeline(self.engine, sampler, limits)
        self.pictures = [picture(number) for number in range(1, 6)]
        for number in range(1, 6):
            Image.new("RGB", (9, 9), (number * 20, 0, 0)).save(folder / f"{number}.png")

    @property
    def captioned(self) -> int:
        return sum(self.model.batches)

    def run(
        self,
        pictures: list[Picture],
        options: GenerationOptions = OPTIONS,
        advance: Callable[[], None] = lambda: None,
    ) -> list[tuple[Picture, JobError]]:
        path = self.folder / "p.jsonl"
        with Predictions(path, self.model.info, options) as predictions:
            return caption_missing(
                self.pipeline,
                pictures,
                self.folder,
                options,
                predictions,
                max_batch=2,
                advance=advance,
            )

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "p.jsonl").read_text().splitlines()]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    yield stage
    stage.engine.close()


def test_no_picture_is_captioned_twice(stage: Stage) -> None:
    assert stage.run(stage.pictures[:2]) == []
    assert stage.captioned == 2
    with (stage.folder / "p.jsonl").open("ab") as file:
        file.write(b'{"image_id": 3, "fi')
    assert stage.run(stage.pictures) == []
    assert stage.captioned == 5
    assert stage.run(stage.pictures) == []
    assert stage.captioned == 5
    assert [row["image_id"] for row in stage.rows] == [1, 2, 3, 4, 5]
    assert [row["continuation"] for row in stage.rows] == [
        f"mean colour {number * 20} 0 0" for number in range(1, 6)
    ]


def test_prompt_and_continuation_are_kept_apart(stage: Stage) -> None:
    stage.run(stage.pictures[:1], PAPER)
    (row,) = stage.rows
    assert row["caption"] == "a picture of mean colour 20 0 0"
    assert row["continuation"] == "mean colour 20 0 0"


def test_a_picture_that_fails_is_named_and_the_others_are_kept(stage: Stage) -> None:
    (stage.folder / "2.png").write_bytes(b"no picture")
    ((failed, error),) = stage.run(stage.pictures)
    assert (failed.id, error.code) == (2, ErrorCode.UNSUPPORTED_MEDIA_TYPE)
    assert [row["image_id"] for row in stage.rows] == [1, 3, 4, 5]


def test_options_that_cannot_work_end_the_run(stage: Stage) -> None:
    with pytest.raises(JobError) as error:
        stage.run(stage.pictures, GenerationOptions(prompt="x" * 101))
    assert error.value.code is ErrorCode.PROMPT_TOO_LONG
    assert stage.rows == []


def test_an_interrupted_run_keeps_what_was_in_hand(stage: Stage) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(stage.pictures, advance=interrupt)
    kept = [row["image_id"] for row in stage.rows]
    assert kept[0] == 1
    assert len(kept) == len(set(kept)) == stage.captioned
    assert stage.run(stage.pictures) == []
    assert stage.captioned == 5


def test_a_full_disk_ends_the_run(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, line: bytes) -> int:
            return len(line) - 1

        def close(self) -> None: ...

    with Predictions(kept, MODEL, OPTIONS) as predictions:
        predictions._file.close()
        monkeypatch.setattr(predictions, "_file", Full())
        with pytest.raises(CaptionerError, match="no space left"):
            predictions.add(prediction(3))


# --- Metrics --------------------------------------------------------------------------------------


def test_bleu_is_what_it_is_by_hand() -> None:
    truth: dict[int | str, list[str]] = {
        1: ["a red cat sits on the mat"],
        2: ["two dogs run fast", "many dogs are running over there"],
    }
    made: dict[int | str, list[str]] = {1: ["a red cat sits on a mat"], 2: ["two dogs run"]}
    # n-grams found, of those made: 6/7 + 3/3 words ("a" counts once), 4/6 + 2/2 pairs,
    # 3/5 + 1/1 triples, 2/4 + 0/0 quadruples.
    precisions = (9 / 10, 6 / 8, 4 / 6, 2 / 4)
    # 10 words were made; the references of the nearest lengths have 7 and 4.
    brevity = math.exp(1 - 11 / 10)
    found = overlap(truth, made)
    for n in range(1, 5):
        by_hand = brevity * math.prod(precisions[:n]) ** (1 / n)
        assert found[f"BLEU-{n}"] == pytest.approx(by_hand, abs=1e-6)


def test_equal_captions_are_perfect_and_others_are_not() -> None:
    truth: dict[int | str, list[str]] = {1: ["a cat on a red mat"], 2: ["two dogs run over grass"]}
    perfect = overlap(truth, truth)
    assert perfect["CIDEr"] == pytest.approx(10)
    assert [perfect[name] for name in ("BLEU-4", "ROUGE-L")] == pytest.approx([1, 1], abs=1e-6)
    swapped = overlap(truth, {1: truth[2], 2: truth[1]})
    assert all(swapped[name] < 0.2 for name in swapped)
    empty = overlap(truth, {1: [""], 2: [""]})
    assert all(value == pytest.approx(0, abs=1e-6) for value in empty.values())


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EvaluationError, match="needs Java"):
        score({1: ["a cat"]}, {1: "a cat"})
    launcher = tmp_path / "java"
    launcher.write_text("#!/bin/sh\nexit 1\n")
    launcher.chmod(0o755)
    with pytest.raises(EvaluationError, match="needs Java"):
        require_metrics()
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    with pytest.raises(EvaluationError, match=r"pip install 'captioner\[evaluate\]'"):
        require_metrics()
