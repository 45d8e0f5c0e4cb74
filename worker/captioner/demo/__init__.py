"""The demo: drawn scenes with known captions, and a small BLIP that has learnt to caption them.

The weights of BLIP-large are a download of 1.9 GB. The small model in this package has the same
architecture and the same file format, and the true caption of every picture it is shown is known,
so the whole service can be run, and its captions checked, offline and in seconds.

It is a demo: it knows drawn circles, squares, triangles and stars, and nothing else.
"""

from pathlib import Path

#: The folder of the shipped checkpoint, in Hugging Face format.
MODEL_PATH: Path = Path(__file__).resolve().parent / "model"

__all__ = ["MODEL_PATH"]
