"""What stops an evaluation before it begins."""

from captioner.errors import SettingsError


class EvaluationError(SettingsError):
    """Something the evaluation was given, or needs on this machine, is not as it must be."""
