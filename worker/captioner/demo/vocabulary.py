"""The words of the demo model: those of the captions, and those of the prompts it is taught."""

from captioner.demo.scenes import COUNTS, SIZES
from captioner.demo.shapes import KINDS, PALETTE

#: Prompts that the model is trained to continue; others work as far as their words are known.
PROMPTS = (
    "a picture of",
    "a photography of",
    "a photo of",
    "an image of",
    "a drawing of",
)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_OTHER_WORDS = ("a", "an", "on", "of", "left", "above", *SIZES, "background")


def vocabulary() -> dict[str, int]:
    """Every token with its id, in the order of `vocab.txt`.

    As on the hub, [DEC], with which every caption starts, is not among them: its id is the
    length of this dictionary, and [ENC]'s, which captioning never uses, is one more.
    """
    words = [
        *_OTHER_WORDS,
        *(word for prompt in PROMPTS for word in prompt.split()),
        *COUNTS.values(),
        *PALETTE,
        *KINDS,
        *(f"{kind}s" for kind in KINDS),
    ]
    return {token: index for index, token in enumerate(dict.fromkeys((*SPECIAL_TOKENS, *words)))}
