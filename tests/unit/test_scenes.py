"""The drawn scenes: one picture, one caption."""

import itertools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from captioner.demo.accuracy import measure
from captioner.demo.lessons import IGNORED, lessons
from captioner.demo.scenes import APART, GAP, MARGIN, SIZES, Scene, draw, random_scene, scenes
from captioner.demo.shapes import KINDS, PALETTE, Colour, Shape
from captioner.demo.vocabulary import PROMPTS, vocabulary
from captioner.inference import GeneratedCaption
from captioner.options import GenerationOptions

in_any_time = settings(deadline=None)  # drawing takes what a busy machine gives it
any_scene = st.integers(0, 2**32).map(lambda seed: random_scene(random.Random(seed)))
related_scene = any_scene.filter(lambda scene: len({s.colour for s in scene.shapes}) == 2)

RED = Colour("red", PALETTE["red"])
ORANGE = Colour("orange", PALETTE["orange"])
BLUE = Colour("blue", PALETTE["blue"])


def mirrored(scene: Scene) -> Scene:
    return replace(scene, shapes=tuple(replace(s, x=1 - s.x) for s in scene.shapes))


def turned_over(scene: Scene) -> Scene:
    return replace(scene, shapes=tuple(replace(s, y=1 - s.y) for s in scene.shapes))


def order(scene: Scene) -> list[str]:
    """The colours of a scene's shapes as its caption names them."""
    return re.findall("|".join(PALETTE), scene.caption)[:2]


@in_any_time
@given(any_scene)
def test_shapes_lie_inside_the_picture_and_apart(scene: Scene) -> None:
    for shape in scene.shapes:
        for corner in itertools.chain.from_iterable(shape.outline()):
            assert MARGIN - 1e-9 <= corner <= 1 - MARGIN + 1e-9
    for one, other in itertools.combinations(scene.shapes, 2):
        assert one.gap(other) >= GAP


@in_any_time
@given(any_scene, st.randoms())
def test_the_caption_does_not_depend_on_the_order_of_the_shapes(
    scene: Scene, rng: random.Random
) -> None:
    shapes = list(scene.shapes)
    rng.shuffle(shapes)
    assert replace(scene, shapes=tuple(shapes)).caption == scene.caption


@in_any_time
@given(related_scene)
def test_a_mirror_swaps_left_and_right_and_nothing_else(scene: Scene) -> None:
    beside = " left of " in scene.caption
    assert beside != (" above " in scene.caption)
    there, back = order(scene), order(scene)[::-1]
    assert order(mirrored(scene)) == (back if beside else there)
    assert order(turned_over(scene)) == (there if beside else back)
    first, second = (
        next(s for s in scene.shapes if s.colour.name == name) for name in order(scene)
    )
    assert (second.x - first.x if beside else second.y - first.y) >= APART


@in_any_time
@given(any_scene.filter(lambda scene: len({s.colour for s in scene.shapes}) == 1))
def test_a_mirror_changes_nothing_where_place_is_not_told(scene: Scene) -> None:
    assert mirrored(scene).caption == turned_over(scene).caption == scene.caption
    if len(scene.shapes) == 1:
        assert ("large" in scene.caption) == (scene.shapes[0].radius >= SIZES["large"][0])
    else:
        word = scene.caption.split()[0]
        assert word == {2: "two", 3: "three", 4: "four"}[len(scene.shapes)]


@in_any_time
@given(any_scene)
def test_articles_are_right_and_every_word_is_known(scene: Scene) -> None:
    words = scene.caption.split()
    for article, word in itertools.pairwise(words):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou")
    assert set(words) <= set(vocabulary())


@in_any_time
@given(any_scene)
def test_the_drawn_pixels_have_the_named_colours(scene: Scene) -> None:
    picture = draw(scene, 192)
    assert picture.size == (192, 192)
    assert picture.mode == "RGB"
    corners = [picture.getpixel((x, y)) for x in (0, 191) for y in (0, 191)]
    assert corners == [scene.background.rgb] * 4
    for shape in scene.shapes:
        at = (int(shape.x * 192), int(shape.y * 192))
        assert picture.getpixel(at) == shape.colour.rgb
    for colour in (scene.background, *(s.colour for s in scene.shapes)):
        assert min(PALETTE, key=lambda name: distance(PALETTE[name], colour.rgb)) == colour.name


