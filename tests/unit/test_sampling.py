"""Decoders: the frames of the inline sampler, from processes that may die, hang or overeat."""

from __future__ import annotations

import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.cores import available_cores
from captioner.domain import CaptionRequest, Frame, Lane, Media
from captioner.errors import (
    CanceledError,
    CrashError,
    ErrorCode,
    JobError,
    PluginError,
    UnfitError,
)
from captioner.sampling import ChildSampler, InlineSampler, Sampler, open_plugins
from captioner.sampling.wire import Ready, pack, unpack
from captioner.settings import LogSettings, MediaSettings, PluginSettings
from captioner.source import Source
from distributions import install
from pictures import bad_files, jpeg, png, zoo
from timeouts import new_sockets_time_out

#: What it does is in the name of the file: `hang-1.jpg`.
POISON = """
import ctypes, json, os, pickle, resource, sys, threading, time
import numpy as np
from captioner import ErrorCode, Frame, JobError, hookimpl


def film(path, size):
    for number in range(100):
        path.with_suffix(".made").write_text(str(number + 1))
        yield Frame(np.full((size, size, 3), number, np.uint8), number / 4)
    raise OSError("the film tore")


def compute():
    since = time.process_time()
    while time.process_time() < since + 0.4:
        pass


def stalling(size):
    compute()
    yield Frame(np.zeros((size, size, 3), np.uint8), 0.0)
    threading.Event().wait()


@hookimpl
def sample_frames(media, request, image_size):
    kind = media.path.name.partition("-")[0]
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(3)
    if kind == "hang":
        media.path.with_suffix(".pid").write_text(str(os.getpid()))
        threading.Event().wait()
    if kind == "computes":
        compute()
    if kind == "busy":
        while True:
            pass
    if kind == "greedy":
        np.ones(3 * 2**30, np.uint8)
    if kind == "raises":
        raise KeyError("oops")
    if kind == "film":
        return film(media.path, image_size)
    if kind == "stalls":
        return stalling(image_size)
    if kind == "empty":
        return []
    if kind == "wrong":
        return [Frame(np.zeros((image_size, 5, 3), np.uint8))]
    if kind == "facts":
        facts = pickle.loads(media.path.read_bytes())
        return [Frame(np.zeros((image_size, image_size, 3), np.uint8), **facts)]
    if kind == "text":
        return ["no frame"]
    if kind == "loud":
        os.write(1, b"to fd 1")
        os.write(2, b"to fd 2")
        print("to stdout", "to stderr", file=sys.stderr)
    if kind == "who":
        raise JobError(ErrorCode.DECODE_FAILED, str(os.getpid()))
    if kind == "grows":
        globals()["kept"] = np.ones(300 * 2**20, np.uint8)
    if kind == "limits":
        cpu = resource.getrlimit(resource.RLIMIT_CPU)[0]
        core = resource.getrlimit(resource.RLIMIT_CORE)[1]
        files = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        raise JobError(ErrorCode.DECODE_FAILED, json.dumps([cpu, core, files]))
    if kind == "forges":
        from captioner.sampling import process
        process.pack = lambda message: b"nonsense"
"""
SIZE = 8
Open = Callable[..., ChildSampler]


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginSettings:
    install(tmp_path, "poison", POISON)
    monkeypatch.syspath_prepend(str(tmp_path))
    return PluginSettings(enabled=("poison",))


@pytest.fixture
def open_sampler(poison: PluginSettings) -> Iterator[Open]:
    opened = []

    def open_sampler(**limits: object) -> ChildSampler:
        settings = MediaSettings.model_validate({"decoders": 2, **limits})
        opened.append(ChildSampler(poison, settings, LogSettings()))
        return opened[-1]

    yield open_sampler
    for sampler in opened:
        sampler.close()


def media(folder: Path, name: str, data: bytes | None = None) -> Media:
    path = folder / name
    path.write_bytes(jpeg() if data is None else data)
    return Media(path, name)


def frames(sampler: Sampler, media: Media, size: int = SIZE) -> list[Frame]:
    return list(sampler.sample(media, CaptionRequest(source=Source(str(media.path))), size))


