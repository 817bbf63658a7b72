"""One request computes, a few wait in order, further ones are refused."""

import threading

import pytest

from persongen_jax.demo.line import Line


def test_who_came_first_is_first_and_too_many_are_refused():
    line, never = Line(2), threading.Event()
    first, second, third = (line.enter() for _ in range(3))
    assert list(line.wait(first, never)) == []
    with pytest.raises(ValueError, match="2 wait already"):
        line.enter()
    told = line.wait(third, never)
    assert next(told) == 2
    line.leave(second)  # who gave up
    assert next(told) == 1
    threading.Timer(0.05, line.leave, [first]).start()
    assert list(told) == []
    line.leave(third)
    assert list(line.wait(line.enter(), never)) == []


def test_waiting_can_be_ended():
    line, end = Line(1), threading.Event()
    line.enter()
    told = line.wait(line.enter(), end)
    assert next(told) == 1
    end.set()
    assert list(told) == []


def test_nobody_may_wait():
    line = Line(0)
    line.enter()
    with pytest.raises(ValueError, match="somebody's is computed"):
        line.enter()
