"""Alt texts: what a screen reader says in a picture's place, made of its caption.

The caption stays as the model wrote it. How long an alt text may be, and whether a picture is
decorative, is what the request says under `options.alt_text`.
"""

from __future__ import annotations

from dataclasses import replace

from captioner import Caption, CaptionRequest, hookimpl
from captioner_alt_text.wording import alt_text_of

__all__ = ["alt_text_of", "process_caption"]


@hookimpl(trylast=True)  # after plugins that change the text
def process_caption(caption: Caption, request: CaptionRequest) -> Caption | None:
    """Add an alt text; one that is there already is another plugin's, and stays."""
    if request.alt_text.decorative:
        return replace(caption, alt_text="")
    if caption.alt_text is not None:
        return None
    # None of an empty caption: only what a client calls decorative has an empty one.
    return replace(
        caption, alt_text=alt_text_of(caption.text, request.alt_text.max_characters) or None
    )
