"""Fetching a checkpoint from the Hugging Face hub, or from its cache on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from captioner.errors import ModelLoadError, describe

#: All that is fetched: no pickles, no code, no weights of other frameworks.
NEEDED_FILES = (
    "config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)

_REMEDY = (
    "set CAPTIONER_MODEL__ID to another hub id, to a local folder in Hugging Face format, "
    "or to `demo`"
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")


def looks_like_hub_id(model_id: str) -> bool:
    """True for `owner/name`."""
    return _HUB_ID.fullmatch(model_id) is not None


def fetch_snapshot(
    model_id: str, revision: str | None, check: Callable[[Path], object] = lambda _folder: None
) -> Path:
    """Bring a model of the hub to this machine.

    The hub is asked what `revision` (by default `main`) stands for; when it cannot be reached,
    what the cache holds of it is used. huggingface_hub's own variables (HF_HOME, HF_TOKEN,
    HF_HUB_OFFLINE, HF_ENDPOINT) apply.

    Args:
        model_id: `owner/name`.
        revision: branch, tag or commit.
        check: refuses a folder with a config.json alone. Asked of models that are new here: those
            of another kind have gigabytes of weights, too.

    Returns:
        The snapshot's folder; its name is the commit hash.

    Raises:
        ModelLoadError: there is no such model or revision, it is gated, or the hub cannot be
            reached and the cache does not hold it; or `check` says so.
    """
    shown = f"{model_id!r}" if revision is None else f"{model_id!r} at revision {revision!r}"
    try:
        if try_to_load_from_cache(model_id, "config.json", revision=revision) is None:
            check(
                Path(snapshot_download(model_id, revision=revision, allow_patterns="config.json"))
            )
        return Path(
            snapshot_download(model_id, revision=revision, allow_patterns=list(NEEDED_FILES))
        )
    except ModelLoadError as error:
        raise ModelLoadError(f"the model {shown} cannot be used: {error}") from None
    except GatedRepoError:
        problem = "is gated on the Hugging Face hub: accept its terms there and set HF_TOKEN"
    except RepositoryNotFoundError:
        problem = (
            "is neither a local folder nor a model on the Hugging Face hub "
            "(private ones need HF_TOKEN)"
        )
    except RevisionNotFoundError:
        problem = "has no such revision on the Hugging Face hub (CAPTIONER_MODEL__REVISION)"
    except LocalEntryNotFoundError:
        problem = "is not on this machine, and the Hugging Face hub cannot be reached"
    except HFValidationError:
        problem = "is not a possible hub id"
    except Exception as error:  # noqa: BLE001 - proxies, disks and transfers fail in many types
        problem = f"cannot be fetched from the Hugging Face hub ({describe(error)})"
    raise ModelLoadError(f"the model {shown} {problem}; {_REMEDY}")
