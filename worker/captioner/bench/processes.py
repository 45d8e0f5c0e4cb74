"""A worker process, and what it costs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from captioner.errors import CaptionerError

#: How long a worker may take to finish what it has in hand.
STOP_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """One worker; its log is shown when it ends before its work does."""

    process: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Raise `CaptionerError`, with the end of the log, when it has ended."""
        if self.process.poll() is None:
            return
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        critical = [line for line in lines if "CRITICAL" in line]
        raise CaptionerError(
            f"a worker ended with code {self.process.returncode}: "
            f"{(critical or lines or ['it printed nothing'])[-1]}"
        )

    @property
    def cpu_seconds(self) -> float:
        """Processor time that it and its children have used, those that have ended too."""
        ticks = 0
        for pid in _family(self.process.pid):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                fields = _stat(pid)
                # utime, stime; those of children that have ended, of the worker only: those of
                # deeper ones are in its own.
                ticks += sum(map(int, fields[11:15] if pid == self.process.pid else fields[11:13]))
        return ticks / os.sysconf("SC_CLK_TCK")

    @property
    def resident_bytes(self) -> int:
        """Main memory of the worker itself."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _family(pid: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents.setdefault(int(_stat(int(folder.name))[1]), []).append(int(folder.name))
    family = [pid]
    for one in family:
        family += parents.get(one, [])
    return family


def _stat(pid: int) -> list[str]:
    """The fields of `/proc/PID/stat` that follow the name, which may hold anything."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()


@contextlib.contextmanager
def running(
    arguments: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[WorkerProcess]:
    """A Python process in the block; at its end it is told to stop, and killed if it does not."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603  # our own command, no shell
            [sys.executable, *arguments],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # Ctrl-C is for the measurement, which ends its workers itself.
            start_new_session=True,
        )
        try:
            yield WorkerProcess(process, log)
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