def failure(sampler: Sampler, media: Media) -> JobError:
    with pytest.raises(JobError) as caught:
        frames(sampler, media)
    return caught.value


def decoder_pid(sampler: Sampler, folder: Path) -> int:
    return int(failure(sampler, media(folder, "who-are-you.jpg")).message)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        pause.wait(0.005)


def process_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


# --- The same as inline ---------------------------------------------------------------------------


def test_pictures_are_those_of_the_inline_sampler(tmp_path: Path, open_sampler: Open) -> None:
    inline = InlineSampler(
        open_plugins(PluginSettings(enabled=()), MediaSettings()), MediaSettings()
    )
    sampler = open_sampler()
    for picture in zoo():
        file = media(tmp_path, picture.name, picture.data)
        (expected,) = frames(inline, file, 32)
        (frame,) = frames(sampler, file, 32)
        np.testing.assert_array_equal(frame.pixels, expected.pixels)
        assert frame.pixels.flags.writeable
        assert frame.time_seconds is None


def test_a_decoder_is_waited_for_although_new_sockets_are_given_a_timeout(
    tmp_path: Path, open_sampler: Open
) -> None:
    """As Celery has it for a moment whenever its connection is lost."""
    sampler = open_sampler()
    with new_sockets_time_out():
        (frame,) = frames(sampler, media(tmp_path, "picture.jpg"))
    assert frame.pixels.shape == (SIZE, SIZE, 3)
    assert len(frames(sampler, media(tmp_path, "another.jpg"))) == 1


def test_refusals_are_those_of_the_inline_sampler(tmp_path: Path, open_sampler: Open) -> None:
    inline = InlineSampler(
        open_plugins(PluginSettings(enabled=()), MediaSettings()), MediaSettings()
    )
    sampler = open_sampler()
    for bad in bad_files():  # decompression bombs among them
        file = media(tmp_path, f"bad-{bad.name}", bad.data)
        expected, error = failure(inline, file), failure(sampler, file)
        assert not isinstance(error, CrashError)
        # Reasons may differ: in a test warnings are errors, in a decoder they are not.
        assert error.message.partition("(")[0] == expected.message.partition("(")[0]
        assert (error.code, error.retryable) == (expected.code, expected.retryable)
        assert error.code is bad.code


@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize(
    ("name", "code", "text"),
    [
        ("raises.jpg", ErrorCode.PLUGIN_FAILED, "plugin 'poison' failed in sample_frames: KeyErr"),
        ("wrong.jpg", ErrorCode.PLUGIN_FAILED, "'poison'.*uint8 \\[8, 5, 3\\] instead of uint8"),
        ("text.jpg", ErrorCode.PLUGIN_FAILED, "'poison'.*gave str instead of a Frame"),
        ("empty.jpg", ErrorCode.VIDEO_NO_FRAMES, "no frame was found in empty.jpg"),
    ],
)
def test_what_a_plugin_does_wrong_fails_its_job_alone(
    tmp_path: Path,
    poison: PluginSettings,
    open_sampler: Open,
    name: str,
    code: ErrorCode,
    text: str,
    inline: bool,
) -> None:
    file = media(tmp_path, name.replace(".", "-1."))
    sampler: Sampler = open_sampler()
    if inline:
        sampler = InlineSampler(open_plugins(poison, MediaSettings()), MediaSettings())
    error = failure(sampler, Media(file.path, name))
    assert error.code is code
    assert not error.retryable
    with pytest.raises(JobError, match=text):
        raise error
    assert len(frames(sampler, media(tmp_path, "picture.jpg"))) == 1


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"time_seconds": -1.0}, "time_seconds is -1.0, not from 0 to 10000000000"),
        ({"time_seconds": INF}, "time_seconds is inf, not from 0"),
        ({"time_seconds": NAN}, "time_seconds is nan, not from 0"),
        ({"time_seconds": "1"}, "time_seconds is str, not float"),
        ({"time_seconds": True}, "time_seconds is bool, not float"),
        ({"time_seconds": Fraction(1, 2)}, "time_seconds is Fraction, not float"),
        ({"time_seconds": 10**5000}, "time_seconds is huge, not from 0"),
        ({"media_seconds": "9"}, "media_seconds is str, not float"),
        ({"media_seconds": 1e300}, r"media_seconds is 1e\+300, not from 0"),
        ({"aspect_ratio": -1.0}, "aspect_ratio is -1.0, not from 0 to 1000000"),
        ({"expected_frames": -1}, "expected_frames is -1, not from 0 to 2147483647"),
        ({"expected_frames": 2**70}, "expected_frames is huge, not from 0"),
        ({"expected_frames": 1.0}, "expected_frames is float, not int"),
        ({"repeated": [1]}, "repeated is list, not bool"),
    ],
)
def test_a_frame_that_says_nonsense_of_itself_is_the_plugins_fault(
    tmp_path: Path, poison: PluginSettings, facts: dict[str, object], text: str
) -> None:
    """In a decoder too, which has the same check and could not send it."""
    sampler = InlineSampler(open_plugins(poison, MediaSettings()), MediaSettings())
    file = media(tmp_path, "facts-1.jpg", pickle.dumps(facts))
    with pytest.raises(PluginError, match=f"'poison' failed .*gave a frame whose {text}"):
        frames(sampler, file)


