"""Workers, engines and decoders are killed, hang and break: nothing is lost, nothing is twice."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from captioner.domain import JobState
from faults.house import BLUE, GREEN, MAGENTA, RED, House, Ledger, children, kill, lives
from processes import wait_until


def test_a_worker_is_killed_in_the_middle_of_a_batch(house: House) -> None:
    requests, started = house.innocents(60), time.monotonic()
    with house.worker(FAULTY_SECONDS="0.2") as first:
        house.jobs.submit_all(requests)
        house.wait_until_busy()
        family = [*children(first.process.pid), first.process.pid]
        first.process.kill()
        first.process.wait()
    wait_until(lambda: not any(map(lives, family)))
    assert house.count(JobState.PROCESSING) > 0
    house.let_pass(minutes=11)  # what it had taken from Redis and not claimed is lost
    with house.worker() as second:
        house.wait_until_done()
        assert second.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check(requests, "kill -9 of the worker", started)
    assert ledger.succeeded() == 60
    assert max(ledger.attempts.values()) == 2


def test_the_engine_is_killed_in_the_middle_of_a_batch(house: House) -> None:
    requests, started = house.innocents(60), time.monotonic()
    with house.worker(FAULTY_SECONDS="0.2") as worker:
        house.jobs.submit_all(requests)
        house.wait_until_busy()
        (engine,) = children(worker.process.pid, "engine")
        kill(engine)
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check(requests, "kill -9 of the engine", started)
    assert ledger.succeeded() == 60


def test_a_picture_hangs_the_engine(house: House) -> None:
    requests, started = house.innocents(20), time.monotonic()
    poison = house.request(house.picture(GREEN))
    with house.worker(RETRY__MAX_CRASHES="2") as worker:
        house.jobs.submit_all([*requests[:10], poison, *requests[10:]])
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check([*requests, poison], "an engine that hangs", started)
    assert ledger.succeeded() == 20
    assert ledger.codes[poison.id] == "worker_lost"


@pytest.mark.parametrize(
    ("colour", "what"),
    [
        (RED, "a picture that crashes the engine"),
        (MAGENTA, "a picture that costs the engine its device"),
    ],
)
def test_a_picture_ends_the_engine(house: House, colour: tuple[int, int, int], what: str) -> None:
    requests, started = house.innocents(40), time.monotonic()
    poison = house.request(house.picture(colour))
    with house.worker() as worker:
        house.jobs.submit_all([*requests[:20], poison, *requests[20:]])
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check([*requests, poison], what, started)
    assert ledger.succeeded() == 40
    assert ledger.codes[poison.id] == "worker_lost"
    assert house.jobs.get(poison.id).crashes == 2  # and the third ended it
    assert max(ledger.attempts[one.id] for one in requests) == 1  # innocents never pay


def test_a_batch_runs_out_of_memory(house: House) -> None:
    requests, started = house.innocents(20), time.monotonic()
    greedy = house.request(house.picture(BLUE))
    with house.worker() as worker:
        house.jobs.submit_all([*requests[:10], greedy, *requests[10:]])
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check([*requests, greedy], "a batch that is out of memory", started)
    assert ledger.succeeded() == 20
    assert ledger.codes[greedy.id] == "out_of_memory"


def test_a_picture_crashes_its_decoder(house: House) -> None:
    requests, started = house.innocents(20), time.monotonic()
    path = house.picture((1, 1, 1), name="poison")
    path.write_bytes(path.read_bytes() + b"segmentation fault")
    poison = house.request(path)
    with house.worker() as worker:
        house.jobs.submit_all([*requests[:10], poison, *requests[10:]])
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check([*requests, poison], "a picture that crashes its decoder", started)
    assert ledger.succeeded() == 20
    assert ledger.codes[poison.id] == "worker_lost"
    assert max(ledger.attempts[one.id] for one in requests) == 1


def test_hung_children_end_with_their_killed_parent(house: House) -> None:
    poison, started = house.request(house.picture(GREEN)), time.monotonic()
    with house.worker(ENGINE__HANG_SECONDS="600") as worker:
        house.jobs.submit_all([poison])
        wait_until(lambda: house.count(JobState.PROCESSING) == 1)
        family = children(worker.process.pid)
        assert children(worker.process.pid, "engine")
        worker.process.kill()
        worker.process.wait()
        wait_until(lambda: not any(map(lives, family)))
    with house.worker(RETRY__MAX_CRASHES="1") as second:
        house.wait_until_done()
        assert second.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check(
        [poison], f"a hung engine and {len(family) - 1} more under a killed worker", started
    )
    assert ledger.codes[poison.id] == "worker_lost"


def test_the_same_job_comes_100_times_at_once(house: House) -> None:
    requests, started = house.innocents(5), time.monotonic()
    with house.worker() as worker:
        ids = [submission.job.id for submission in house.jobs.submit_all(requests)]
        with ThreadPoolExecutor(20) as executor:
            list(executor.map(house.publish_again, ids * 100))
        house.wait_until_done()
        wait_until(lambda: house.messages() == 0)
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check(requests, "500 messages for 5 jobs", started)
    assert ledger.succeeded() == 5
    assert set(ledger.attempts.values()) == {1}


def test_sigterm_under_load(house: House) -> None:
    requests, started = house.innocents(80), time.monotonic()
    with house.worker(FAULTY_SECONDS="0.2") as first:
        house.jobs.submit_all(requests)
        house.wait_until_busy()
        assert first.stop() == 0
    assert house.count(JobState.PROCESSING) == 0  # never a claimed job left behind
    assert house.count(JobState.QUEUED) > 0
    assert house.workers() == 0
    with house.worker() as second:
        house.wait_until_done()
        assert second.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check(requests, "SIGTERM under load", started)
    assert ledger.succeeded() == 80


def test_a_second_signal_ends_at_once_and_hands_back_what_runs(house: House) -> None:
    requests, started = house.innocents(40), time.monotonic()
    with house.worker(FAULTY_SECONDS="2") as first:
        house.jobs.submit_all(requests)
        wait_until(lambda: house.count(JobState.PROCESSING) > 0)
        first.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)  # the second of two signals at once would be merged with the first
        asked = time.monotonic()
        first.process.send_signal(signal.SIGTERM)
        first.process.wait(20)
        assert time.monotonic() - asked < 10
    assert house.count(JobState.PROCESSING) == 0
    house.let_pass(minutes=11)  # as above
    with house.worker() as second:
        house.wait_until_done()
        assert second.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check(requests, "two signals", started)
    assert ledger.succeeded() == 40


def test_a_model_that_cannot_be_loaded(house: House) -> None:
    requests, started = house.innocents(10), time.monotonic()
    house.jobs.submit_all(requests)
    with house.starting_worker(FAULTY_LOAD="1") as broken:
        assert broken.process.wait(60) == 1
        assert "the disk is on fire" in broken.log
        assert "Traceback" not in broken.log
    assert house.messages() == 10  # the queue is untouched
    with house.worker() as worker:
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    ledger.check(requests, "a model that cannot be loaded", started)
    assert set(ledger.attempts.values()) == {1}


def test_two_workers_share_a_queue(house: House) -> None:
    requests, started = house.innocents(120), time.monotonic()
    settings = {"FAULTY_SECONDS": "0.1"}
    with (
        house.worker(**settings, WORKER__NAME="one@%h") as one,
        house.worker(**settings, WORKER__NAME="two@%h") as two,
    ):
        house.jobs.submit_all(requests)
        house.wait_until_done()
        assert (one.stop(), two.stop()) == (0, 0)
        shares = [worker.log.count("job succeeded") for worker in (one, two)]
    ledger = Ledger.read(house.database)
    ledger.check(requests, f"two workers, {shares[0]} and {shares[1]}", started)
    assert ledger.succeeded() == sum(shares) == 120
    assert min(shares) > 0
    assert set(ledger.attempts.values()) == {1}


def test_a_worker_that_was_frozen_comes_back(house: House) -> None:
    requests, started = house.innocents(60), time.monotonic()
    with house.worker(FAULTY_SECONDS="0.2") as frozen, house.worker() as other:
        house.jobs.submit_all(requests)
        house.wait_until_busy()
        house.freeze(frozen)
        house.let_pass(minutes=11)  # as above
        house.wait_until_done()
        os.kill(frozen.process.pid, signal.SIGCONT)
        wait_until(lambda: "silent for too long" in frozen.log)
        assert (frozen.stop(), other.stop()) == (0, 0)
    ledger = Ledger.read(house.database)
    ledger.check(requests, "a worker frozen for longer than its lease", started)
    assert ledger.succeeded() == 60


@pytest.mark.parametrize("decoders_alone", [True, False], ids=["decoders", "all"])
def test_processes_pause_for_longer_than_anything_may_take(
    house: House, *, decoders_alone: bool
) -> None:
    requests, started = house.innocents(60), time.monotonic()
    with house.worker(
        FAULTY_DECODE_SECONDS="0.2",
        MEDIA__DECODE_TIMEOUT_SECONDS="1",
        WORKER__LEASE_SECONDS="30",
    ) as worker:
        house.jobs.submit_all(requests)
        house.wait_until_busy()
        house.pause(worker, seconds=4, decoders_alone=decoders_alone)
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    what = "decoders that hear nothing of a drive" if decoders_alone else "a worker that is paused"
    ledger.check(requests, what, started)
    assert ledger.succeeded() == 60
