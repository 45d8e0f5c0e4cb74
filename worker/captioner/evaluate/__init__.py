"""The quality of captions, measured: any COCO caption set, and the metrics of its challenge.

Reads the set, captions what is not captioned yet, keeps every caption in a file, and scores them
with `pycocoevalcap`, the scorers that papers on captioning report.
"""

from captioner.evaluate.annotations import CaptionSet, ImageId, Picture, missing, read_captions
from captioner.evaluate.errors import EvaluationError
from captioner.evaluate.metrics import METRICS, require_metrics, score
from captioner.evaluate.predictions import Prediction, Predictions
from captioner.evaluate.report import Report
from captioner.evaluate.run import caption_missing

__all__ = [
    "METRICS",
    "CaptionSet",
    "EvaluationError",
    "ImageId",
    "Picture",
    "Prediction",
    "Predictions",
    "Report",
    "caption_missing",
    "missing",
    "read_captions",
    "require_metrics",
    "score",
]
