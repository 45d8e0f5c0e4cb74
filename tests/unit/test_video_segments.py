"""Segments and summaries of frames' captions; which frames look alike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner import Caption, FrameCaptions, content_words
from captioner.demo.scenes import draw, scenes
from captioner.words import keywords
from captioner_video.duplicates import look_alike, look_of
from captioner_video.segments import combine, medoid, nearly_equal


def frame(
    seconds: float, text: str, score: float = -1.0, media: float | None = 10
) -> FrameCaptions:
    captions = (Caption(text=text, continuation=text, score=score),)
    return FrameCaptions(time_seconds=seconds, captions=captions, media_seconds=media)


def told(captions: list[Caption]) -> list[tuple[float | None, float | None, str]]:
    return [(one.start_seconds, one.end_seconds, one.text) for one in captions]


def test_equal_neighbours_are_one_segment_and_ranges_meet_halfway() -> None:
    frames = [frame(1, "a cat"), frame(3, "a cat"), frame(5, "a dog"), frame(7, "a cat")]
    assert told(list(combine(frames))) == [
        (0, 10, "a cat"),
        (0, 4, "a cat"),
        (4, 6, "a dog"),
        (6, 10, "a cat"),
    ]


def test_with_keyframes_a_segment_begins_with_its_frame() -> None:
    frames = [frame(0, "a cat"), frame(3, "a cat"), frame(5, "a dog")]
    assert told(list(combine(frames, begins_at_frames=True)))[1:] == [
        (0, 5, "a cat"),
        (5, 10, "a dog"),
    ]


def test_one_frame_is_one_segment_and_an_unknown_end_is_the_last_frame() -> None:
    assert told(list(combine([frame(4, "a cat")]))) == [(0, 10, "a cat")] * 2
    assert told(list(combine([frame(4, "a cat", media=None)])))[0] == (0, 4, "a cat")


words = st.sampled_from(["a cat", "the cat", "a dog", "two dogs", "nothing", "", "a red sofa"])


@given(texts=st.lists(words, min_size=1, max_size=30), data=st.data())
def test_segments_tile_the_video_without_overlap(texts: list[str], data: st.DataObject) -> None:
    times = sorted(
        data.draw(st.lists(st.floats(0, 9.99), min_size=len(texts), max_size=len(texts)))
    )
    frames = [frame(time, text) for time, text in zip(times, texts, strict=True)]
    for begins_at_frames in (False, True):
        summary, *parts = combine(frames, begins_at_frames=begins_at_frames)
        assert (summary.start_seconds, summary.end_seconds) == (0, 10)
        assert parts[0].start_seconds == 0
        assert parts[-1].end_seconds == 10
        for before, after in pairwise(parts):
            assert before.end_seconds == after.start_seconds
            assert not nearly_equal(before.text, after.text) or before.text != after.text
        for part in parts:
            assert part.start_seconds is not None
            assert part.end_seconds is not None
            assert part.start_seconds <= part.end_seconds
        assert {one.text for one in (summary, *parts)} <= set(texts)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a man walking down a street", "the man is walking down the street", True),
        ("there is a cat on a couch", "a cat on a couch", True),
        ("", "a", True),
        (
            "a large red circle on a blue background",
            "a small red circle on a blue background",
            False,
        ),
        ("a red circle on a white background", "a red square on a white background", False),
        ("two dogs", "three dogs", False),
        ("a dog", "two dogs", False),
        (
            "a red circle left of a blue star on a white background",
            "a blue star left of a red circle on a white background",
            False,
        ),
        (
            "a red circle left of a blue star on a white background",
            "a red circle above a blue star on a white background",
            False,
        ),
    ],
)
def test_near_equal_is_what_differs_in_words_that_say_nothing(
    one: str, other: str, same: bool
) -> None:
    assert nearly_equal(one, other) is same
    assert nearly_equal(other, one) is same


def test_different_scenes_are_never_near_equal() -> None:
    captions = sorted({scene.caption for scene in scenes(1, 150)})
    for at, one in enumerate(captions):
        assert not any(nearly_equal(one, other) for other in captions[at + 1 :])


def test_the_summary_has_most_in_common_with_all_and_of_equals_the_best_score() -> None:
    frames = [
        frame(1, "a man riding a horse", -0.9),
        frame(2, "a man on a brown horse in a field", -0.2),
        frame(3, "a man riding a horse in a field", -0.8),
        frame(4, "a man riding a horse in a field", -0.5),
        frame(5, "a tree", -0.1),
    ]
    assert medoid(frames) == frames[3].captions[0]


def test_the_summary_is_not_simply_the_longest() -> None:
    long = frame(3, "a cat with a red hat in a large garden", -0.1)
    assert medoid([frame(1, "a cat"), frame(2, "a cat"), long]).text == "a cat"


def test_a_summary_of_thousands_of_captions_takes_no_time() -> None:
    frames = [frame(n / 10, f"a man number {n} with {n % 7} dogs in a field") for n in range(5000)]
    summary, *parts = combine(frames)
    assert len(parts) == 5000
    assert "field" in summary.text


def test_keywords_are_weighed_by_time_and_say_something() -> None:
    parts = [
        Caption(text="a cat on a couch", continuation="", score=0, start_seconds=0, end_seconds=1),
        Caption(text="there are 2 dogs", continuation="", score=0, start_seconds=1, end_seconds=9),
        Caption(text="the cat", continuation="", score=0, start_seconds=9, end_seconds=12),
    ]
    assert keywords(parts) == ["dogs", "cat", "couch"]
    assert keywords(parts, most=1) == ["dogs"]
    assert content_words("The cat LEFT of a dog's bowl") == ("cat", "left", "dog's", "bowl")


# --- Frames that look alike -----------------------------------------------------------------------


def test_scenes_never_look_alike_and_each_looks_like_itself_with_noise() -> None:
    rng = np.random.default_rng(1)
    drawn = [np.asarray(draw(scene, 96)) for scene in scenes(3, 80)]
    looks = [look_of(pixels) for pixels in drawn]
    for at, (pixels, look) in enumerate(zip(drawn, looks, strict=True)):
        noise = rng.integers(-6, 7, pixels.shape)
        noisy = np.clip(pixels.astype(int) + noise, 0, 255).astype(np.uint8)
        assert look_alike(look, look_of(noisy))
        assert not any(look_alike(look, other) for other in looks[at + 1 :])


def test_colours_and_small_things_count() -> None:
    grey = np.full((96, 96, 3), 128, np.uint8)
    red = grey.copy()
    red[:, :, 0] += 40
    red[:, :, 1] -= 20
    dot = grey.copy()
    dot[40:48, 40:48] = 255
    assert not look_alike(look_of(grey), look_of(red))
    assert not look_alike(look_of(grey), look_of(dot))
    assert look_alike(look_of(grey), look_of(grey + np.uint8(4)))


def test_structure_counts_where_colours_are_close() -> None:
    columns = np.repeat(np.tile(np.array([120, 129], np.uint8), 9)[:18], 6)[:96]
    stripes = np.repeat(np.tile(columns, (96, 1))[:, :, None], 3, axis=2)
    one = np.ascontiguousarray(np.repeat(stripes[:, ::6], 12, axis=1)[:, :108])
    assert int(np.abs(one.astype(int) - (249 - one)).max()) <= 12
    assert look_alike(look_of(one), look_of(one))
    assert not look_alike(look_of(one), look_of(249 - one))
