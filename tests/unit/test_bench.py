"""`bench model`: what it reports, and that it judges differences rightly. Never how fast."""

from __future__ import annotations

import itertools
import json
import mmap
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer

from captioner.cli.local_paths import writable
from captioner.errors import SettingsError
from captioner.inference import load_captioner
from captioner.inference.benchmark import Plan, make_blip_large, measure_memory, random_weights
from captioner.inference.benchmark.agreement import Trace, join, judge, retrace
from captioner.inference.benchmark.sides import Ours, Theirs
from captioner.inference.checkpoint import open_checkpoint
from captioner.inference.pixels import normalise, resize
from captioner.options import GenerationOptions
from checkpoints import IMAGE_SIZE, SEP, random_picture, save_tiny_blip
from processes import captioner, environment

ROW = {
    "batch", "beams", "dtype", "seconds", "reference_seconds", "ratio", "images_per_second",
    "teacher_forced_top1_agreement", "unexplained_flips",
}  # fmt: skip
PIXELS = [resize(random_picture(seed), IMAGE_SIZE) for seed in range(24)]


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    # One thread: with a model this small, two only wait for each other.
    return environment(tmp_path) | {"OMP_NUM_THREADS": "1"}


def options(beams: int) -> GenerationOptions:
    return Plan(batches=(1,), beams=(1,), tokens=7, prompt="a photo").options(beams)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return open_checkpoint(str(save_tiny_blip(tmp_path_factory.mktemp("tiny"))))


