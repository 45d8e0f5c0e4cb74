"""Children: one pipe, deaf to signals, gone with their parent even when they hang."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from captioner.children import Child, socket_of
from timeouts import new_sockets_time_out


def echo(connection: Connection[Any, Any], prefix: str) -> None:
    connection.send(os.getpid())
    while True:
        try:
            connection.send(prefix + connection.recv())
        except EOFError:
            return


def hang_with_the_lock(connection: Connection[Any, Any]) -> None:
    connection.send(os.getpid())
    ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps the interpreter's lock


def hang(connection: Connection[Any, Any]) -> None:
    connection.send(os.getpid())
    time.sleep(3600)


def lives(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return status != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_a_child_answers_and_ends_when_the_pipe_closes() -> None:
    child = Child("echo", echo, "hello ")
    assert child.connection.recv() == child.pid
    child.connection.send("you")
    assert child.connection.recv() == "hello you"
    assert child.exit_code is None
    assert child.end(patience_seconds=10) == 0


def test_its_pipe_waits_although_new_sockets_are_given_a_timeout() -> None:
    with new_sockets_time_out():
        child = Child("echo", echo, "hello ")
    assert child.connection.recv() == child.pid  # not there yet: it has to be waited for
    time.sleep(0.2)  # now the child waits
    child.connection.send("you")
    assert child.connection.recv() == "hello you"
    assert child.end(patience_seconds=10) == 0


def test_a_connection_waits_though_its_socket_was_asked_for_when_new_ones_time_out() -> None:
    child = Child("echo", echo, "hello ")
    with new_sockets_time_out(), socket_of(child.connection) as pipe:
        assert pipe.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
    assert child.connection.recv() == child.pid
    child.connection.send("you")
    assert child.connection.recv() == "hello you"
    assert child.end(patience_seconds=10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP])
def test_signals_meant_for_the_group_do_not_reach_it(number: signal.Signals) -> None:
    child = Child("echo", echo, "")
    child.connection.recv()
    os.kill(child.pid, number)
    child.connection.send("still here")
    assert child.connection.recv() == "still here"
    child.end(patience_seconds=10)


def test_a_killed_child_is_noticed_on_the_pipe() -> None:
    child = Child("echo", echo, "")
    child.connection.recv()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises((EOFError, OSError)):
        child.connection.recv()
    assert child.kill() == -signal.SIGKILL
    assert child.kill() == -signal.SIGKILL


def test_a_hung_child_is_killed_when_patience_ends() -> None:
    child = Child("hung", hang)
    child.connection.recv()
    assert child.end(patience_seconds=0.1) == -signal.SIGKILL


PARENT = """
import sys, time
sys.path[:] = {path!r}
from captioner.children import Child
import {module} as module
children = [Child("hung", module.hang), Child("stuck", module.hang_with_the_lock)]
print(*(child.connection.recv() for child in children), flush=True)
{then}
"""


@pytest.mark.parametrize("then", ["time.sleep(3600)", "sys.exit()"])
def test_hung_children_end_with_their_parent(then: str) -> None:
    code = PARENT.format(
        path=[str(Path(__file__).parent), *sys.path], module="test_children", then=then
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    if "sleep" in then:
        assert all(lives(pid) for pid in pids)
        parent.kill()
    parent.wait(30)
    assert wait_until(lambda: not any(lives(pid) for pid in pids))
