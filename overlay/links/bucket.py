"""A token bucket: a steady rate with a burst on top."""


class Bucket:
    """Allows `rate_per_s` on average and `burst` at once. Starts full."""

    __slots__ = ("_burst", "_last", "_level", "_rate")

    def __init__(self, rate_per_s: float, burst: float, now: float) -> None:
        """Begin full."""
        self._rate = rate_per_s
        self._burst = burst
        self._level = burst
        self._last = now

    def take(self, amount: float, now: float) -> bool:
        """Take `amount` if it is there; a clock that went back gives nothing."""
        level = self._level
        if now > self._last:
            level = min(self._burst, level + (now - self._last) * self._rate)
        self._last = max(now, self._last)
        if level < amount:
            self._level = level
            return False
        self._level = level - amount
        return True

    def is_full(self, now: float) -> bool:
        """Tell whether nothing would be lost by forgetting this bucket."""
        return self._level + max(0.0, now - self._last) * self._rate >= self._burst
