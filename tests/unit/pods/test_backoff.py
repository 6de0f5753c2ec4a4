from datetime import timedelta

from support.builders import T0
from wasmlet.pods.backoff import Backoff


def test_waits_as_the_kubelet_does() -> None:
    backoff, now, waits = Backoff(), T0, []
    for _ in range(8):
        failed_at = now
        now = backoff.retry_at(failed_at)
        waits.append((now - failed_at).total_seconds())
        backoff.tried(failed_at, now)
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]


def test_ten_minutes_of_running_forget_the_past() -> None:
    backoff = Backoff(delay=timedelta(seconds=160), last_try=T0)
    just_short = T0 + timedelta(minutes=10)
    assert backoff.retry_at(just_short) == just_short + timedelta(seconds=160)
    long_enough = T0 + timedelta(minutes=10, seconds=1)
    assert backoff.retry_at(long_enough) == long_enough
    backoff.tried(long_enough, long_enough)
    assert backoff.delay == timedelta(seconds=10)
