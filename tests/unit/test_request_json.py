"""Requests as strangers write them: whatever JSON holds, there is a request, or one clear error."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioner.cli.items import items_of_file
from captioner.domain import CaptionRequest
from captioner.errors import InvalidRequestError
from captioner.options import AltTextOptions, GenerationOptions, VideoOptions
from captioner.options.values import shown, shown_names
from captioner.request_json import MESSAGE_FIELDS, request_from_item, request_from_message

if TYPE_CHECKING:
    from pathlib import Path

#: Greater than any float.
HUGE = (10**400, -(10**400))
#: Each field of a request, as the names that lead to it.
FIELDS = [
    *((name,) for name in sorted(MESSAGE_FIELDS)),
    *(
        ("options", *within, field.name)
        for within, kind in (
            ((), GenerationOptions),
            (("alt_text",), AltTextOptions),
            (("video",), VideoOptions),
        )
        for field in dataclasses.fields(kind)
    ),
    ("options", "alt_text"),
    ("options", "video"),
    ("options", "unknown"),
]

numbers = st.sampled_from(HUGE) | st.integers() | st.floats() | st.sampled_from([5e-324, 1e308])
texts = st.text() | st.sampled_from(["\ud800", "~nobody/a", "http://[", "interval", "fps", "a\nb"])
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def request_with(field: tuple[str, ...], value: object) -> dict[str, Any]:
    """A message's request with this value there, beside what lets it count."""
    video = {"interval_seconds": "interval", "fps": "fps", "timestamps": "timestamps"}
    request: dict[str, Any] = {"id": str(uuid4()), "source": "/a.png", "options": {}}
    inner = request
    for name in field[:-1]:
        inner = inner.setdefault(name, {})
    if field[-1] in video:
        inner["strategy"] = video[field[-1]]
    inner[field[-1]] = value
    return request


@given(field=st.sampled_from(FIELDS), value=values)
def test_any_value_of_any_field_gives_a_request_or_one_clear_error(
    field: tuple[str, ...], value: object
) -> None:
    refused = None
    try:
        request_from_message(request_with(field, value), {})
    except InvalidRequestError as error:
        refused = error.message
    assert refused is None or refused.splitlines() == [refused]
    assert len(refused or "") < 1000


@given(fields=values | st.dictionaries(st.sampled_from(sorted(MESSAGE_FIELDS)), values))
def test_so_does_any_value_instead_of_a_request(fields: object) -> None:
    for read in (request_from_item, request_from_message):
        with suppress(InvalidRequestError):
            read(fields, {})


@pytest.mark.parametrize("value", HUGE, ids=["great", "small"])
@pytest.mark.parametrize(
    "field",
    [
        ("options", "length_penalty"),
        ("options", "repetition_penalty"),
        ("options", "temperature"),
        ("options", "top_p"),
        ("options", "num_beams"),
        ("options", "seed"),
        ("options", "alt_text", "max_characters"),
        ("options", "video", "frames"),
        ("options", "video", "fps"),
        ("options", "video", "interval_seconds"),
    ],
)
def test_numbers_beyond_all_floats_are_refused_by_name(field: tuple[str, ...], value: int) -> None:
    with pytest.raises(InvalidRequestError, match=rf"\b{field[-1]} must be ") as caught:
        request_from_message(request_with(field, value), {})
    assert len(caught.value.message) < 200


def test_nor_do_numbers_do_harm_that_python_does_not_write() -> None:
    for field in (("options", "temperature"), ("options", "num_beams"), ("options", "seed")):
        with pytest.raises(InvalidRequestError, match="not a number of very many digits"):
            request_from_message(request_with(field, 10**5000), {})


def test_times_beyond_all_floats_are_no_seconds() -> None:
    for times in ([10**400], [1, -(10**400)]):
        with pytest.raises(InvalidRequestError, match=r"video.timestamps must be a list of sec"):
            VideoOptions(strategy="timestamps", timestamps=tuple(times))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f'"options": {{"temperature": 1{"0" * 400}}}', "temperature must be a finite number"),
        (f'"options": {{"num_beams": 1{"0" * 5000}}}', "not JSON"),
        (f'"options": {{"num_beams": {"[" * 900}{"]" * 900}}}', "num_beams must be a whole number"),
        ('"source": "~nobody-of-this-name/a.png"', "no such file"),
        (f'"source": "/{"a" * 5000}.png"', "File name too long"),
    ],
)
def test_a_line_that_cannot_be_used_does_not_end_the_file(
    tmp_path: Path, line: str, problem: str
) -> None:
    (tmp_path / "a.png").touch()
    honest = json.dumps({"source": str(tmp_path / "a.png")})
    file = tmp_path / "items.jsonl"
    file.write_text(f'{{"source": "{tmp_path}/a.png", {line}}}\n{honest}\n', encoding="utf-8")

    (place, refused), (_, request) = items_of_file(str(file), {}, {})

    assert place == "line 1"
    assert isinstance(refused, InvalidRequestError)
    assert problem in refused.message
    assert isinstance(request, CaptionRequest)


def test_values_are_shown_in_one_short_line() -> None:
    assert shown("random") == "'random'"
    assert shown("a\n\x1b[31m\x9b") == r"'a\n\x1b[31m\x9b'"
    assert shown(10**5000) == "a number of very many digits"
    values: list[Any] = ["x" * 10**6, 10**400, [[["x" * 100] * 100] * 100], {"a": {"b": {}}}]
    assert all(len(shown(value)) < 500 for value in values)


def test_unknown_names_forge_no_line() -> None:
    names = {"beams\nERROR forged": 1, "\x1b[2J": 1, "\x9b31m": 1, "x" * 10**6: 1}
    with pytest.raises(InvalidRequestError) as caught:
        GenerationOptions.from_mapping(names)
    assert caught.value.message.isprintable()
    assert "unknown option �[2J, beams�ERROR forged, xxx" in caught.value.message
    assert len(caught.value.message) < 500


def test_of_many_unknown_names_some_are_told() -> None:
    assert shown_names(f"n{number}" for number in range(9)) == "n0, n1, n2, n3, n4, …"
    assert shown_names(["b", "a"]) == "a, b"