def test_a_decoder_outlives_a_frame_that_says_nonsense(tmp_path: Path, open_sampler: Open) -> None:
    sampler = open_sampler(decoders=1)
    before = decoder_pid(sampler, tmp_path)
    for facts in ({"time_seconds": -1.0}, {"expected_frames": "9"}, {"media_seconds": 10**400}):
        error = failure(sampler, media(tmp_path, "facts-1.jpg", pickle.dumps(facts)))
        assert isinstance(error, PluginError)
        assert (error.plugin, error.hook) == ("poison", "sample_frames")
    assert decoder_pid(sampler, tmp_path) == before


@pytest.mark.parametrize(
    "facts",
    [
        {"time_seconds": 0, "media_seconds": 10**10, "expected_frames": 1, "repeated": False},
        {"time_seconds": np.float64(1.5), "aspect_ratio": 0.5, "repeated": np.True_},
    ],
    ids=["whole numbers", "of numpy"],
)
def test_a_frame_may_say_it_in_other_types(
    tmp_path: Path, open_sampler: Open, facts: dict[str, Any]
) -> None:
    (frame,) = frames(open_sampler(), media(tmp_path, "facts-1.jpg", pickle.dumps(facts)))
    assert {name: getattr(frame, name) for name in facts} == facts


# --- Faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("segfault-1.jpg", "its decoder was killed by SIGSEGV"),
        ("exit-1.jpg", "its decoder ended with exit code 3"),
        ("forges-1.jpg", "its decoder gave an answer that makes no sense"),
    ],
)
def test_a_decoder_that_dies_fails_one_job(
    tmp_path: Path, open_sampler: Open, name: str, ending: str
) -> None:
    sampler = open_sampler(decoders=1)
    before = decoder_pid(sampler, tmp_path)
    error = failure(sampler, media(tmp_path, name))
    assert isinstance(error, CrashError)
    assert error.code is ErrorCode.WORKER_LOST
    assert error.message.startswith(f"{name}: {ending}")
    assert len(frames(sampler, media(tmp_path, "picture.jpg"))) == 1
    assert decoder_pid(sampler, tmp_path) != before


def test_kill_9_in_the_middle_of_a_job(tmp_path: Path, open_sampler: Open) -> None:
    sampler = open_sampler(decoders=1)
    file = media(tmp_path, "hang-1.jpg")
    pid_file = file.path.with_suffix(".pid")
    with ThreadPoolExecutor(1) as executor:
        job = executor.submit(failure, sampler, file)
        until(lambda: pid_file.exists() and pid_file.read_text() != "")
        os.kill(int(pid_file.read_text()), signal.SIGKILL)
        error = job.result(30)
    assert isinstance(error, CrashError)
    assert error.message == "hang-1.jpg: its decoder was killed by SIGKILL"
    assert len(frames(sampler, media(tmp_path, "picture.jpg"))) == 1


