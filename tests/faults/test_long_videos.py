"""Long videos: cut off or handed back they go on where they were, and leave room for pictures."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import pytest
from PIL import Image
from sqlalchemy import select

from captioner.captioning import FRAMES_IN_FLIGHT
from captioner.domain import CaptionRequest, JobState, Lane
from captioner.options import VideoOptions
from captioner.source import Source
from captioner.store.models import FrameRow
from faults.house import House, Ledger, children, kill, lives
from processes import wait_until
from videos import write_video

HOURS = float(os.environ.get("CAPTIONER_TEST_VIDEO_HOURS", "0.05"))
#: Two hours are looked at every ten seconds.
INTERVAL_SECONDS = max(2, round(5 * HOURS))
FRAMES = int(HOURS * 3600 / INTERVAL_SECONDS)
RATE = 5
#: What worker and decoders may take together, without the process of the model.
MOST_BYTES = 1.5 * 2**30
#: In which a worker in the middle of a video ends: a batch, a write, and the end of processes.
MOST_SECONDS = 10.0
#: Each frame has a colour of its own, told by three digits to this base; none breaks the model.
DIGITS, STEP, LEAST = 9, 18, 40


def colour(number: int) -> tuple[int, int, int]:
    red, green, blue = (number // DIGITS**place % DIGITS for place in range(3))
    return (LEAST + STEP * red, LEAST + STEP * green, LEAST + STEP * blue)


def told(caption: str) -> int:
    """The number of the frame that a caption is of; encoders change colours a little."""
    levels = [int(word) for word in caption.removeprefix("mean colour ").split()]
    digits = [round((level - LEAST) / STEP) for level in levels]
    return sum(digit * DIGITS**place for place, digit in enumerate(digits))


def pictures() -> Iterator[Image.Image]:
    for number in range(FRAMES):
        picture = Image.new("RGB", (320, 240), colour(number))
        for _ in range(INTERVAL_SECONDS * RATE):
            yield picture


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hours of it, encoded once."""
    path = tmp_path_factory.mktemp("film") / "long.mp4"
    return write_video(path, pictures(), rate=RATE, gop=50, options={"preset": "ultrafast"})


def film_request(film: Path) -> CaptionRequest:
    video = VideoOptions(strategy="interval", interval_seconds=INTERVAL_SECONDS)
    return CaptionRequest(source=Source(str(film)), lane=Lane.VIDEO, video=video)


def watched(film: Path) -> dict[str, str]:
    """Settings of a worker that takes so long for its frames that it can be caught at it."""
    return {
        "FAULTY_SECONDS": "0.3",
        "FAULTY_SIZE": "384",  # as BLIP has it
        "MEDIA__ALLOWED_ROOTS": str(film.parent),
    }


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError(pid)


def captioned(notes: Path) -> Counter[str]:
    """What a worker's model said, how often; the first is what it warms itself with."""
    return Counter(notes.read_text().splitlines()[1:])


def kept(house: House) -> list[str]:
    """The captions of the frames that SQL has."""
    with house.database.connect() as connection:
        rows = connection.scalars(select(FrameRow.captions).order_by(FrameRow.number))
        return [captions[0]["text"] for captions in rows]


def test_the_worker_of_a_long_video_is_killed(house: House, film: Path) -> None:
    started = time.monotonic()
    request, notes = film_request(film), [house.folder / name for name in ("first", "second")]
    settings = watched(film)
    with house.worker(**settings, FAULTY_NOTES=str(notes[0])) as first:
        house.jobs.submit_all([request])
        wait_until(lambda: frames_done(house, request.id) >= FRAMES / 2, seconds=600)
        family = [*children(first.process.pid), first.process.pid]
        peaks = [peak_bytes(pid) for pid in (first.process.pid, *decoders(first.process.pid))]
        # Just when a batch is done, which may not be recorded yet.
        so_far = captioned(notes[0]).total()
        wait_until(lambda: captioned(notes[0]).total() > so_far)
        kill(first.process.pid)
        first.process.wait()
        wait_until(lambda: not any(map(lives, family)))
    before, recorded = captioned(notes[0]), kept(house)
    assert FRAMES / 2 <= len(recorded) < FRAMES
    with house.worker(**settings, FAULTY_NOTES=str(notes[1])) as second:
        wait_until(lambda: frames_done(house, request.id) > len(recorded) or ended(house), 600)
        house.wait_until_done(600)
        pids = (second.process.pid, *decoders(second.process.pid))
        peaks_after = [peak_bytes(pid) for pid in pids]
        assert second.stop() == 0
    in_all = before + captioned(notes[1])
    twice = [text for text, count in in_all.items() if count > 1]
    job, ledger = house.jobs.get(request.id), Ledger.read(house.database)
    print(
        f"\nledger of kill -9 in the middle of {HOURS:g} h of video: {FRAMES} frames, "
        f"{before.total()} captioned and {len(recorded)} recorded by then; "
        f"{in_all.total()} captioned in all; of those recorded "
        f"{len(set(twice) & set(recorded))} were captioned twice, of the others {len(twice)}; "
        f"worker and decoders at most {_mib(peaks)} and {_mib(peaks_after)}; "
        f"{time.monotonic() - started:.1f} s"
    )
    assert all(in_all[text] == 1 for text in recorded)
    # What is made twice came back from the engine, and was not written yet.
    assert set(twice) == set(before) - set(recorded)
    assert len(twice) <= FRAMES_IN_FLIGHT
    assert len(in_all) == FRAMES
    assert sum(peaks) < MOST_BYTES
    assert sum(peaks_after) < MOST_BYTES
    # The merged result is that of an attempt that was never cut off.
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert (job.frames_done, job.frames_total) == (FRAMES, FRAMES)
    assert [told(one.text) for one in job.captions[1:]] == list(range(FRAMES))
    assert job.captions[0].end_seconds == pytest.approx(HOURS * 3600)
    assert ledger.events == {request.id: 1}
    assert kept(house) == []


