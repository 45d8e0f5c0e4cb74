from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from captioner.errors import ErrorCode, InvalidRequestError, JobError, ModelLoadError
from captioner.inference.architecture import TextArchitecture
from captioner.inference.tokenizer import CaptionTokenizer, load_tokenizer
from captioner.options import GenerationOptions
from checkpoints import DEC, POSITIONS, SEP, VOCABULARY, Layout, save_tiny_blip

_TEXT = TextArchitecture(
    vocab_size=DEC + 2, bos_token_id=DEC, sep_token_id=SEP, max_position_embeddings=POSITIONS
)


def _ids(words: str) -> tuple[int, ...]:
    return tuple(VOCABULARY[word] for word in words.split())


@pytest.fixture(params=["transformers5", "hub"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    layout: Layout = request.param
    return save_tiny_blip(tmp_path, layout=layout)


@pytest.fixture
def tokenizer(folder: Path) -> CaptionTokenizer:
    return load_tokenizer(folder, _TEXT)


def test_a_prompt_starts_with_dec_and_has_no_sep(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.encode("A Photography of") == (DEC, *_ids("a photo ##graphy of"))


@pytest.mark.parametrize("prompt", [None, "", "   ", "\t\n", "\u200b"])
def test_without_words_there_is_only_dec(tokenizer: CaptionTokenizer, prompt: str | None) -> None:
    assert tokenizer.encode(prompt) == (DEC,)


def test_control_tokens_typed_in_a_prompt_are_text(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.encode("a [SEP]") == (DEC, *_ids("a [ sep ]"))
    assert SEP not in tokenizer.encode("[SEP] [PAD] [CLS] [MASK]")[1:]
    assert VOCABULARY["[PAD]"] not in tokenizer.encode("[PAD]")


def test_prompt_ids_are_those_of_transformers(tokenizer: CaptionTokenizer, folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(folder)
    for prompt in ("a picture of", "A WOMAN's dog, not a cat!", "[SEP] photos", "café zebra"):
        expected = theirs(prompt, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert list(tokenizer.encode(prompt)[1:]) == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("a woman ' s dog", "a woman's dog"),
        ("a photo ##s of a dog , a cat .", "a photos of a dog, a cat."),
        ("dog [SEP] [PAD] [UNK] cat", "dog cat"),
        ("", ""),
    ],
)
def test_text_reads_as_people_write(tokenizer: CaptionTokenizer, words: str, text: str) -> None:
    assert tokenizer.decode(_ids(words)) == text


def test_start_tokens_outside_the_vocabulary_are_no_text(tokenizer: CaptionTokenizer) -> None:
    assert tokenizer.decode((DEC, *_ids("a dog"), DEC + 1)) == "a dog"


def test_prompt_too_long_counts_start_prompt_and_new_tokens(tokenizer: CaptionTokenizer) -> None:
    fits = GenerationOptions(prompt="a picture of", max_new_tokens=POSITIONS - 4)
    assert len(tokenizer.prompt_ids(fits)) == 4
    with pytest.raises(JobError, match=r"3 tokens.*61.*65 positions.*64") as caught:
        tokenizer.prompt_ids(GenerationOptions(prompt="a picture of", max_new_tokens=POSITIONS - 3))
    assert caught.value.code is ErrorCode.PROMPT_TOO_LONG
    assert not caught.value.retryable


def test_lone_surrogates_are_refused(tokenizer: CaptionTokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="Unicode"):
        tokenizer.encode("a \ud800 dog")


def test_truncation_and_padding_stored_in_the_file_change_no_prompt(tmp_path: Path) -> None:
    save_tiny_blip(tmp_path)
    path = str(tmp_path / "tokenizer.json")
    stored = Tokenizer.from_file(path)
    stored.enable_truncation(max_length=2)
    stored.enable_padding(length=9)
    stored.save(path)
    prompt = "a picture of a dog"
    assert load_tokenizer(tmp_path, _TEXT).encode(prompt) == (DEC, *_ids(prompt))


def test_threads_may_tokenise_at_once(tokenizer: CaptionTokenizer) -> None:
    wrong: list[object] = []

    def work() -> None:
        for _ in range(300):
            ids = tokenizer.encode("a [SEP] photography")
            if ids != (DEC, *_ids("a [ sep ] photo ##graphy")):
                wrong.append(ids)
            if tokenizer.decode(ids) != "a [ sep ] photography":
                wrong.append(ids)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"neither tokenizer\.json nor vocab\.txt"):
        load_tokenizer(tmp_path, _TEXT)


def test_a_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    save_tiny_blip(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{ not json", encoding="utf-8")
    with pytest.raises(ModelLoadError, match="cannot read the tokenizer") as caught:
        load_tokenizer(tmp_path, _TEXT)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    save_tiny_blip(tmp_path)
    small = TextArchitecture(vocab_size=20, bos_token_id=19, sep_token_id=SEP)
    with pytest.raises(ModelLoadError, match="vocab_size is 20"):
        load_tokenizer(tmp_path, small)


def write_vocabulary(folder: Path, words: Sequence[str]) -> None:
    save_tiny_blip(folder, layout="hub")
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(list(VOCABULARY)[:30], id="cut short"),
        pytest.param(list(VOCABULARY)[1:], id="a line less"),
        pytest.param(list(VOCABULARY)[::-1], id="in another order"),
    ],
)
def test_a_vocabulary_that_would_write_other_words_is_refused(
    words: list[str], tmp_path: Path
) -> None:
    write_vocabulary(tmp_path, words)
    with pytest.raises(ModelLoadError, match=f"at least {DEC} .*another model's, or part of it"):
        load_tokenizer(tmp_path, _TEXT)


def test_a_tokenizer_that_fails_at_unknown_words_is_refused(tmp_path: Path) -> None:
    write_vocabulary(tmp_path, ["unknown" if word == "[UNK]" else word for word in VOCABULARY])
    with pytest.raises(ModelLoadError, match=r"Missing \[UNK\]"):
        load_tokenizer(tmp_path, _TEXT)


def test_start_tokens_among_the_words_are_no_text_either(tmp_path: Path) -> None:
    write_vocabulary(tmp_path, [*VOCABULARY, "[DEC]", "[ENC]"])
    assert load_tokenizer(tmp_path, _TEXT).decode((DEC, *_ids("a dog"))) == "a dog"
