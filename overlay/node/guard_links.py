"""The links of a customer's node to its guards: dialled when wanted, one each, and watched for silence.

What runs over them is `overlay.node.client_builds`' and the node's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import trio

from overlay.links.constants import CloseCode
from overlay.links.io.endpoint import DialError

if TYPE_CHECKING:
    from overlay.links.io.endpoint import Endpoint
    from overlay.links.link import Link

GUARD_SILENT_S = 2.0
"""Data under way to a guard without an answer for so long: new circuits go over another.

The link has longer.
"""
MAX_DIAL_ERRORS = 16


class GuardLinks:
    """Of one customer."""

    endpoint: Endpoint
    """Set before the first dial."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        """No link; `progress` is told of dials in words."""
        self._progress = progress
        self._links: dict[bytes, Link] = {}
        self._dialling: dict[bytes, trio.Event] = {}
        self._dial_errors: dict[bytes, str] = {}
        self._silent: dict[bytes, bool] = {}
        self.has_route = True
        """Whether this machine itself had a way to the guard dialled last."""

    def __iter__(self) -> Iterator[tuple[bytes, Link]]:
        """Iterate over guards and their links."""
        return iter(list(self._links.items()))

    def __contains__(self, link: object) -> bool:
        """Tell whether a link is a guard's."""
        return link in self._links.values()

    def find(self, node_id: bytes) -> Link | None:
        """The link to a guard that is up, or None."""
        return self._links.get(node_id)

    def explain(self, node_id: bytes) -> str:
        """Why the last dial to a guard failed."""
        return self._dial_errors.get(node_id, "no answer")

    def forget(self, link: Link) -> bool:
        """Take a link that has ended out; False if it was no guard's."""
        if link.peer is None or self._links.get(link.peer) is not link:
            return False
        del self._links[link.peer]
        self._silent.pop(link.peer, None)
        return True

    async def connect(self, node_id: bytes, address: tuple[str, int]) -> Link | None:
        """The link to a guard, dialled if need be; all that want the same one wait for the same dial."""
        while True:
            link = self._links.get(node_id)
            if link is not None and link.end is None:
                return link
            waiting = self._dialling.get(node_id)
            if waiting is None:
                break
            await waiting.wait()
            if node_id in self._dial_errors:
                return None
        done = self._dialling[node_id] = trio.Event()
        self._dial_errors.pop(node_id, None)
        self._progress(f"connecting to the guard at {address[0]}")
        try:
            link = await self.endpoint.dial(address, node_id)
            self._links[node_id] = link
            self.has_route = True
        except DialError as error:
            self.has_route = error.code != CloseCode.NO_ROUTE
            if len(self._dial_errors) > MAX_DIAL_ERRORS:
                self._dial_errors.clear()
            self._dial_errors[node_id] = str(error)
            return None
        finally:
            del self._dialling[node_id]
            done.set()
        return link

    # -- silence
    # --------------------------------------------------------------------------------------------------

    @property
    def is_one_silent(self) -> bool:
        """Whether a guard has not answered at the last look."""
        return bool(self._silent)

    def watch(self, now: float) -> tuple[list[bytes], list[bytes]]:
        """Look at all links: guards that fell silent, and guards that are heard again."""
        silent: list[bytes] = []
        heard: list[bytes] = []
        for node_id, link in self._links.items():
            if link.unanswered_s(now) < GUARD_SILENT_S:
                if self._silent.pop(node_id, False):
                    heard.append(node_id)
            elif node_id in self._silent:
                self._silent[node_id] = True
                silent.append(node_id)
            else:
                # Not at the first look: after a stall of this very process the answer may lie unread.
                self._silent[node_id] = False
        return silent, heard
