"""Which times are looked at: in order, within the video, as many as asked for, once each."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner import VideoOptions
from captioner.options.video import FPS, INTERVALS
from captioner_video.strategies import count_times, plan_times, spread, still_to_do

durations = st.floats(0.04, 20_000)


@given(duration=durations, frames=st.integers(1, 512))
def test_uniform_times_are_the_centres_of_equal_parts(duration: float, frames: int) -> None:
    times = plan_times(VideoOptions(frames=frames), duration)
    assert len(times) == count_times(VideoOptions(frames=frames), duration) == frames
    assert times[0] == pytest.approx(duration / frames / 2)
    assert duration - times[-1] == pytest.approx(duration / frames / 2)
    for before, after in pairwise(times):
        assert after - before == pytest.approx(duration / frames)


def test_uniform_without_a_number_are_eight() -> None:
    assert plan_times(VideoOptions(), 16) == [1, 3, 5, 7, 9, 11, 13, 15]


@given(duration=durations, step=st.floats(0.5, 1000), frames=st.none() | st.integers(1, 512))
def test_intervals_begin_at_the_start_and_end_before_the_end(
    duration: float, step: float, frames: int | None
) -> None:
    options = VideoOptions(strategy="interval", interval_seconds=step, frames=frames)
    times = plan_times(options, duration)
    assert len(times) == count_times(options, duration)
    assert 0 <= times[0] <= times[-1] < duration
    if frames is None:
        assert times == [number * step for number in range(len(times))]
        assert len(times) * step >= duration
    else:
        assert len(times) <= frames
        assert all(time / step == pytest.approx(round(time / step)) for time in times)


def test_frames_a_second_are_intervals() -> None:
    options = VideoOptions(strategy="fps", fps=4)
    assert plan_times(options, 1.1) == [0, 0.25, 0.5, 0.75, 1.0]
    assert count_times(options, 3600) == 14_400


def test_a_count_of_millions_is_known_without_making_them() -> None:
    options = VideoOptions(strategy="interval", interval_seconds=1e-3)
    assert count_times(options, 14_400) == 14_400_000


def test_nor_are_they_made_where_a_few_of_them_are_taken() -> None:
    options = VideoOptions(strategy="interval", interval_seconds=1e-3, frames=5)
    tracemalloc.start()
    try:
        times = plan_times(options, 14_400)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert times == pytest.approx([1_440, 4_320, 7_200, 10_080, 12_960])
    assert most_bytes < 100_000


@given(
    duration=st.floats(0, 1e9),
    options=st.builds(
        VideoOptions,
        strategy=st.just("interval"),
        interval_seconds=st.floats(*INTERVALS, allow_infinity=False),
        frames=st.integers(1, 512),
    )
    | st.builds(
        VideoOptions, strategy=st.just("fps"), fps=st.floats(*FPS), frames=st.integers(1, 512)
    ),
)
def test_the_shortest_and_the_longest_steps_are_times_of_the_video(
    duration: float, options: VideoOptions
) -> None:
    times = plan_times(options, duration)
    assert len(times) == count_times(options, duration)
    assert all(0 <= time <= duration for time in times)


def test_times_asked_for_beyond_the_end_are_left_out() -> None:
    options = VideoOptions(strategy="timestamps", timestamps=(0, 4.9, 5, 99))
    assert plan_times(options, 5) == [0, 4.9]


def test_keyframes_are_those_that_there_are_or_some_spread_over_all() -> None:
    keyframes = [float(number) for number in range(100)]
    assert plan_times(VideoOptions(strategy="keyframes"), 100, keyframes) == keyframes
    some = plan_times(VideoOptions(strategy="keyframes", frames=4), 100, keyframes)
    assert some == [12, 37, 62, 87]


def test_a_video_without_length_is_looked_at_once() -> None:
    assert plan_times(VideoOptions(), 0) == [0]
    assert plan_times(VideoOptions(strategy="fps", fps=10), 0) == [0]


@given(
    times=st.lists(st.integers(0, 1000), min_size=1, unique=True).map(sorted),
    most=st.integers(1, 50),
)
def test_spread_takes_each_once_and_leaves_no_large_part_out(times: list[int], most: int) -> None:
    chosen = spread(times, most)
    assert len(chosen) == min(most, len(times))
    assert sorted(set(chosen)) == chosen
    at = [-1, *(times.index(int(time)) for time in chosen), len(times)]
    assert all(after - before <= len(times) / len(chosen) + 1 for before, after in pairwise(at))


@given(data=st.data(), count=st.integers(1, 40))
def test_what_is_done_is_not_done_again_and_nothing_else_is_left_out(
    data: st.DataObject, count: int
) -> None:
    times = plan_times(VideoOptions(strategy="interval", interval_seconds=0.7), count * 0.7)
    done = data.draw(st.sets(st.sampled_from(times)))
    assert still_to_do(times, done) == [time for time in times if time not in done]
    # Where a time could not be reached an earlier frame was taken, after the time before it.
    early = {max(0.0, time - data.draw(st.floats(0, 0.6))) for time in done}
    assert still_to_do(times, early) == [time for time in times if time not in done]