def test_kill_9_between_two_jobs_harms_neither(tmp_path: Path, open_sampler: Open) -> None:
    sampler = open_sampler(decoders=1)
    frames(sampler, media(tmp_path, "first.jpg"))
    (decoder,) = sampler._idle
    os.kill(decoder._child.pid, signal.SIGKILL)
    until(lambda: not decoder.usable)
    assert len(frames(sampler, media(tmp_path, "picture.jpg"))) == 1


def test_a_decoder_that_hangs_is_ended(tmp_path: Path, open_sampler: Open) -> None:
    sampler = open_sampler(decoders=1, decode_timeout_seconds=0.5)
    file = media(tmp_path, "hang-1.jpg")
    error = failure(sampler, file)
    assert isinstance(error, CrashError)
    assert error.code is ErrorCode.WORKER_LOST
    assert error.message == (
        "hang-1.jpg: its decoder hung for 0.5 s (CAPTIONER_MEDIA__DECODE_TIMEOUT_SECONDS)"
    )
    assert process_state(int(file.path.with_suffix(".pid").read_text())) == "gone"
    assert len(frames(sampler, media(tmp_path, "picture.jpg"))) == 1


def test_a_picture_that_takes_a_decoder_too_long_fails_for_good(
    tmp_path: Path, open_sampler: Open
) -> None:
    sampler = open_sampler(decoders=1, decode_timeout_seconds=3)
    error = failure(sampler, media(tmp_path, "busy-1.jpg"))
    assert not isinstance(error, CrashError)
    assert (error.code, error.retryable) == (ErrorCode.DECODE_FAILED, False)
    assert error.message == (
        "busy-1.jpg: decoding it took longer than 3 s (CAPTIONER_MEDIA__DECODE_TIMEOUT_SECONDS)"
    )
    assert len(frames(sampler, media(tmp_path, "picture.jpg"))) == 1


def test_what_a_decoder_computed_before_does_not_make_a_hang_a_slow_picture(
    tmp_path: Path, open_sampler: Open
) -> None:
    sampler = open_sampler(decoders=1, decode_timeout_seconds=1.5)
    frames(sampler, media(tmp_path, "computes-1.jpg"))
    assert isinstance(failure(sampler, media(tmp_path, "hang-1.jpg")), CrashError)
    film = sampler.sample(media(tmp_path, "stalls-1.mp4"), VIDEO, SIZE)
    next(film)
    with pytest.raises(CrashError):
        next(film)


def test_a_decoder_that_takes_too_much_memory_fails_its_job_and_goes_on(
    tmp_path: Path, open_sampler: Open
) -> None:
    sampler = open_sampler(decoders=1)
    pid = decoder_pid(sampler, tmp_path)
    error = failure(sampler, media(tmp_path, "greedy-1.jpg"))
    assert (error.code, error.retryable) == (ErrorCode.OUT_OF_MEMORY, False)
    assert "CAPTIONER_MEDIA__DECODER_MEMORY_BYTES" in error.message
    assert decoder_pid(sampler, tmp_path) == pid


def test_a_picture_that_does_not_fit_into_memory_is_told_so(
    tmp_path: Path, open_sampler: Open
) -> None:
    large = png((8000, 5000), 8, 2, bytes(24_000))  # 120 MB of pixels
    file = media(tmp_path, "large.png", large)
    assert failure(open_sampler(decoder_memory_bytes=2**26), file).code is ErrorCode.OUT_OF_MEMORY
    assert len(frames(open_sampler(), file)) == 1


def test_limits_are_in_force(tmp_path: Path, open_sampler: Open) -> None:
    sampler = open_sampler(decoders=1, decode_timeout_seconds=20, max_image_bytes=12_345)
    cpu_seconds, core_bytes, file_bytes = json.loads(
        failure(sampler, media(tmp_path, "limits-1.jpg")).message
    )
    assert 20 <= cpu_seconds <= 25  # what it has used so far, and 20 more
    assert (core_bytes, file_bytes) == (0, 12_345)


