"""From prompts to token ids, and from token ids to text."""

from collections.abc import Sequence
from pathlib import Path

from transformers import BertTokenizer

from captioner.errors import ErrorCode, InvalidRequestError, JobError, ModelLoadError, describe
from captioner.inference.architecture import TextArchitecture
from captioner.options import GenerationOptions

#: A word that hardly any vocabulary has.
_UNKNOWN = "☃"


class CaptionTokenizer:
    """The checkpoint's WordPiece tokenizer, with the rules of captioning around it.

    Its methods change nothing and may be called from any thread.
    """

    def __init__(self, tokenizer: BertTokenizer, text: TextArchitecture) -> None:
        """`text` gives [DEC], which BLIP's tokenizers do not have, and the number of positions."""
        self._tokenizer = tokenizer
        self._text = text
        # What transformers' tokenizer wraps. Called through that one, it has its options set
        # anew at every call, which fails when two threads meet.
        self._pieces = tokenizer.backend_tokenizer
        self._pieces.no_truncation()
        self._pieces.no_padding()
        # "[SEP]" typed by a client is text; as a control token it would end the prompt.
        self._pieces.encode_special_tokens = True

    def encode(self, prompt: str | None) -> tuple[int, ...]:
        """[DEC] and the prompt's word pieces, with no [SEP]; [DEC] alone without a prompt.

        Raises:
            InvalidRequestError: the prompt is not valid Unicode.
        """
        start = (self._text.bos_token_id,)
        if not prompt or not prompt.strip():
            return start
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(
                "prompt must be valid Unicode, without lone surrogates"
            ) from None
        return start + tuple(self._pieces.encode(prompt, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids: special tokens left out, "woman ' s" joined to "woman's"."""
        # A file may have [DEC] among its words, where it is not known as special.
        words = [one for one in token_ids if one != self._text.bos_token_id]
        return str(
            self._tokenizer.decode(
                words, skip_special_tokens=True, clean_up_tokenization_spaces=True
            )
        )

    def prompt_ids(self, options: GenerationOptions) -> tuple[int, ...]:
        """The ids that generation starts from.

        Raises:
            JobError: `prompt_too_long`: with `max_new_tokens` they exceed the model's positions.
            InvalidRequestError: the prompt is not valid Unicode.
        """
        ids = self.encode(options.prompt)
        needed, positions = len(ids) + options.max_new_tokens, self._text.max_position_embeddings
        if needed > positions:
            raise JobError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the prompt's {len(ids) - 1} tokens, the start token and max_new_tokens "
                f"{options.max_new_tokens} need {needed} positions; the model has {positions}",
            )
        return ids


def load_tokenizer(folder: Path, text: TextArchitecture) -> CaptionTokenizer:
    """Load the tokenizer of a checkpoint folder from tokenizer.json or vocab.txt.

    Raises:
        ModelLoadError: there is neither, it cannot be read, or its tokens are not the model's.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise ModelLoadError(f"the model folder {folder} has neither tokenizer.json nor vocab.txt")
    try:
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
        entries = max(tokenizer.get_vocab().values(), default=-1) + 1
        captions = CaptionTokenizer(tokenizer, text)
        captions.encode(_UNKNOWN)  # fails where there is no [UNK]
    except Exception as error:  # noqa: BLE001 - the Rust tokenizer raises bare Exception
        raise ModelLoadError(f"cannot read the tokenizer in {folder}: {describe(error)}") from None
    if entries > text.vocab_size:
        raise ModelLoadError(
            f"the tokenizer in {folder} has {entries} tokens, "
            f"config.json's vocab_size is {text.vocab_size}"
        )
    # With half a vocabulary, or a line less, captions would be wrong, and nobody would know.
    if entries < text.bos_token_id or tokenizer.sep_token_id != text.sep_token_id:
        raise ModelLoadError(
            f"the tokenizer in {folder} has {entries} tokens, [SEP] is {tokenizer.sep_token_id}; "
            f"config.json wants at least {text.bos_token_id} (bos_token_id), {text.sep_token_id} "
            "(sep_token_id): it is another model's, or part of it is missing; copy it again"
        )
    return captions
