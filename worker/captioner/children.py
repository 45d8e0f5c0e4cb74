"""Child processes with one pipe each that never outlive their parent.

Not `multiprocessing.Process`: that imports the parent's main module again, and at the parent's end
it waits for ever for a child that ignores SIGTERM. Ours have to ignore it, because a terminal and
many supervisors signal the whole group while the parent still needs them.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

#: Linux's `prctl`: which signal a process gets when the thread that started it ends.
_PR_SET_PDEATHSIG = 1

# That signal is tied to the *thread*, so all children are started by one that lives as long as
# the process does.
_starter = ThreadPoolExecutor(1, thread_name_prefix="child-starter")


class Child:
    """A started process. What it is told and what it says goes through `connection`, pickled."""

    def __init__(self, name: str, main: Callable[..., None], *arguments: Any) -> None:
        """Start `main(connection, *arguments)` in a fresh interpreter.

        `main` must be importable, and return when `connection.recv()` raises `EOFError`. A child
        that dies is noticed the same way on this side: `connection` raises `EOFError` or `OSError`.

        Args:
            name: for people: it stands in the command line of the process.
            main: a function of a module.
            arguments: what pickle can carry.
        """
        self.name = name
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.settimeout(None)  # see `socket_of`
        read_end, self._lifeline = os.pipe()
        with theirs:
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from captioner.children import _live; _live({theirs.fileno()}, {read_end})"
            )
            try:
                self._process = _starter.submit(
                    subprocess.Popen,
                    [sys.executable, "-c", code, f"captioner {name}"],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), read_end),
                    start_new_session=True,
                ).result()
            except BaseException:  # also an interruption must not leave these open
                os.close(self._lifeline)
                ours.close()
                raise
            finally:
                os.close(read_end)
        self.connection: Connection[Any, Any] = Connection(ours.detach())
        self._closing = threading.Lock()
        with contextlib.suppress(OSError):  # it died at once, which the caller is about to notice
            self.connection.send((os.getpid(), main, arguments))

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    @property
    def cpu_seconds(self) -> float:
        """Time it has been on a processor, in all threads; 0 where that cannot be told.

        It can be on Linux, until the process has been waited for.
        """
        if sys.platform != "linux":
            return 0.0
        try:
            return time.clock_gettime(~self.pid << 3 | 2)  # what clock_getcpuclockid(3) makes
        except OSError:
            return 0.0

    def end(self, patience_seconds: float) -> int:
        """Let it finish: close the pipe, wait, and kill it if that took too long.

        Returns:
            Its exit code.
        """
        with self._closing:
            self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_seconds)
        return self.kill()

    def kill(self) -> int:
        """End it now, and free what it held here; calling it again does nothing.

        Returns:
            Its exit code.
        """
        self._process.kill()
        code = self._process.wait()
        with self._closing:
            self.connection.close()
            if self._lifeline >= 0:
                os.close(self._lifeline)
                self._lifeline = -1
        return code


@contextlib.contextmanager
def socket_of(connection: Connection[Any, Any]) -> Iterator[socket.socket]:
    """The socket below a child's connection, for what only sockets can do; that stays open.

    A connection waits for its other end. A socket that is made while the process gives new ones a
    timeout does not, and neither does what shares it. Celery sets such a timeout in a worker that
    ends, whichever thread makes sockets then, kombu after lost connections but for
    `broker/lost_connections.py`, and a plugin may.
    """
    with socket.socket(fileno=os.dup(connection.fileno())) as pipe:
        pipe.settimeout(None)
        yield pipe


def _live(pipe: int, lifeline: int) -> None:
    """The life of a child, called by nothing but the command line above."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    connection: Connection[Any, Any] = Connection(pipe)
    try:
        parent, main, arguments = connection.recv()
    except EOFError:
        return
    if sys.platform == "linux":
        # For a child that hangs with the interpreter's lock held: the thread above cannot run then.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    main(connection, *arguments)
    # At once: to take PyTorch down module by module takes half a second.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _end_with_parent(lifeline: int) -> None:
    """Wait for the end of the parent, who alone holds the other end of this pipe."""
    with contextlib.suppress(OSError):
        os.read(lifeline, 1)
    os._exit(1)
