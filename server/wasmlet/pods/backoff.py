"""The kubelet's exponential back-off, for containers that end and for images that are not there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

INITIAL = timedelta(seconds=10)
MAXIMUM = timedelta(seconds=300)
# A container that ran this long has proven itself: its next failure starts at the beginning again.
RESET_AFTER = timedelta(minutes=10)


@dataclass(slots=True)
class Backoff:
    """How long to wait before the next try: 10 s, doubling up to 300 s.

    The rule is the kubelet's: the first failure is retried at once, each later one waits, counted from the failure.
    https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy
    """

    delay: timedelta = timedelta(0)
    last_try: datetime | None = None

    def retry_at(self, failed_at: datetime) -> datetime:
        """When to try again after a failure at `failed_at`; not later than `failed_at` for an immediate retry."""
        if self._expired(failed_at):
            return failed_at
        return failed_at + self.delay

    def tried(self, failed_at: datetime, now: datetime) -> None:
        """Note a retry at `now` of what failed at `failed_at`: the next wait is twice as long."""
        if self._expired(failed_at):
            self.delay = INITIAL
        else:
            self.delay = min(self.delay * 2, MAXIMUM)
        self.last_try = now

    def _expired(self, failed_at: datetime) -> bool:
        return self.last_try is None or failed_at - self.last_try > RESET_AFTER
