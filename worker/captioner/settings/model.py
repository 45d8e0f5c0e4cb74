"""The resident model, what it is asked for, and the process it is in."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from captioner.settings.section import Section

BLIP_LARGE = "Salesforce/blip-image-captioning-large"


class ModelSettings(Section):
    """The resident model."""

    id: str = Field(
        BLIP_LARGE,
        min_length=1,
        description="Hub id, local folder in Hugging Face format, or `demo`.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float16", "bfloat16", "float32", "float64"] = Field(
        "auto",
        description="auto: float16 on CUDA, bfloat16 on CPUs made for it, else float32.",
    )
    backend: Literal["fast", "transformers"] = Field(
        "fast", description="What runs the model; transformers is the reference, and slow."
    )


class GenerationSettings(Section):
    """What a request that says nothing gets."""

    num_beams: int = Field(3, ge=1, le=32, description="Beams of a request that names none.")
    max_new_tokens: int = Field(
        20, ge=1, le=256, description="New tokens at most, of a request that names no number."
    )


class EngineSettings(Section):
    """What runs the model, and how pictures are gathered into batches."""

    inline: bool = Field(
        default=False,
        description="Run the model in the worker's own process: it may take that down.",
    )
    max_batch: int = Field(32, ge=1, le=1024, description="Most pictures of one batch.")
    linger_seconds: float = Field(
        0.005, ge=0, le=1, description="How long a picture waits for company when all is idle."
    )
    hang_seconds: float = Field(
        120.0, gt=0, le=86_400, description="A batch that takes longer is taken for a hang."
    )
    load_timeout_seconds: float = Field(
        900.0, gt=0, le=86_400, description="Loading and warming the model may take this long."
    )
    max_memory_bytes: int | None = Field(
        None, ge=1, description="The engine is restarted when it is larger, between batches."
    )
