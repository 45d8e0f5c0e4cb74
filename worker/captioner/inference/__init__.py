"""Captions from pictures: checkpoints, pixels, prompts and generation.

    model = load_captioner("Salesforce/blip-image-captioning-large")
    best = model.generate([picture], GenerationOptions(prompt="a picture of"))[0][0]

The only package of the service that imports torch or transformers, and when a model is loaded, not
when it is imported. The contract is in this folder's README.md.
"""

from captioner.inference.captioner import Captioner, GeneratedCaption, load_captioner
from captioner.options import GenerationOptions

__all__ = ["Captioner", "GeneratedCaption", "GenerationOptions", "load_captioner"]
