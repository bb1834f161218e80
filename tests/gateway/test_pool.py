"""The gateway's threads: who gets a call, how many there are, and how they end."""

from __future__ import annotations

import subprocess
import sys
import threading
from queue import SimpleQueue

import pytest

from loupe.gateway.door.pool import Pool
from tests.support.servers import ROOT, until

PATIENCE = 60


def names(pool: Pool, count: int) -> list[str]:
    """Of the threads that take so many calls, one after the other."""
    told: SimpleQueue[str] = SimpleQueue()
    found = []
    for _ in range(count):
        pool.submit(lambda: told.put(threading.current_thread().name))
        found.append(told.get(timeout=PATIENCE))
        until(lambda: bool(pool._idle), "an idle thread")
    return found


def test_calls_one_after_the_other_need_one_thread() -> None:
    assert set(names(Pool(8, "one"), 20)) == {"one_0"}


def test_as_many_calls_as_there_may_be_threads_go_on_at_once() -> None:
    pool, gate, running, done = Pool(3, "three"), threading.Event(), threading.Semaphore(0), SimpleQueue[int]()

    def call(number: int) -> None:
        running.release()
        assert gate.wait(PATIENCE)
        done.put(number)

    for number in range(8):
        pool.submit(call, number)
    for _ in range(3):
        assert running.acquire(timeout=PATIENCE)
    assert not running.acquire(timeout=0.2), "a fourth at once"
    gate.set()
    seen = [done.get(timeout=PATIENCE) for _ in range(8)]
    assert sorted(seen) == list(range(8))


def test_who_waits_is_served_in_order() -> None:
    pool, gate, done = Pool(1, "single"), threading.Event(), SimpleQueue[int]()
    pool.submit(gate.wait, PATIENCE)
    for number in range(5):
        pool.submit(done.put, number)
    gate.set()
    assert [done.get(timeout=PATIENCE) for _ in range(5)] == list(range(5))


def test_the_thread_that_became_idle_last_takes_the_next_call() -> None:
    pool, gates = Pool(2, "two"), [threading.Event(), threading.Event()]
    for gate in gates:
        pool.submit(gate.wait, PATIENCE)
    for place, gate in enumerate(gates):
        gate.set()
        until(lambda: len(pool._idle) == place + 1, "its thread is idle")  # noqa: B023
    assert names(pool, 3) == ["two_1"] * 3


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit])
def test_a_call_that_fails_is_logged_and_its_thread_goes_on(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    def call() -> None:
        raise error

    pool = Pool(1, "failing")
    pool.submit(call)
    assert names(pool, 1) == ["failing_0"]
    assert error.__name__ in caplog.text


@pytest.mark.parametrize("shut", [True, False])
def test_what_was_submitted_is_done_before_the_process_ends(shut: bool) -> None:
    code = f"""
import time
from loupe.gateway.door.pool import Pool
def call(number):
    time.sleep(0.1)
    print(number, flush=True)
pool = Pool(2, "last")
for number in range(5):
    pool.submit(call, number)
if {shut}:
    pool.shutdown()
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert sorted(filter(str.isdigit, ended.stdout)) == list("01234")
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize("before", ["put", "pop"])
def test_a_signal_in_the_midst_of_handing_over_a_call_does_not_hold_up_the_end(before: str) -> None:
    """gunicorn's handler shuts the pool down and exits, in the thread that was just handing over. Here it comes between
    two steps of that on purpose: after the idle thread was taken, and before."""
    code = f"""
import os, signal, sys, threading, time
from loupe.gateway.door import pool as module

def handler(*_):
    pool.shutdown()
    sys.exit(0)

def interrupted(step):
    def first(*arguments):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return step(*arguments)
    return first

class Idle(list):
    def pop(self):
        return interrupted(super().pop)() if ready and {before!r} == "pop" else super().pop()

class Inbox:
    def __init__(self):
        self.queue = module.SimpleQueue_()
        self.get = self.queue.get
    def put(self, call):
        interrupted(self.queue.put)(call) if ready and call and {before!r} == "put" else self.queue.put(call)

module.SimpleQueue_, module.SimpleQueue, ready = module.SimpleQueue, Inbox, False
signal.signal(signal.SIGINT, handler)
pool = module.Pool(2, "cut")
pool._idle = Idle()
pool.submit(print, "one")
while not pool._idle:
    time.sleep(0.01)
ready = True
pool.submit(print, "two")
raise SystemExit("it was not interrupted")
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "one\n"
