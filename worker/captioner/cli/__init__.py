"""The command line: parsing and printing only."""

try:
    from captioner.cli.main import main
except KeyboardInterrupt:  # importing takes most of a second, which is enough for Ctrl-C
    raise SystemExit(130) from None

__all__ = ["main"]