@pytest.fixture(scope="module")
def exact(checkpoint: Any) -> Iterator[Theirs]:
    model = Theirs(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    yield model
    model.close()


@pytest.fixture(scope="module")
def traces(exact: Theirs) -> dict[int, Trace]:
    both = [exact.trace(part, [options(1), options(3)]) for part in (PIXELS[:5], PIXELS[5:])]
    return {beams: join(parts) for beams, *parts in zip((1, 3), *both, strict=True)}


@pytest.mark.long
def test_the_command_measures_and_reports(env: dict[str, str], tmp_path: Path) -> None:
    result = captioner(
        "bench", "model", "--model", "demo", "--batch", "1,3", "--beams", "1,3", "--against",
        "transformers", "--rounds", "1", "--tokens", "6", "--encoder-batch", "2", "--dtype",
        "float32", "--json", "report.json", env=env, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"hardware", "versions", "rows", "encoder"} <= set(report)
    assert {"torch", "transformers", "captioner"} <= set(report["versions"])
    assert [(row["batch"], row["beams"]) for row in report["rows"]] == [
        (1, 1), (1, 3), (3, 1), (3, 3),
    ]  # fmt: skip
    for row in report["rows"]:
        assert set(row) >= ROW
        assert row["dtype"] == "float32"
        assert row["seconds"] > 0
        assert row["ratio"] == pytest.approx(row["reference_seconds"] / row["seconds"])
        assert row["images_per_second"] == pytest.approx(row["batch"] / row["seconds"])
        assert row["teacher_forced_top1_agreement"] == 1.0
        assert (row["flips"], row["unexplained_flips"], row["reference_flips"]) == (0, 0, 0)
        assert row["distinct_captions"] == row["batch"]
    encoder = report["encoder"]
    assert encoder["batch"] == 2
    assert encoder["share"] == pytest.approx(encoder["floor_seconds"] / encoder["seconds"])
    assert min(encoder[key] for key in ("seconds", "floor_seconds", "attention_seconds")) > 0
    assert result.stdout.count("float32") >= 4
    assert "batch 3, 3 beams" in result.stderr  # progress


def test_without_weights_random_ones_are_named(env: dict[str, str]) -> None:
    result = captioner("bench", "model", "--model", "some/blip", env=env)
    assert result.returncode == 1
    assert "not on this machine" in result.stderr
    assert result.stderr.endswith("; --random-weights are as fast\n")
    assert len(result.stderr.splitlines()) == 1


def test_a_full_disk_costs_the_file_and_not_the_measurement(env: dict[str, str]) -> None:
    result = captioner(
        "bench", "model", "--model", "demo", "--batch", "1", "--beams", "1", "--rounds", "1",
        "--tokens", "1", "--encoder-batch", "1", "--dtype", "float32", "--json", "/dev/full",
        env=env,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("captioner: the output cannot be written")
    assert "float32" in result.stdout


def test_a_file_that_may_not_be_written_is_told_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(typer.BadParameter, match=r"report\.json may not be written"):
        writable(tmp_path / "report.json")


@pytest.mark.long
def test_half_precision_beside_the_default(env: dict[str, str], tmp_path: Path) -> None:
    result = captioner(
        "bench", "model", "--batch", "2", "--beams", "3", "--rounds", "1", "--tokens", "4",
        "--prompt", "a picture of", "--encoder-batch", "1", "--dtype", "bfloat16",
        "--also-default", "--json", "report.json", env=env, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (row,) = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert row["dtype"] == "bfloat16"
    assert row["default_ratio"] == pytest.approx(row["default_seconds"] / row["seconds"])
    assert row["unexplained_flips"] == 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("sizes", "tokens", "batches", "samples"), [("1,2", 2, 40, 20), ("1,8", 16, 1000, 500)]
)
def test_memory_stays_as_it_is_over_many_batches(
    env: dict[str, str], tmp_path: Path, sizes: str, tokens: int, batches: int, samples: int
) -> None:
    result = captioner(
        "bench", "model", "--batch", sizes, "--beams", "1", "--tokens", str(tokens),
        "--batches", str(batches), "--json", "report.json", env=env, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows"] == []
    memory = report["memory"]
    assert (memory["batches"], memory["samples"]) == (batches, samples)
    # Python and PyTorch together, in bytes. 0.02 to 0.5 MiB were measured.
    assert memory["resident_bytes_early"] > 100 * 2**20
    assert memory["resident_bytes_growth"] < 4 * 2**20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--batch", "1,x"], "such as 1,8,32"),
        (["--batch", "0"], "such as 1,8,32"),
        (["--beams", "1,,3"], "such as 1,8,32"),
        (["--against", "nothing"], "transformers"),
        (["--rounds", "0"], "--rounds"),
        (["--batches", "3"], "--batches"),
        (["--batches", "59"], "at least 60"),
        (["--dtype", "int8"], "CAPTIONER_MODEL__DTYPE"),
        (["--json", "nowhere/report.json"], "there is no folder"),
        (["--random-weights", "--model", "nowhere/model"], "there is no folder"),
        (["--random-weights", "--model", "."], "not empty"),
    ],
)
def test_a_wrong_option_is_one_clear_line(
    env: dict[str, str], tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "something").touch()
    result = captioner("bench", "model", *arguments, env=env, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("beams", [1, 3])
def test_the_choices_behind_transformers_captions_are_found(
    traces: dict[int, Trace], beams: int
) -> None:
    trace = traces[beams]
    assert trace.logits.shape[:3] == (7, len(PIXELS), beams)
    assert all(trace.retraced)
    assert len(set(trace.captions)) > len(PIXELS) // 2
    assert all(len(caption) == 7 and SEP not in caption for caption in trace.captions)


@pytest.mark.parametrize("beams", [1, 3])
def test_float32_batches_of_both_sides_agree_with_it(
    checkpoint: Any, exact: Theirs, traces: dict[int, Trace], beams: int
) -> None:
    ours = Ours(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
    said = ours.caption(PIXELS, options(beams))
    verdict = judge(traces[beams], ours.follow(PIXELS, options(beams), traces[beams]), said)
    assert (verdict.top1_agreement, verdict.flips) == (1.0, 0)
    assert verdict.greatest_difference < 1e-3
    normal = np.stack([normalise(one, checkpoint.pixels) for one in PIXELS])
    assert exact.caption(torch.from_numpy(normal), options(beams)) == said


@pytest.mark.parametrize("beams", [1, 3])
def test_what_half_precision_changes_is_explained_and_a_mistake_is_not(
    checkpoint: Any, traces: dict[int, Trace], beams: int
) -> None:
    trace = traces[beams]
    half = Ours(checkpoint, device=torch.device("cpu"), dtype=torch.bfloat16)
    said = half.caption(PIXELS, options(beams))
    logits = half.follow(PIXELS, options(beams), trace)
    verdict = judge(trace, logits, said)
    assert 0.9 < verdict.top1_agreement <= 1
    assert verdict.unexplained_flips == 0
    # Captions of other pictures differ at places that no rounding explains.
    exact = judge(trace, trace.logits, [*trace.captions[1:], trace.captions[0]])
    assert exact.flips == exact.unexplained_flips > len(PIXELS) // 2


def made_up(*rows: list[float]) -> torch.Tensor:
    """Logits `[T, 1, 1, V]` of one greedy caption; the last token is [SEP]."""
    return torch.tensor(rows)[:, None, None]


def test_a_near_tie_explains_a_flip_and_only_where_it_happens() -> None:
    trace = retrace(made_up([3.0, 2.9, 0.0, 9.0], [0.0, 5.0, 1.0, 9.0]), [(0, 1)], 3)
    assert trace.retraced == [True]
    other = made_up([2.9, 2.91, 0.0, 9.0], [0.0, 5.0, 1.0, 9.0])
    near = judge(trace, other, [(1, 1)])
    assert (near.flips, near.unexplained_flips, near.top1_agreement) == (1, 0, 0.5)
    assert judge(trace, other, [(0, 2)]).unexplained_flips == 1  # parts where nothing is near
    assert judge(trace, other, [(0,)]).unexplained_flips == 1  # ends early
    assert judge(trace, trace.logits, [(1, 1)]).unexplained_flips == 1  # the same numbers
    assert judge(trace, other, [(0, 1)]).flips == 0


def test_captions_that_cannot_be_retraced_explain_nothing() -> None:
    trace = retrace(made_up([3.0, 2.9, 0.0, 9.0]), [(2,)], 3)
    assert trace.retraced == [False]
    other = made_up([2.9, 2.91, 0.0, 9.0])
    assert judge(trace, other, [(1,)]).unexplained_flips == 1


def test_random_weights_are_made_once_and_both_backends_load_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)
    folder, told = tmp_path / "model", list[tuple[int, int]]()
    assert make_blip_large(folder, lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert not make_blip_large(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert make_blip_large(tmp_path / "again")
    assert len({open_checkpoint(str(tmp_path / name)).revision for name in ("model", "again")}) == 1
    assert len((folder / "vocab.txt").read_text().split("\n")) == 30_522 + 1
    prompt = options(1)
    said = [
        load_captioner(str(folder), device="cpu", dtype="float32", backend=backend).generate(
            PIXELS[:3], prompt
        )
        for backend in ("fast", "transformers")
    ]
    ours, theirs = ([captions[0] for captions in one] for one in said)
    assert [one.token_ids for one in ours] == [one.token_ids for one in theirs]
    assert all(one.text.startswith("a photo ") for one in ours)


def test_half_made_random_weights_are_never_taken_for_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrink(monkeypatch)

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_blip_large(tmp_path / "model", interrupt)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="not empty"):
        make_blip_large(tmp_path)


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave vocabulary and files as they are: 1.8 GB are no unit test."""
    large = random_weights._CONFIG
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    monkeypatch.setattr(
        random_weights,
        "_CONFIG",
        {
            **large,
            "vision_config": {**large["vision_config"], **sizes},
            "text_config": {
                **large["text_config"], **sizes, "encoder_hidden_size": 32,
                "num_attention_heads": 4,
            },
        },
    )  # fmt: skip


def test_memory_that_stays_is_seen() -> None:
    class Leaky:
        info = SimpleNamespace(device="cpu")

        def __init__(self) -> None:
            self.kept: list[mmap.mmap] = []

        def generate(self, *_: Any) -> None:
            # Not malloc's, which may have kept that much of earlier tests.
            block = mmap.mmap(-1, 2**20)
            block.write(bytes(range(256)) * 2**12)
            self.kept.append(block)

    leaky: Any = Leaky()
    plan = Plan(batches=(1,), beams=(1,))
    found = measure_memory(leaky, [], plan, 100)
    assert found["resident_bytes_growth"] > 50 * 2**20


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("also_default", [False, True])
def test_each_side_has_the_memory_of_its_own_process_and_the_encoder_ours(
    checkpoint: Any, monkeypatch: pytest.MonkeyPatch, rounds: int, also_default: bool
) -> None:
    told: list[object] = []

    def encoder(*_: object) -> dict[str, Any]:
        told.append("encoder")
        return {}

    compare = import_module("captioner.inference.benchmark.compare")  # the package's is a function
    monkeypatch.setattr(compare, "keep_freed_memory", lambda *, keep: told.append(keep))
    monkeypatch.setattr(compare, "measure_encoder", encoder)
    asked: dict[str, Any] = {"rounds": rounds, "also_default": also_default}
    plan = Plan(batches=(1,), beams=(1,), tokens=2, encoder_batch=1, **asked)
    place = torch.device("cpu"), torch.float64
    compare.compare(checkpoint, *place, PIXELS[:1], plan)
    turns = [[True, False], [False, True]][:rounds]
    default = [False, True] if also_default else []
    assert told == [*itertools.chain(*turns), True, *default, "encoder"]
