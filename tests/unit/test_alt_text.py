"""Alt texts: short, whole words, to the point; and what a request may ask of them."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import captioner_alt_text
from captioner import AltTextOptions, Caption, CaptionRequest, GenerationOptions, Source
from captioner.errors import InvalidRequestError
from captioner.options import VideoOptions, options_from_mapping, options_mapping
from captioner.request_json import request_from_item
from captioner.store.mapping import fingerprint
from captioner.testing import FakeCaption, FakeCaptionModel, caption_with
from captioner_alt_text import alt_text_of, process_caption

CAPTION = Caption(text="a picture of a cat", continuation="a cat", score=-1.0)

# --- Wording --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "alt_text"),
    [
        ("a cat on a mat", "A cat on a mat"),
        ("  a cat\n on a  mat . ", "A cat on a mat"),
        ("a picture of a cat", "A cat"),
        ("a photo of a cat", "A cat"),
        ("a photography of two cats", "Two cats"),
        ("an image of a cat", "A cat"),
        ("the image of a cat", "A cat"),
        ("this is an image of a cat", "A cat"),
        ("picture of a cat", "A cat"),
        ("an image that shows a cat", "A cat"),
        ("there is a cat that is sitting on a couch", "A cat that is sitting on a couch"),
        ("there are two dogs", "Two dogs"),
        ("a close up of a cat", "A cat"),
        ("a close-up view of a cat", "A cat"),
        ("close up shot of a cat", "A cat"),
        ("a closeup picture of a cat", "A cat"),
        ("there is a picture of a close up of a cat", "A cat"),
        ("There Is A Picture Of A Cat", "A Cat"),
        ("arafed man in a blue shirt", "Man in a blue shirt"),
        ("araffe standing in the grass", "Standing in the grass"),
        ("an arafed woman in a red dress", "A woman in a red dress"),
        ("a arafed owl", "An owl"),
        ("there is an araffed image of a dog", "A dog"),
        ("arafed close up of a flower", "A flower"),
        ("a man with an arafed look", "A man with a look"),
        ("a woman's dog - very small", "A woman's dog - very small"),
        ("élan vital", "Élan vital"),
        ("ßtraße", "ßtraße"),  # there is no upper case of one letter
        # What only looks like one of them stays.
        ("yasser arafat", "Yasser arafat"),
        ("a picture frame on a wall", "A picture frame on a wall"),
        ("a man taking a picture of a cat", "A man taking a picture of a cat"),
        ("thereis a cat", "Thereis a cat"),
        ("a black and white photo of a man", "A black and white photo of a man"),
        # Nothing is said.
        ("", ""),
        (" . ", ""),
        ("a picture of", ""),
        ("arafed", ""),
        ("there is", ""),
    ],
)
def test_the_wording(caption: str, alt_text: str) -> None:
    assert alt_text_of(caption, 125) == alt_text


@pytest.mark.parametrize(
    ("most", "alt_text"),
    [
        (40, "A man and a woman, standing in a field"),
        (38, "A man and a woman, standing in a field"),
        (37, "A man and a woman, standing"),  # not "… in a"
        (27, "A man and a woman, standing"),
        (26, "A man and a woman"),  # no comma left over
        (12, "A man"),
        (5, "A man"),
        (4, "A"),
        (1, "A"),
    ],
)
def test_it_is_cut_after_a_word(most: int, alt_text: str) -> None:
    assert alt_text_of("a man and a woman, standing in a field", most) == alt_text


def test_a_word_that_is_too_long_by_itself_is_cut() -> None:
    assert alt_text_of("donaudampfschifffahrt", 5) == "Donau"
    assert alt_text_of("x" * 1000, 125) == "X" + "x" * 124


#: Words, and what the rules look for, so that they meet in every way.
pieces = st.one_of(
    st.sampled_from(
        [
            *("a", "an", "the", "this", "that", "it", "is", "are", "there", "and", "in", "of"),
            *("picture", "photo", "image", "close", "up", "close-up", "view", "shot", "showing"),
            *("arafed", "araffe", "araffes", *",.-:;'\n", "\N{EN DASH}"),
        ]
    ),
    st.text(alphabet=string.ascii_letters + "éß\u0149ıİ '-.,", max_size=12),
    st.text(max_size=5),
)
captions = st.lists(pieces, max_size=30).map(" ".join)
lengths = st.integers(1, 200)


@given(captions, lengths)
def test_it_is_never_too_long(caption: str, most: int) -> None:
    assert len(alt_text_of(caption, most)) <= most


@given(captions, lengths)
def test_its_own_alt_text_is_itself(caption: str, most: int) -> None:
    once = alt_text_of(caption, most)
    assert alt_text_of(once, most) == once


@given(captions, lengths)
def test_it_has_no_edges_and_no_double_spaces(caption: str, most: int) -> None:
    text = alt_text_of(caption, most)
    assert text == text.strip(" .,;:-")
    assert "  " not in text
    assert "\n" not in text
    assert not text or text[0] == text[0].upper() or len(text[0].upper()) > 1


@given(st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=8), min_size=1), lengths)
def test_it_never_ends_within_a_word(words: list[str], most: int) -> None:
    shown = alt_text_of(" ".join(words), most).lower()
    if " " in shown:
        assert f" {shown} " in f" {' '.join(words)} "


# --- The plugin -----------------------------------------------------------------------------------


class Says(FakeCaptionModel):
    """Says one thing of every picture."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def generate(self, *_: object) -> list[list[FakeCaption]]:
        return [[FakeCaption(self.text, self.text, -1.0)]]