def test_a_decoder_that_has_grown_is_replaced(tmp_path: Path, open_sampler: Open) -> None:
    sampler = open_sampler(decoders=1)
    pid = decoder_pid(sampler, tmp_path)
    assert len(frames(sampler, media(tmp_path, "grows-1.jpg"))) == 1
    assert process_state(pid) == "gone"
    assert decoder_pid(sampler, tmp_path) != pid


def test_a_decoder_is_replaced_after_so_many_jobs(tmp_path: Path, open_sampler: Open) -> None:
    hasty = POISON + "\nfrom captioner.sampling import process\nprocess.JOBS_PER_DECODER = 3\n"
    (tmp_path / "poison.py").write_text(hasty)
    sampler = open_sampler(decoders=1)
    pids = [decoder_pid(sampler, tmp_path) for _ in range(7)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 1]


def test_27_innocents_among_4_kinds_of_poison(tmp_path: Path, open_sampler: Open) -> None:
    sampler = open_sampler(decode_timeout_seconds=5)
    kinds = ("segfault", "hang", "greedy", "raises")
    names = [f"innocent-{number}.jpg" for number in range(27)]
    for at, kind in enumerate(kinds):
        names.insert(at * 7 + 3, f"{kind}-1.jpg")
    with ThreadPoolExecutor(8) as executor:
        jobs: dict[str, Future[list[Frame]]] = {
            name: executor.submit(frames, sampler, media(tmp_path, name)) for name in names
        }
    failed = {}
    for name, job in jobs.items():
        error = job.exception()
        if error is None:
            assert len(job.result()) == 1
        else:
            assert isinstance(error, JobError)
            failed[name] = error.code
    assert failed == {
        "segfault-1.jpg": ErrorCode.WORKER_LOST,
        "hang-1.jpg": ErrorCode.WORKER_LOST,
        "greedy-1.jpg": ErrorCode.OUT_OF_MEMORY,
        "raises-1.jpg": ErrorCode.PLUGIN_FAILED,
    }


def test_noise_of_libraries_stays_out_of_the_log(
    tmp_path: Path, open_sampler: Open, capfd: pytest.CaptureFixture[str]
) -> None:
    sampler = open_sampler(decoders=1)
    assert len(frames(sampler, media(tmp_path, "loud-1.jpg"))) == 1
    assert capfd.readouterr() == ("", "")


FAULTY = """
from captioner.sampling import process

def broken(limits, memory):
    raise RuntimeError("a fault of our own")

process.limit_process = broken
"""


def test_a_fault_of_our_own_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path, "faulty", FAULTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = PluginSettings(enabled=("faulty",))
    with (
        closing(ChildSampler(settings, MediaSettings(), LogSettings())) as sampler,
        pytest.raises(UnfitError, match=r"^a decoder does not start: it ended with exit code 1$"),
    ):
        frames(sampler, media(tmp_path, "picture.jpg"))
    assert "RuntimeError: a fault of our own" in capfd.readouterr().err


def test_a_worker_that_may_open_nothing_more_is_not_fit(tmp_path: Path) -> None:
    picture = media(tmp_path, "picture.jpg")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(ChildSampler(PluginSettings(), MediaSettings(), LogSettings())) as sampler:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        os.close(lowest := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, most))
        try:
            with pytest.raises(UnfitError, match=r"^no decoder can be started: Too many open"):
                frames(sampler, picture)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert frames(sampler, picture)


# --- Streams --------------------------------------------------------------------------------------


def test_frames_come_one_by_one_and_never_far_ahead(tmp_path: Path, open_sampler: Open) -> None:
    sampler = open_sampler(decoders=1)
    pid = decoder_pid(sampler, tmp_path)
    file = media(tmp_path, "film-1.mp4")
    made = file.path.with_suffix(".made")
    with closing(sampler.sample(file, CaptionRequest(source=Source("/x")), 384)) as stream:
        for number in range(3):
            frame = next(stream)
            assert frame.time_seconds == number / 4
            assert (frame.pixels == number).all()
        # It makes no more frames than fit into the pipe, then sleeps until someone reads.
        until(lambda: process_state(pid) == "S")
        assert int(made.read_text()) <= 5
    assert process_state(pid) == "gone"  # closed early: nobody wants the rest
    assert len(frames(sampler, media(tmp_path, "picture.jpg"))) == 1


