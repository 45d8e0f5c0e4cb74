"""The engine in a process of its own: right results, and what happens when that process breaks."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.domain import Caption, Lane
from captioner.engine import (
    EngineClosedError,
    InlineEngine,
    ProcessEngine,
    model_process,
    supervisor,
)
from captioner.errors import (
    CrashError,
    DeviceLostError,
    ErrorCode,
    JobError,
    ModelLoadError,
    SettingsError,
)
from captioner.options import GenerationOptions
from captioner.settings import EngineSettings, LogSettings
from captioner.testing import FakeCaptionModel, load_faulty_model
from timeouts import new_sockets_time_out

OPTIONS = GenerationOptions()
SECONDS = 30
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
MAGENTA = (255, 0, 255)


def picture(*colour: int) -> Any:
    return np.broadcast_to(np.array(colour, np.uint8), (8, 8, 3))


def text_of(*colour: int) -> str:
    return "mean colour {} {} {}".format(*(colour * 3)[:3])


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def pid_of(engine: ProcessEngine) -> int:
    return engine._supervisor.process._child.pid


@contextmanager
def running(
    load: Callable[..., Any] = load_faulty_model, *arguments: object, **settings: Any
) -> Iterator[ProcessEngine]:
    """A started engine; without lingering unless it is asked for."""
    engine = ProcessEngine(
        load, arguments, EngineSettings(**{"max_batch": 4, "linger_seconds": 0} | settings)
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


# A model that does nothing unless the test says so.


class DirectedModel(FakeCaptionModel):
    """Tells the test the grey levels of each batch, and waits for its word."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._director = Client(address)
        self._director.send(os.getpid())
        self._warm = False

    def generate(self, images: Any, options: Any) -> Any:
        if self._warm:
            self._director.send([int(pixels[0, 0, 0]) for pixels in images])
            self._director.recv()
        self._warm = True
        return super().generate(images, options)


