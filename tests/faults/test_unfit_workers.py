"""A worker that can store no download, or start no decoder: jobs wait for it, or for another."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from captioner.domain import CaptionRequest, JobState
from captioner.source import Source
from faults.house import House, Ledger
from processes import Worker, wait_until

#: Runs what follows with a disk of its own, of a megabyte, at its first argument.
WITH_SMALL_DISK = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
MOUNT = 'mount -t tmpfs -o size=1m none "$0" && exec "$@"'
TOLD = "downloads cannot be stored"


class Pictures(SimpleHTTPRequestHandler):
    """The files of a folder."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(house: House) -> Iterator[str]:
    """The house's pictures, from a web server; its URL."""
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Pictures, directory=str(house.folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def requests(house: House) -> Iterator[list[CaptionRequest]]:
    """40 pictures to be downloaded."""
    with served(house) as url:
        yield [
            CaptionRequest(source=Source(f"{url}/{Path(one.source.path).name}"))
            for one in house.innocents(40)
        ]


def download_one(house: House, requests: list[CaptionRequest]) -> None:
    """Python settles with the first for which folder it takes, and takes /tmp for a broken one."""
    house.jobs.submit_all(requests[:1])
    wait_until(lambda: house.count(JobState.SUCCEEDED) == 1)


def check(house: House, requests: list[CaptionRequest], fault: str, started: float) -> None:
    ledger = Ledger.read(house.database)
    ledger.check(requests, fault, started)
    assert ledger.succeeded() == 40
    jobs = [house.jobs.get(one.id) for one in requests]
    assert {(job.retries, job.crashes) for job in jobs} == {(0, 0)}, "counted against jobs"


def test_the_folder_of_temporary_files_goes_away(
    house: House, requests: list[CaptionRequest]
) -> None:
    started, temporary = time.monotonic(), house.folder / "temporary"
    temporary.mkdir()
    house.env["TMPDIR"] = str(temporary)
    with house.worker() as worker:
        download_one(house, requests)
        shutil.rmtree(temporary)
        house.jobs.submit_all(requests[1:])
        wait_until(lambda: TOLD in worker.log)
        time.sleep(7)
        assert house.count(JobState.SUCCEEDED) == 1
        temporary.mkdir()
        house.wait_until_done()
        assert worker.stop() == 0
    check(house, requests, "a worker without a folder for downloads", started)


def test_no_decoder_starts(house: House) -> None:
    """As where no process may be started, or each is killed for memory."""
    requests, started = house.innocents(40), time.monotonic()
    broken = house.folder / "broken"
    broken.touch()
    with house.worker(FAULTY_DECODERS=str(broken)) as worker:
        house.jobs.submit_all(requests)
        wait_until(lambda: "a decoder does not start: it ended with exit code 9" in worker.log)
        time.sleep(7)
        assert house.count(JobState.SUCCEEDED) == 0
        broken.unlink()
        house.wait_until_done()
        assert worker.stop() == 0
    check(house, requests, "a worker without decoders", started)


def may_mount(folder: Path) -> bool:
    """Whether this machine lets anybody have a disk of their own in memory."""
    command = [*WITH_SMALL_DISK, MOUNT, str(folder), "true"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, check=False).returncode


def fill(worker: Worker, folder: Path) -> None:
    """Leave no room in a folder as a worker sees it."""
    ballast = Path(f"/proc/{worker.process.pid}/root") / folder.relative_to("/") / "ballast"
    with pytest.raises(OSError, match="No space left"):
        ballast.write_bytes(bytes(2**20 + 1))


def test_a_worker_with_a_full_disk_fails_no_job_and_leaves_them_to_others(
    house: House, requests: list[CaptionRequest]
) -> None:
    temporary = house.folder / "temporary"
    temporary.mkdir()
    if not may_mount(temporary):
        pytest.skip("needs `unshare --user --mount`, which this machine has not, or does not let")
    started, within = time.monotonic(), [*WITH_SMALL_DISK, MOUNT, str(temporary)]
    full = replace(house, env={**house.env, "TMPDIR": str(temporary)}, within=within)
    with full.worker() as first:
        download_one(house, requests)
        fill(first, temporary)
        house.jobs.submit_all(requests[1:])
        wait_until(lambda: f"{TOLD}: No space left on device" in first.log)
        time.sleep(6)  # and a second time
        assert house.count(JobState.SUCCEEDED) == 1
        with house.worker() as second:
            house.wait_until_done()
            assert [worker.stop() for worker in (first, second)] == [0, 0]
    check(house, requests, "a worker with a full disk beside another", started)
    assert first.log.count(TOLD) <= 4
