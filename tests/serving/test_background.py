"""The writing thread: order is kept, nothing is lost at close, the first error comes back."""

import time

import pytest

from testbed.serving.background import Background


def test_calls_run_in_order_and_close_waits_for_all() -> None:
    seen: list[int] = []
    with Background() as background:
        began = time.monotonic()
        background.submit(time.sleep, 0.2)
        for i in range(1000):
            background.submit(seen.append, i)
        assert time.monotonic() - began < 0.2, "handing over does not wait"
    assert seen == list(range(1000))


def test_the_first_error_is_raised_at_close_and_ends_the_work() -> None:
    seen: list[int] = []
    background = Background()
    background.submit(int, "no number")
    background.submit(seen.append, 1)
    with pytest.raises(ValueError, match="no number"):
        background.close()
    assert seen == []
    background.close()