def test_the_worker_of_a_long_video_is_told_to_end(house: House, film: Path) -> None:
    """And does at once: it hands the video back, and nothing of it is captioned twice."""
    request, notes = film_request(film), [house.folder / name for name in ("first", "second")]
    with house.worker(**watched(film), FAULTY_NOTES=str(notes[0])) as first:
        house.jobs.submit_all([request])
        wait_until(lambda: frames_done(house, request.id) >= FRAMES / 4, seconds=600)
        asked = time.monotonic()
        assert first.stop() == 0
        took = time.monotonic() - asked
    before, recorded, job = captioned(notes[0]), kept(house), house.jobs.get(request.id)
    assert (job.state, job.attempt, job.retries) == (JobState.QUEUED, 1, 0)
    assert FRAMES / 4 <= len(recorded) < FRAMES
    assert job.frames_done == len(recorded)
    with house.worker(**watched(film), FAULTY_NOTES=str(notes[1])) as second:
        house.wait_until_done(600)
        assert second.stop() == 0
    in_all, ledger = before + captioned(notes[1]), Ledger.read(house.database)
    twice = sum(count > 1 for count in in_all.values())
    print(
        f"\nledger of SIGTERM in the middle of {HOURS:g} h of video: ended after {took:.1f} s; "
        f"{FRAMES} frames, {before.total()} captioned and {len(recorded)} recorded by then; "
        f"{in_all.total()} captioned in all, {twice} of them twice"
    )
    assert took < MOST_SECONDS
    assert set(before) == set(recorded)
    assert twice == 0
    assert len(in_all) == FRAMES
    job = house.jobs.get(request.id)
    assert (job.state, job.attempt) == (JobState.SUCCEEDED, 2)
    assert [told(one.text) for one in job.captions[1:]] == list(range(FRAMES))
    assert ledger.events == {request.id: 1}


def frames_done(house: House, job_id: UUID) -> int:
    return house.jobs.get(job_id).frames_done or 0


def ended(house: House) -> bool:
    return house.count(JobState.SUCCEEDED) > 0


def decoders(pid: int) -> list[int]:
    return children(pid, "decoder")


def _mib(peaks: list[int]) -> str:
    return " + ".join(f"{peak / 2**20:.0f}" for peak in peaks) + " MiB"


def test_many_long_videos_leave_room_for_pictures(house: House) -> None:
    """And are run once, though each takes longer than the broker waits for an answer."""
    started, slots = time.monotonic(), 8
    settings = {
        "WORKER__CONCURRENCY": str(slots),
        "BROKER__VISIBILITY_TIMEOUT_SECONDS": "10",
        "MEDIA__DECODE_TIMEOUT_SECONDS": "600",
    }
    films = [house.folder / f"film-{number}" for number in range(4 * slots)]
    for path in films:
        path.write_bytes(b"held")
    videos = [house.request(path, Lane.VIDEO) for path in films]
    innocents = house.innocents(5 * slots)
    with house.worker(**settings) as worker:
        house.jobs.submit_all(videos)
        wait_until(lambda: house.count(JobState.PROCESSING) == slots // 4)
        asked = time.monotonic()
        house.jobs.submit_all(innocents)
        wait_until(lambda: house.count(JobState.SUCCEEDED) == len(innocents))
        took = time.monotonic() - asked
        # Until what nobody acknowledged would have been delivered again, and a while more.
        held_until = time.monotonic() + 25
        while time.monotonic() < held_until:
            assert running(house) == slots // 4
            assert house.messages() == len(videos) - slots // 4
            time.sleep(0.5)
        (house.folder / "release").touch()
        house.wait_until_done()
        assert worker.stop() == 0
    ledger = Ledger.read(house.database)
    print(
        f"\nledger of {len(videos)} long videos before {len(innocents)} pictures, {slots} slots: "
        f"{ledger.succeeded()} succeeded, pictures after {took:.1f} s while {slots // 4} videos "
        f"ran; at most {max(ledger.attempts.values())} attempts; {time.monotonic() - started:.1f} s"
    )
    assert ledger.succeeded() == len(videos) + len(innocents)
    assert set(ledger.attempts.values()) == {1}
    assert ledger.events == Counter(dict.fromkeys(ledger.states, 1))


def running(house: House) -> int:
    return house.count(JobState.PROCESSING)