class Director:
    """The test's side of it."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "director")
        self._listener = Listener(self.address)
        self._connection: Connection[Any, Any] | None = None

    def meet(self) -> int:
        """Wait for the next process with a model; its id."""
        if self._connection:
            self._connection.close()
        self._connection = self._listener.accept()
        pid: int = self._connection.recv()
        return pid

    def begun(self) -> list[int]:
        """Wait for a batch to begin."""
        assert self._connection
        assert self._connection.poll(SECONDS), "no batch has begun"
        levels: list[int] = self._connection.recv()
        return levels

    def go_on(self) -> None:
        assert self._connection
        self._connection.send(None)

    def close(self) -> None:
        if self._connection:
            self._connection.close()
        self._listener.close()


@pytest.fixture
def director(tmp_path: Path) -> Iterator[Director]:
    director = Director(tmp_path)
    yield director
    director.close()


def submit(engine: ProcessEngine, *levels: int, lane: Lane = Lane.BULK) -> list[Future[Any]]:
    return [engine.submit(picture(level), OPTIONS, lane) for level in levels]


def texts(futures: list[Future[list[Caption]]]) -> list[str]:
    return [future.result(SECONDS)[0].text for future in futures]


# What it does when nothing breaks.


def test_its_pipe_waits_although_new_sockets_are_given_a_timeout() -> None:
    """As Celery has it for a moment whenever its connection is lost."""
    with new_sockets_time_out():
        engine = ProcessEngine(load_faulty_model, (), EngineSettings(linger_seconds=0))
        engine.start()
    try:
        for level in range(3):
            (caption,) = engine.submit(picture(level, 7, 7), OPTIONS).result(SECONDS)
            assert caption.text == text_of(level, 7, 7)
        assert engine.stats.restarts == 0
    finally:
        engine.close()


def test_results_are_those_of_the_inline_engine() -> None:
    random = np.random.default_rng(1)
    cases = [
        (random.integers(0, 128, (8, 8, 3), np.uint8), options)
        for options in (
            OPTIONS,
            GenerationOptions(prompt="a picture of"),
            GenerationOptions(num_beams=5, num_return_sequences=3),
            GenerationOptions(prompt="long " * 50),
        )
        * 6
    ]
    cases[5:5] = [(picture(0), OPTIONS), (picture(*BLUE), OPTIONS)]

    def outcomes(engine: InlineEngine | ProcessEngine) -> list[object]:
        futures = [engine.submit(pixels, options) for pixels, options in cases]
        engine.close()
        return [
            (error.code, error.message, error.retryable)
            if isinstance(error := future.exception(), JobError)
            else future.result()
            for future in futures
        ]

    inline = InlineEngine(load_faulty_model, 4)
    inline.start()
    with running(linger_seconds=0.005) as process:
        assert outcomes(process) == outcomes(inline)
        assert process.info == inline.info


def test_the_next_batch_is_with_the_child_before_the_first_is_done(director: Director) -> None:
    with running(DirectedModel, director.address, max_batch=2) as engine:
        director.meet()
        [first] = submit(engine, 1)
        assert director.begun() == [1]
        rest = submit(engine, 2, 3)
        assert wait_until(lambda: len(engine._workload._in_flight) == 2)
        # From its first result on the engine's own thread waits here, and can send nothing.
        held, release = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            held.set()
            release.wait(SECONDS)

        first.add_done_callback(hold)
        director.go_on()
        assert held.wait(SECONDS)
        assert director.begun() == [2, 3]
        director.go_on()
        release.set()
        assert texts(rest) == [text_of(2), text_of(3)]


def test_interactive_pictures_overtake_bulk_ones(director: Director) -> None:
    with running(DirectedModel, director.address, max_batch=2) as engine:
        director.meet()
        submit(engine, 1)
        begun = [director.begun()]
        submit(engine, 2, 3, 4, 5)
        assert wait_until(lambda: len(engine._workload._in_flight) == 2)
        submit(engine, 9, lane=Lane.INTERACTIVE)
        for _ in range(3):
            director.go_on()
            begun.append(director.begun())
        director.go_on()
        assert begun == [[1], [2, 3], [9, 4], [5]]


def test_a_canceled_picture_never_reaches_the_model(director: Director) -> None:
    with running(DirectedModel, director.address) as engine:
        director.meet()
        [running_now] = submit(engine, 1)
        assert director.begun() == [1]
        canceled, wanted = submit(engine, 2, 3)
        assert canceled.cancel()
        assert not running_now.cancel()
        director.go_on()
        assert director.begun() == [3]
        director.go_on()
        assert texts([running_now, wanted]) == [text_of(1), text_of(3)]


def test_pictures_that_come_together_share_a_batch(director: Director) -> None:
    with running(DirectedModel, director.address, linger_seconds=1) as engine:
        director.meet()
        submit(engine, 1, 2, 3, 4)
        assert director.begun() == [1, 2, 3, 4]
        director.go_on()


def test_what_was_done_is_counted() -> None:
    with running(load_faulty_model, 8, 0.01, linger_seconds=1) as engine:
        texts(submit(engine, *range(1, 9)))
        engine.close()
        stats = engine.stats
        assert (stats.batches, stats.pictures, stats.restarts) == (2, 8, 0)
        assert 0.02 <= stats.busy_seconds < 10
        assert not engine.failed


def test_pixels_of_another_shape_are_refused() -> None:
    with running() as engine, pytest.raises(ValueError, match=r"must be uint8 \[8, 8, 3\], or"):
        engine.submit(np.zeros((9, 8, 3), np.uint8), OPTIONS)


def test_close_finishes_what_waits_and_takes_no_more() -> None:
    with running(load_faulty_model, 8, 0.01) as engine:
        pid = pid_of(engine)
        futures = submit(engine, *range(1, 12))
        engine.close()
        assert all(future.done() for future in futures)
        assert not lives(pid)
        with pytest.raises(EngineClosedError):
            engine.submit(picture(1), OPTIONS)


def test_close_does_not_wait_for_what_nobody_wants() -> None:
    """As where a worker was frozen for long, and has to end when it is awake."""
    with running(linger_seconds=1.0) as engine:
        (waiting,) = submit(engine, 1)
        assert waiting.cancel()  # before anything was done with it
        closing = threading.Thread(target=engine.close, daemon=True)
        closing.start()
        closing.join(SECONDS)
        assert not closing.is_alive()


def test_the_child_logs_as_its_parent_does(capfd: pytest.CaptureFixture[str]) -> None:
    settings = EngineSettings(max_batch=2, linger_seconds=1)
    engine = ProcessEngine(load_faulty_model, (), settings, LogSettings(format="json"))
    engine.start()
    submit(engine, 0, 1)
    engine.close()
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert "a batch of 2 failed and is run again one by one" in lines[0]["message"]
    assert (lines[0]["level"], lines[0]["logger"]) == ("WARNING", "captioner.engine.running")


# What it does when the child breaks.


def test_the_pictures_of_a_killed_child_run_alone_and_those_that_waited_as_before(
    director: Director,
) -> None:
    eight, waiting = range(1, 9), range(11, 19)
    with running(DirectedModel, director.address, max_batch=8, linger_seconds=1) as engine:
        pid = director.meet()
        futures = submit(engine, *eight, *waiting)
        assert director.begun() == [*eight]
        assert wait_until(lambda: len(engine._workload._in_flight) == 2)
        os.kill(pid, signal.SIGKILL)
        assert director.meet() != pid
        for level in eight:
            assert director.begun() == [level]
            director.go_on()
        assert director.begun() == [*waiting]
        director.go_on()
        assert texts(futures) == [text_of(level) for level in (*eight, *waiting)]
        assert engine.stats.restarts == 1


def test_a_picture_that_crashes_the_child_alone_is_blamed_and_no_other() -> None:
    colours: list[tuple[int, ...]] = [(level,) for level in range(1, 17)]
    colours[5] = RED
    with running(max_batch=16, linger_seconds=1) as engine:
        futures = [engine.submit(picture(*colour), OPTIONS, Lane.BULK) for colour in colours]
        with pytest.raises(CrashError, match=r"was killed by SIGSEGV while .* alone") as raised:
            futures.pop(5).result(SECONDS)
        assert raised.value.code is ErrorCode.WORKER_LOST
        del colours[5]
        assert texts(futures) == [text_of(*colour) for colour in colours]
        assert engine.stats.restarts == 2


def test_a_child_that_lost_its_device_makes_way_for_another() -> None:
    """After an error CUDA refuses all further work of a process: to try again there is no use."""
    with running(max_batch=4, linger_seconds=1) as engine:
        first, losing, last = (
            engine.submit(picture(*colour), OPTIONS) for colour in ((1,), MAGENTA, (2,))
        )
        with pytest.raises(CrashError, match=r"lost its device while .* alone") as raised:
            losing.result(SECONDS)
        assert raised.value.code is ErrorCode.WORKER_LOST
        assert texts([first, last]) == [text_of(1), text_of(2)]
        assert engine.stats.restarts == 2


def test_a_child_that_the_kernel_killed_for_want_of_memory_says_so(
    director: Director, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(DirectedModel, director.address, max_batch=8) as engine:
        pid = director.meet()
        (future,) = submit(engine, 1)
        assert director.begun() == [1]
        # As the kernel's own count of such deaths would rise.
        monkeypatch.setattr(model_process, "_oom_kills", lambda: sys.maxsize)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(CrashError, match=r"for want of memory while .* alone") as raised:
            future.result(SECONDS)
        assert raised.value.code is ErrorCode.OUT_OF_MEMORY
        director.meet()


def test_pictures_together_reach_the_child_side_by_side_with_single_ones() -> None:
    groups = [[1], [10, 20, 60], [2], [5, 6], [7, 7, 7, 8], [9]]
    with running(max_batch=8, linger_seconds=1) as engine:
        futures = [
            engine.submit(np.stack([picture(level) for level in group]), OPTIONS, Lane.VIDEO)
            for group in groups
        ]
        assert texts(futures) == [
            text_of(1),
            f"3 pictures of {text_of(30)}",
            text_of(2),
            f"2 pictures of {text_of(6)}",
            f"4 pictures of {text_of(7)}",
            text_of(9),
        ]
        engine.close()
        # The four did not fit beside the first four captions' pictures, and the last did.
        assert (engine.stats.batches, engine.stats.pictures) == (2, 12)


@pytest.mark.parametrize("colour", [RED, BLUE])
def test_pictures_together_are_blamed_together_and_nobody_else(colour: tuple[int, ...]) -> None:
    with running(max_batch=8, linger_seconds=1) as engine:
        good, bad, single = (
            engine.submit(pixels, OPTIONS, Lane.VIDEO)
            for pixels in (
                np.stack([picture(1), picture(3)]),
                np.stack([picture(1), picture(*colour), picture(2)]),
                picture(9),
            )
        )
        with pytest.raises(JobError) as raised:
            bad.result(SECONDS)
        crashed = colour is RED
        assert isinstance(raised.value, CrashError) is crashed
        assert raised.value.code is (ErrorCode.WORKER_LOST if crashed else ErrorCode.OUT_OF_MEMORY)
        assert texts([good, single]) == [f"2 pictures of {text_of(2)}", text_of(9)]
        assert engine.stats.restarts == 2 * crashed


def test_a_picture_that_hangs_the_child_is_blamed_and_no_other() -> None:
    with running(max_batch=3, linger_seconds=1, hang_seconds=0.5) as engine:
        first, hanging, last = (
            engine.submit(picture(*colour), OPTIONS) for colour in ((1,), GREEN, (2,))
        )
        with pytest.raises(CrashError, match=r"hung for 0.5 s while") as raised:
            hanging.result(SECONDS)
        assert raised.value.code is ErrorCode.WORKER_LOST
        assert texts([first, last]) == [text_of(1), text_of(2)]


def test_a_picture_that_needs_too_much_memory_fails_without_a_crash() -> None:
    with running(max_batch=3, linger_seconds=1) as engine:
        first, large, last = (
            engine.submit(picture(*colour), OPTIONS) for colour in ((1,), BLUE, (2,))
        )
        with pytest.raises(JobError) as raised:
            large.result(SECONDS)
        assert raised.value.code is ErrorCode.OUT_OF_MEMORY
        assert raised.value.retryable
        assert not isinstance(raised.value, CrashError)
        assert texts([first, last]) == [text_of(1), text_of(2)]
        assert engine.stats.restarts == 0


def test_a_child_that_has_grown_too_large_is_replaced_and_nobody_is_blamed() -> None:
    with running(load_faulty_model, 8, 0.0, 2**28, max_memory_bytes=2**28) as engine:
        pid = pid_of(engine)
        texts([engine.submit(picture(*YELLOW), OPTIONS)])
        assert texts(submit(engine, 1)) == [text_of(1)]
        assert engine.stats.restarts == 1
        assert pid_of(engine) != pid


def test_what_a_dead_child_never_began_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", 0.01)
    with running() as engine:
        for restarts in range(1, 4):
            # Sent to the child before its death is noticed, or after.
            os.kill(pid_of(engine), signal.SIGKILL)
            assert texts(submit(engine, 1)) == [text_of(1)]
            assert engine.stats.restarts == restarts


def test_a_stopped_child_that_reads_nothing_is_replaced() -> None:
    # More text than the pipe takes, so that the writer would wait for ever.
    options = [GenerationOptions(prompt=f"{number:04}" * 1024) for number in range(512)]
    with running(max_batch=256, linger_seconds=1, hang_seconds=0.5) as engine:
        os.kill(pid_of(engine), signal.SIGSTOP)
        futures = [engine.submit(picture(1), one) for one in options]
        # One that has no exception fails right here, as it should.
        codes = {future.exception(SECONDS).code for future in futures}  # type: ignore[union-attr]
        assert codes == {ErrorCode.PROMPT_TOO_LONG}
        assert engine.stats.restarts == 1


# Its end, and that of its parent.

PARENT = """
import sys, time
sys.path[:] = {path!r}
import numpy as np
from captioner.engine import ProcessEngine
from captioner.options import GenerationOptions
from captioner.settings import EngineSettings
from captioner.testing import load_faulty_model
engine = ProcessEngine(load_faulty_model, (), EngineSettings())
engine.start()
pixels = np.broadcast_to(np.array({colour}, np.uint8), (8, 8, 3))
future = engine.submit(pixels, GenerationOptions())
while engine._workload.idle and not future.done(): time.sleep(0.01)
print(engine._supervisor.process._child.pid, flush=True)
time.sleep(3600)
"""


def shared_memory() -> set[Path]:
    """What lies there, without what servers of other tests come and go with."""
    return {one for one in Path("/dev/shm").iterdir() if not one.name.startswith("PostgreSQL.")}


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
@pytest.mark.parametrize("colour", [(1, 1, 1), GREEN], ids=["idle", "hung"])
def test_a_killed_parent_leaves_neither_child_nor_shared_memory(colour: tuple[int, ...]) -> None:
    before = shared_memory()
    code = PARENT.format(path=sys.path, colour=colour)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
    shared = [
        link for link in Path(f"/proc/{pid}/maps").read_text().splitlines() if "memfd" in link
    ]
    assert len(shared) == 1
    assert lives(pid)
    parent.kill()
    parent.wait(SECONDS)
    assert wait_until(lambda: not lives(pid))
    assert shared_memory() <= before


# Loading.


def load_never(address: str) -> Any:
    with Client(address) as director:
        director.send(os.getpid())
    threading.Event().wait()


def load_nothing(kind: str) -> Any:
    if kind == "raises":
        raise OSError("disk on fire\nand more")
    if kind == "says":
        raise ModelLoadError("no such model")
    if kind == "is set wrong":
        raise SettingsError("CAPTIONER_X is wrong")
    if kind == "dies":
        os._exit(7)
    return LostModel() if kind == "is lost" else BlindModel()


class LostModel(FakeCaptionModel):
    def generate(self, images: Any, options: Any) -> Any:
        raise DeviceLostError("cuda:0 cannot go on")


class BlindModel(FakeCaptionModel):
    def generate(self, images: Any, options: Any) -> Any:
        raise ValueError("no kernel image is available")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("raises", "^the model cannot be loaded: OSError: disk on fire$"),
        ("says", "^no such model$"),
        ("is set wrong", "^CAPTIONER_X is wrong$"),
        ("dies", "^the engine ended with exit code 7 while it loaded the model$"),
        ("is lost", "^cuda:0 cannot go on$"),
        ("is blind", "^the model is loaded, but cannot caption: .*no kernel image is available$"),
    ],
)
def test_a_model_that_cannot_load_says_why(kind: str, message: str) -> None:
    with pytest.raises(ModelLoadError, match=message), running(load_nothing, kind):
        pass


def test_a_model_that_is_too_large_says_so() -> None:
    with (
        pytest.raises(ModelLoadError, match=r"alone takes .*MAX_MEMORY"),
        running(max_memory_bytes=1),
    ):
        pass


def test_a_load_that_takes_too_long_is_ended(director: Director) -> None:
    settings = EngineSettings(load_timeout_seconds=0.5)
    engine = ProcessEngine(load_never, (director.address,), settings)
    pids: list[int] = []

    def meet_once() -> None:
        pids.extend([] if pids else [director.meet()])

    with pytest.raises(ModelLoadError, match=r"not loaded in 0\.5 s; raise CAPTIONER_ENGINE__LOAD"):
        engine.start(meet_once)
    assert not lives(pids[0])


def test_a_stop_request_ends_the_start_and_the_child(director: Director) -> None:
    pids: list[int] = []

    def poll() -> None:
        if pids:
            raise SystemExit(0)
        pids.append(director.meet())

    engine = ProcessEngine(load_never, (director.address,), EngineSettings())
    with pytest.raises(SystemExit):
        engine.start(poll)
    assert not lives(pids[0])
    engine.close()


def test_close_ends_the_start_and_the_child(director: Director) -> None:
    engine = ProcessEngine(load_never, (director.address,), EngineSettings())
    raised: list[type[BaseException]] = []

    def start() -> None:
        try:
            engine.start()
        except EngineClosedError as error:
            raised.append(type(error))

    starter = threading.Thread(target=start)
    starter.start()
    pid = director.meet()
    engine.close()
    assert not lives(pid)
    starter.join(SECONDS)
    assert raised == [EngineClosedError]


def load_at_times(plan: str) -> Any:
    """A loader that takes a line off the plan: `good` or `other` model; else it does not load."""
    path = Path(plan)
    today, *later = path.read_text().split()
    path.write_text("\n".join(later))
    if today not in ("good", "other"):
        raise OSError(f"the disk is {today}")
    model = load_faulty_model()
    model.info = dataclasses.replace(model.info, revision=today)
    return model


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", 0.01)
    return tmp_path / "plan"


def test_a_child_that_does_not_come_back_at_once_is_tried_again(plan: Path) -> None:
    plan.write_text("good bad bad good")
    with running(load_at_times, str(plan)) as engine:
        texts(submit(engine, 1))
        with pytest.raises(CrashError):
            engine.submit(picture(*RED), OPTIONS).result(SECONDS)
        assert texts(submit(engine, 1)) == [text_of(1)]
        assert engine.stats.restarts == 3


def test_an_engine_that_cannot_come_back_fails_what_waits_and_takes_no_more(plan: Path) -> None:
    plan.write_text("good bad bad full good")
    with running(load_at_times, str(plan), max_batch=2) as engine:
        futures = [
            engine.submit(picture(*colour), OPTIONS) for colour in (RED, (1,), (2,), (3,), (4,))
        ]
        # The first may have been alone in the engine.
        for future in futures[1:]:
            with pytest.raises(EngineClosedError, match=r"the engine has failed: .*disk is full"):
                future.result(SECONDS)
        assert futures[0].done()
        assert engine.failed
        with pytest.raises(EngineClosedError, match="the engine has failed"):
            engine.submit(picture(1), OPTIONS)
        engine.close()
    assert plan.read_text() == "good"


def test_a_model_that_has_changed_meanwhile_is_not_used(plan: Path) -> None:
    plan.write_text("good other good")
    with running(load_at_times, str(plan)) as engine:
        os.kill(pid_of(engine), signal.SIGKILL)
        assert texts(submit(engine, 1)) == [text_of(1)]
        assert engine.stats.restarts == 2


def test_close_does_not_wait_for_a_child_that_nobody_needs(
    plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_SECONDS", 0.5)
    plan.write_text("good bad")
    with running(load_at_times, str(plan)) as engine:
        os.kill(pid_of(engine), signal.SIGKILL)
        assert wait_until(lambda: engine.stats.restarts > 0)
        engine.close()
        assert not engine.failed
