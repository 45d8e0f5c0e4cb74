from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.errors import InvalidRequestError
from captioner.options import PAPER, GenerationOptions


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_beams": -1}, "num_beams"),
        ({"num_beams": 0}, "num_beams"),
        ({"num_beams": True}, "num_beams"),
        ({"num_beams": "3"}, "num_beams"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": 2.5}, "max_new_tokens"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, "min_new_tokens"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": 9e-5}, "temperature must be from 0.0001 to 100, not 9e-05"),
        ({"temperature": 101}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 0.009}, "repetition_penalty must be from 0.01 to 100"),
        ({"repetition_penalty": 101}, "repetition_penalty"),
        ({"length_penalty": math.inf}, "length_penalty"),
        ({"length_penalty": 100.5}, "length_penalty must be from -100 to 100"),
        ({"length_penalty": -101}, "length_penalty must be from -100 to 100"),
        ({"length_penalty": -3.1}, r"at least -3.07 for max_new_tokens of 20"),
        ({"length_penalty": -1.7, "max_new_tokens": 256}, "at least -1.66"),
        ({"do_sample": True, "num_beams": 3}, "do_sample"),
        ({"do_sample": 1, "num_beams": 1}, "do_sample"),
        ({"num_return_sequences": 4}, "num_return_sequences"),
        ({"num_beams": 1, "num_return_sequences": 2}, "num_return_sequences"),
        ({"seed": -1}, "seed"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": "a\x00b"}, "prompt"),
        ({"prompt": "x" * 4097}, "prompt"),
        ({"beams": 3}, "beams"),
    ],
)
def test_refuses_what_cannot_work_naming_it(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequestError, match=named) as raised:
        GenerationOptions.from_mapping(values)
    assert raised.value.code == "invalid_request"
    assert "\n" not in str(raised.value)


def test_whole_numbers_become_reals_where_reals_are_meant() -> None:
    options = GenerationOptions(repetition_penalty=1, length_penalty=2)
    assert isinstance(options.repetition_penalty, float)
    assert options.length_penalty == 2.0


@pytest.mark.parametrize(
    "values",
    [
        {"length_penalty": -3.07},
        {"length_penalty": -100, "max_new_tokens": 1},
        {"length_penalty": -100, "num_beams": 1},
        {"length_penalty": 100},
    ],
)
def test_a_length_penalty_is_refused_only_where_scores_would_be_too_great(
    values: dict[str, Any],
) -> None:
    GenerationOptions.from_mapping(values)


def test_sampling_may_return_many() -> None:
    GenerationOptions(do_sample=True, num_beams=1, num_return_sequences=5)


@pytest.mark.parametrize("prompt", [None, "", "   ", "\t"])
def test_white_space_is_no_prompt(prompt: str | None) -> None:
    assert not GenerationOptions(prompt=prompt).conditional


def test_the_papers_lengths_do_not_count_the_four_tokens_of_its_prompt() -> None:
    assert (PAPER.max_new_tokens, PAPER.min_new_tokens, PAPER.num_beams) == (16, 1, 3)
    assert PAPER.prompt == "a picture of"


@given(
    beams=st.integers(1, 32),
    tokens=st.integers(1, 256),
    prompt=st.none() | st.text(st.characters(exclude_characters="\x00")),
)
def test_survives_storage(beams: int, tokens: int, prompt: str | None) -> None:
    options = GenerationOptions(num_beams=beams, max_new_tokens=tokens, prompt=prompt)
    assert GenerationOptions.from_mapping(options.as_mapping()) == options
