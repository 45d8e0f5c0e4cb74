"""Real processes of captioner for tests: started, watched, and always ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from captioner.settings import Settings, load_settings

READY = " ready."
START_SECONDS = 120
STOP_SECONDS = 60


@dataclass
class Worker:
    """A worker process and its log."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while READY not in self.log:
            assert self.process.poll() is None, f"the worker ended:\n{self.log}"
            assert time.monotonic() < deadline, f"the worker is not ready:\n{self.log}"
            time.sleep(0.05)

    def stop(self) -> int:
        """Warm shutdown; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS)


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Look every 20 ms; an AssertionError when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def environment(folder: Path, **settings: str) -> dict[str, str]:
    """This process's environment, the demo model, one folder's data, and the settings named."""
    given = {
        "DATA_DIR": str(folder / "data"),
        "MODEL__ID": "demo",
        "MEDIA__ALLOWED_ROOTS": str(folder),
        "MEDIA__ALLOWED_HOSTS": "127.0.0.1:*",  # where `hosts.py` serves pictures
        **settings,
    }
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CAPTIONER_")}
    return kept | {f"CAPTIONER_{name}": value for name, value in given.items()}


def settings_of(env: Mapping[str, str]) -> Settings:
    """What a process with this environment would read."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            if name.startswith("CAPTIONER_"):
                patch.setenv(name, value)
        return load_settings()


def captioner(
    *arguments: str, env: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "captioner", *arguments],
        env=dict(env),
        cwd=cwd,
        text=True,
        capture_output=True,
        timeout=STOP_SECONDS * 2,
        check=False,
    )


@contextmanager
def running_worker(
    folder: Path,
    env: Mapping[str, str],
    *command: str,
    ready: bool = True,
    within: Sequence[str] = (),
) -> Iterator[Worker]:
    """A worker process; `command` replaces `captioner worker`, and `within` is what runs it."""
    log_path = folder / f"worker-{time.monotonic_ns()}.log"
    with log_path.open("wb") as output:
        process = subprocess.Popen(
            [*within, sys.executable, "-m", *(command or ("captioner", "worker"))],
            env=dict(env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    worker = Worker(process, log_path)
    try:
        if ready:
            worker.wait_until_ready()
        yield worker
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