def alt_text(text: str, **asked: Any) -> str | None:
    """The alt text of a job whose model says `text`; its caption stays."""
    options = {"alt_text": asked} if asked else None
    job = caption_with(captioner_alt_text, name="alt_text", model=Says(text), options=options)
    (caption,) = job.captions
    assert (caption.text, caption.continuation, caption.origin) == (text, text, "model")
    assert job.as_mapping()["captions"][0]["alt_text"] == caption.alt_text
    return caption.alt_text


def test_caption_and_alt_text_are_kept_apart() -> None:
    assert alt_text("there is a cat") == "A cat"
    assert alt_text("a cat on a mat", max_characters=6) == "A cat"
    assert alt_text("so " * 100) == "So" + " so" * 41  # of 125 characters


def test_a_prompt_is_a_lead_in_like_any_other() -> None:
    job = caption_with(captioner_alt_text, prompt="a picture of")
    assert job.caption == "a picture of mean colour 10 20 30"
    assert job.captions[0].alt_text == "Mean colour 10 20 30"


def test_every_caption_of_a_job_has_one() -> None:
    job = caption_with(captioner_alt_text, options={"num_return_sequences": 2})
    assert [caption.alt_text for caption in job.captions] == ["Mean colour 10 20 30"] * 2


def test_a_decorative_picture_succeeds_with_an_empty_one() -> None:
    assert alt_text("a cat", decorative=True) == ""
    assert alt_text("", decorative=True) == ""


def test_an_empty_one_is_never_given_unless_it_was_asked_for() -> None:
    assert alt_text("") is None
    assert alt_text("a picture of") is None


def test_that_of_another_plugin_stays_unless_the_picture_is_decorative() -> None:
    made = replace(CAPTION, alt_text="By another")
    request = CaptionRequest(source=Source("/x"))
    assert process_caption(made, request) is None
    decorative = replace(request, alt_text=AltTextOptions(decorative=True))
    processed = process_caption(made, decorative)
    assert processed
    assert processed.alt_text == ""


# --- Options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"max_characters": 0}, "alt_text.max_characters must be from 1 to 1000, not 0"),
        ({"max_characters": 1001}, "must be from 1 to 1000"),
        ({"max_characters": "80"}, "alt_text.max_characters must be a whole number, not '80'"),
        ({"max_characters": True}, "must be a whole number"),
        ({"max_characters": None}, "must be a whole number"),
        ({"decorative": "yes"}, "alt_text.decorative must be true or false, not 'yes'"),
        ({"decorative": 1}, "must be true or false"),
        ({"decorativ": True}, "unknown field in options.alt_text; known are decorative, max_char"),
        ("none", "options.alt_text must be a JSON object"),
        (None, "options.alt_text must be a JSON object"),
        ([], "options.alt_text must be a JSON object"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(asked: object, problem: str) -> None:
    with pytest.raises(InvalidRequestError, match=problem):
        request_from_item({"source": "/x", "options": {"alt_text": asked}}, {})


def test_what_was_asked_for_is_stored_and_shown() -> None:
    asked = {"max_characters": 80, "decorative": True}
    job = caption_with(captioner_alt_text, options={"num_beams": 2, "alt_text": asked})
    assert job.alt_text == AltTextOptions(max_characters=80, decorative=True)
    assert job.request.alt_text == job.alt_text
    shown = job.as_mapping()["options"]
    assert (shown["num_beams"], shown["alt_text"]) == (2, asked)
    assert json.loads(json.dumps(shown)) == shown


def test_options_that_were_stored_are_read_again() -> None:
    for alt in (
        AltTextOptions(),
        AltTextOptions(decorative=True),
        AltTextOptions(max_characters=7),
    ):
        generation = GenerationOptions(num_beams=5)
        asked = (generation, alt, VideoOptions())
        assert options_from_mapping(options_mapping(*asked)) == asked


def test_who_asks_for_nothing_makes_the_same_request_as_ever() -> None:
    request = CaptionRequest(source=Source("/x"))
    assert "alt_text" not in options_mapping(request.options, request.alt_text, request.video)
    default = replace(request, alt_text=AltTextOptions(max_characters=125, decorative=False))
    assert fingerprint(default) == fingerprint(request)
    decorative = replace(request, alt_text=AltTextOptions(decorative=True))
    assert fingerprint(decorative) != fingerprint(request)


def test_an_item_may_leave_it_to_the_defaults() -> None:
    defaults = {"num_beams": 2, "alt_text": {"decorative": True}}
    assert request_from_item({"source": "/x"}, defaults).alt_text.decorative
    own = {"source": "/x", "options": {"alt_text": {"max_characters": 9}}}
    assert request_from_item(own, defaults).alt_text == AltTextOptions(max_characters=9)
