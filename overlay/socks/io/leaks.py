"""Programs that give the proxy an address have perhaps looked its name up themselves, outside of the proxy,
where others see which name it was. They are counted, and the user is told now and then; never the address.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from overlay.logs import RateLimit, get_logger
from overlay.socks.circuits import Destination

WARN_EVERY_S: Final = 3600.0
MAX_REMEMBERED: Final = 1024
HINT: Final = (
    "a program asked for an address and not for a name: if it looked the name up itself, others could see it;"
    " have it give names to the proxy (curl: socks5h, Firefox: proxy DNS when using SOCKS v5)"
)

_log = get_logger("socks")


class LeakWatch:
    """Tells addresses that were learned through the proxy (RESOLVE) from those that were not."""

    __slots__ = ("_learned", "_rate", "by_address")

    def __init__(self) -> None:
        """Begin with nothing learned."""
        self._learned: OrderedDict[str, None] = OrderedDict()
        self._rate = RateLimit(burst=1, interval_s=WARN_EVERY_S)
        #: Connections to addresses that nobody learned here.
        self.by_address = 0

    def learned(self, address: str) -> None:
        """Remember what RESOLVE told a program; the oldest is forgotten beyond MAX_REMEMBERED."""
        self._learned[address] = None
        self._learned.move_to_end(address)
        if len(self._learned) > MAX_REMEMBERED:
            self._learned.popitem(last=False)

    def note(self, destination: Destination, now: float, times: int = 1) -> None:
        """Count a request or several alike, and warn once an hour."""
        if not destination.ip_version or destination.host in self._learned:
            return
        self.by_address += times
        if self._rate.allow("address", now) is not None:
            _log.warning("names may leak", hint=HINT, times=self.by_address)