def test_an_error_after_some_frames_is_the_plugins(tmp_path: Path, open_sampler: Open) -> None:
    film = open_sampler().sample(
        media(tmp_path, "film-1.mp4"), CaptionRequest(source=Source("/x")), SIZE
    )
    assert [next(film).time_seconds for _ in range(100)] == [n / 4 for n in range(100)]
    with pytest.raises(JobError, match=r"'poison'.*the film tore"):
        next(film)


VIDEO = CaptionRequest(source=Source("/x"), lane=Lane.VIDEO)


class Unwanted:
    """A look around that says, at the second time, that nobody waits any more."""

    def __init__(self, error: Exception | None = None) -> None:
        self.looks = 0
        self.error = error or CanceledError("enough")

    def __call__(self) -> None:
        self.looks += 1
        if self.looks == 2:
            raise self.error


def test_who_waits_for_a_video_looks_around_and_may_leave(
    tmp_path: Path, open_sampler: Open
) -> None:
    sampler, look = open_sampler(), Unwanted()
    file = media(tmp_path, "hang-1.mp4")
    with pytest.raises(CanceledError):
        list(sampler.sample(file, VIDEO, SIZE, look=look))
    assert look.looks == 2
    assert process_state(int(file.path.with_suffix(".pid").read_text())) == "gone"
    assert sampler._slots.acquire(Lane.VIDEO, 0)


def test_what_a_look_around_raises_is_no_fault_of_the_decoder(
    tmp_path: Path, open_sampler: Open
) -> None:
    look = Unwanted(TimeoutError("of the engine"))
    with pytest.raises(TimeoutError, match="of the engine"):
        list(open_sampler().sample(media(tmp_path, "hang-1.mp4"), VIDEO, SIZE, look=look))


def test_a_video_that_hangs_fails_although_somebody_looks_around(
    tmp_path: Path, open_sampler: Open
) -> None:
    sampler, looks = open_sampler(decode_timeout_seconds=1), []
    with pytest.raises(CrashError, match="hung for 1 s"):
        list(
            sampler.sample(media(tmp_path, "hang-1.mp4"), VIDEO, SIZE, look=lambda: looks.append(1))
        )
    assert looks


def test_who_waits_for_a_decoder_looks_around_and_may_leave(
    tmp_path: Path, open_sampler: Open
) -> None:
    sampler, look = open_sampler(), Unwanted()
    film = sampler.sample(media(tmp_path, "film-1.mp4"), VIDEO, SIZE)
    next(film)  # it has the videos' share
    with pytest.raises(CanceledError):
        list(sampler.sample(media(tmp_path, "film-2.mp4"), VIDEO, SIZE, look=look))
    film.close()
    assert len(frames(sampler, media(tmp_path, "picture.jpg"))) == 1
    assert next(sampler.sample(media(tmp_path, "film-2.mp4"), VIDEO, SIZE)).time_seconds == 0


def test_a_video_leaves_inline_slots_to_pictures(tmp_path: Path) -> None:
    inline = InlineSampler(open_plugins(PluginSettings(), MediaSettings()), MediaSettings())
    while inline._slots.acquire(Lane.VIDEO, 0):
        pass
    assert len(frames(inline, media(tmp_path, "picture.jpg"))) == 1


# --- Life cycle -----------------------------------------------------------------------------------


def test_no_more_decoders_than_asked_for_and_as_few_as_suffice(
    tmp_path: Path, open_sampler: Open
) -> None:
    sampler = open_sampler()
    assert len({decoder_pid(sampler, tmp_path) for _ in range(5)}) == 1
    files = [media(tmp_path, f"who-{number}.jpg") for number in range(40)]
    with ThreadPoolExecutor(8) as executor:
        pids = {error.message for error in executor.map(lambda f: failure(sampler, f), files)}
    assert len(pids) == 2
    assert len({decoder_pid(sampler, tmp_path) for _ in range(5)}) == 1