def distance(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def test_a_seed_always_gives_the_same_scenes() -> None:
    assert list(scenes(7, 50)) == list(scenes(7, 50))
    assert list(scenes(7, 20)) == list(scenes(7, 50))[:20]
    assert list(scenes(7, 50)) != list(scenes(8, 50))
    assert draw(next(scenes(7, 1))).tobytes() == draw(next(scenes(7, 1))).tobytes()


def test_every_form_of_caption_colour_and_kind_comes_up() -> None:
    captions = [scene.caption for scene in scenes(0, 2000)]
    words = {word for caption in captions for word in caption.split()}
    assert {"small", "large", "two", "three", "four", "left", "above", "an"} <= words
    assert set(PALETTE) | set(KINDS) <= words
    assert len(set(captions)) > 1500


@pytest.mark.parametrize(
    ("shapes", "caption"),
    [
        ([Shape("circle", RED, 0.5, 0.5, 0.3)], "a large red circle on a blue background"),
        ([Shape("star", ORANGE, 0.5, 0.5, 0.15)], "a small orange star on a blue background"),
        (
            [Shape("square", RED, x, 0.5, 0.12) for x in (0.18, 0.5, 0.82)],
            "three red squares on a blue background",
        ),
        (
            [Shape("star", RED, 0.7, 0.5, 0.15), Shape("circle", ORANGE, 0.2, 0.5, 0.15)],
            "an orange circle left of a red star on a blue background",
        ),
        (
            [Shape("star", RED, 0.5, 0.7, 0.15), Shape("star", ORANGE, 0.5, 0.2, 0.15)],
            "an orange star above a red star on a blue background",
        ),
    ],
)
def test_captions_read_as_people_would_say_it(shapes: list[Shape], caption: str) -> None:
    assert Scene(BLUE, tuple(shapes)).caption == caption


@pytest.mark.parametrize(
    ("shapes", "complaint"),
    [
        ([], "no single caption"),
        (
            [Shape("circle", RED, 0.5, 0.5, (SIZES["small"][1] + SIZES["large"][0]) / 2)],
            "no single caption",
        ),
        ([Shape("circle", RED, 0.1, 0.5, 0.12)], "leaves the picture"),
        ([Shape("circle", BLUE, 0.5, 0.5, 0.12)], "cannot be seen"),
        ([Shape("circle", RED, x, 0.5, 0.12) for x in (0.4, 0.65)], "touch"),
        (
            [Shape("circle", RED, 0.2, 0.2, 0.13), Shape("circle", ORANGE, 0.8, 0.8, 0.13)],
            "no single caption",
        ),
        (
            [Shape("circle", RED, 0.3, 0.3, 0.13), Shape("star", RED, 0.7, 0.3, 0.13)],
            "no single caption",
        ),
    ],
)
def test_pictures_open_to_argument_cannot_be_made(shapes: list[Shape], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Scene(BLUE, tuple(shapes))


def test_a_colour_must_look_like_its_name() -> None:
    with pytest.raises(ValueError, match="not a tint of red"):
        Colour("red", PALETTE["blue"])


def test_prompts_are_words_the_model_knows() -> None:
    assert {word for prompt in PROMPTS for word in prompt.split()} <= set(vocabulary())


@dataclass
class Knowing:
    """A captioner that knows the answers, but for every tenth of them."""

    seed: int

    def generate(
        self, images: Sequence[Image.Image], options: GenerationOptions
    ) -> list[list[GeneratedCaption]]:
        assert options.num_beams == 1
        known = {draw(scene).tobytes(): (i, scene) for i, scene in enumerate(scenes(self.seed, 20))}
        answers = []
        for image in images:
            index, scene = known[image.tobytes()]
            said = "nothing" if index % 10 == 9 else scene.caption
            text = f"{options.prompt or ''} {said}".strip()
            answers.append([GeneratedCaption(text, said, (), 0.0, None)])
        return answers


@pytest.mark.parametrize("prompt", [None, "a picture of"])
def test_accuracy_counts_exactly_right_texts(prompt: str | None) -> None:
    found = measure(Knowing(3), count=20, seed=3, prompt=prompt, batch_size=8)
    assert (found.count, found.right, found.share) == (20, 18, 0.9)
    assert [mistake.index for mistake in found.wrong] == [9, 19]
    expected = [scene.caption for scene in scenes(3, 20)][9]
    assert found.wrong[0].expected == f"{prompt or ''} {expected}".strip()
    assert found.wrong[0].text.endswith("nothing")
    assert measure(Knowing(3), count=0).share == 0.0


def test_lessons_teach_the_caption_and_never_the_prompt() -> None:
    batch = next(lessons(0, 32))
    words = list(vocabulary())
    assert batch.pixels.shape == (32, 3, 96, 96)
    prompted = 0
    for ids, labels in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
        assert ids[0] == len(words)  # [DEC], outside the tokenizer's words
        learnt = [words[label] for label in labels if label != IGNORED]
        assert learnt.pop() == "[SEP]"
        assert re.fullmatch(r"(an?|two|three|four) .* on an? \w+ background", " ".join(learnt))
        given = ids[1 : labels.index(next(label for label in labels if label != IGNORED))]
        text = " ".join(words[i] for i in given)
        assert text == "" or text in PROMPTS
        prompted += bool(text)
    assert 0 < prompted < 32