def test_by_default_there_is_a_decoder_for_every_core_or_two() -> None:
    sampler = ChildSampler(PluginSettings(), MediaSettings(), LogSettings())
    count = max(2, available_cores())
    assert [sampler._slots.acquire(Lane.BULK, 0) for _ in range(count + 1)].count(True) == count


def test_closing_ends_them_also_one_that_works(tmp_path: Path, open_sampler: Open) -> None:
    sampler = open_sampler()
    film = sampler.sample(media(tmp_path, "film-1.mp4"), CaptionRequest(source=Source("/x")), SIZE)
    next(film)
    idle = decoder_pid(sampler, tmp_path)
    sampler.close()
    sampler.close()
    assert process_state(idle) == "gone"
    assert len([next(film) for _ in range(99)]) == 99  # what runs may finish
    with pytest.raises(JobError, match="the film tore"):
        next(film)
    assert sampler._idle == []


PARENT = """
import sys
sys.path[:] = {path!r}
from pathlib import Path
from captioner.domain import CaptionRequest, Media
from captioner.source import Source
from captioner.sampling import ChildSampler
from captioner.settings import LogSettings, MediaSettings, PluginSettings
sampler = ChildSampler(PluginSettings(enabled=("poison",)), MediaSettings(), LogSettings())
list(sampler.sample(Media(Path({file!r}), "x"), CaptionRequest(source=Source("/x")), 8))
"""


def test_a_hung_decoder_ends_with_its_parent(tmp_path: Path, poison: PluginSettings) -> None:
    file = media(tmp_path, "hang-1.jpg").path
    command = [sys.executable, "-c", PARENT.format(path=sys.path, file=str(file))]
    with subprocess.Popen(command) as parent:
        try:
            pid_file = file.with_suffix(".pid")
            until(lambda: pid_file.exists() and pid_file.read_text() != "")
            pid = int(pid_file.read_text())
            until(lambda: process_state(pid) == "S")  # it says who it is before it hangs
        finally:
            parent.kill()
    until(lambda: process_state(pid) in ("Z", "gone"))


# --- What is said on the pipe ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"F",
        pack(Frame(np.zeros((2, 2, 3), np.uint8))),  # of another size
        b"X" + bytes(8),
        b"R" + bytes(8),
        b"R" + bytes(8) + b"{}",
        b"R" + bytes(8) + b'{"retires": false, "error": ["no_such_code", "x", true]}',
        b"R" + bytes(8) + b'{"retires": false, "error": 5}',
        b"R" + bytes(8) + b'{"retires": false, "error": null, "plugin": 5}',
        b"R" + bytes(8) + b'{"retires": false, "error": null, "plugin": ["a"]}',
        b"R" + bytes(8) + b"[]",
        b"R" + bytes(8) + b"[" * 50_000,
    ],
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(data, SIZE)


@pytest.mark.parametrize("time_seconds", [None, 0.0, 12.75])
def test_what_is_packed_is_unpacked(time_seconds: float | None) -> None:
    pixels = np.arange(SIZE * SIZE * 3, dtype=np.uint8).reshape(SIZE, SIZE, 3)
    frame = unpack(pack(Frame(pixels, time_seconds)), SIZE)
    assert isinstance(frame, Frame)
    np.testing.assert_array_equal(frame.pixels, pixels)
    assert frame.time_seconds == time_seconds
    error = JobError(ErrorCode.FETCH_FAILED, "nö", retryable=False)
    ready = unpack(pack(Ready(error, retires=True)), SIZE)
    assert isinstance(ready, Ready)
    assert ready.retires
    assert ready.error is not None
    assert (ready.error.code, ready.error.message, ready.error.retryable) == (
        error.code,
        error.message,
        False,
    )


def test_whose_fault_it_was_is_told() -> None:
    told = unpack(pack(Ready(PluginError("mine", "sample_frames", KeyError("x")))), SIZE)
    assert isinstance(told, Ready)
    assert isinstance(told.error, PluginError)
    assert (told.error.plugin, told.error.hook) == ("mine", "sample_frames")
    assert told.error.message == "plugin 'mine' failed in sample_frames: KeyError: 'x'"
    assert (told.error.code, told.error.retryable) == (ErrorCode.PLUGIN_FAILED, False)
