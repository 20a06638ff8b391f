"""A whole path of onion hops, for tests: client, relays and exit of one circuit and lane."""

import hashlib
import random

from circuits.inner import Direction, body_capacity
from circuits.onion import (
    LANE_DATAGRAM,
    ClientBackward,
    ClientForward,
    ExitBackward,
    RelayBackward,
    RelayForward,
)


def seeded(seed):
    """A source of bytes for what must be random in packets."""
    return random.Random(seed).randbytes


def root_of(name):
    return hashlib.sha256(f"test root {name}".encode()).digest()


# Found by search: names of roots whose first epoch ends after this many packets, for each key chain.
NEAR_EPOCH_END = {
    "fwd": {7253: 17, 12303: 8, 28837: 8, 38566: 3, 219319: 0},
    "bwd": {5058: 16, 8776: 24, 113649: 14, 146866: 11},
    "fwd stream": {13559: 3, 59684: 30, 127117: 20, 100707: 0},
    "bwd stream": {12971: 31, 17868: 36, 33563: 19, 40941: 19},
}


class Path:
    """Every part of one circuit in one lane."""

    def __init__(self, roots, suite, lane=LANE_DATAGRAM, seed=0):
        rng = seeded(seed)
        self.roots, self.suite, self.lane = roots, suite, lane
        self.client_forward = ClientForward(roots, suite, lane, rng)
        self.relays_forward = [RelayForward(root, suite, lane) for root in roots]
        self.exit_backward = ExitBackward(roots[-1], suite, lane, rng)
        self.relays_backward = [RelayBackward(root, suite, lane) for root in roots[:-1]]
        self.client_backward = ClientBackward(roots, suite, lane)

    def forward_links(self, bodies, now=0.0):
        """Send bodies; return the packets of every link, the first link's first, and what the exit opened."""
        links = [self.client_forward.seal_many(bodies, now)]
        for relay in self.relays_forward[:-1]:
            links.append([opened.data for opened in relay.open_many(links[-1], now)])
        return links, self.relays_forward[-1].open_many(links[-1], now)

    def backward_links(self, bodies, now=0.0):
        """Send bodies back; return the packets of every link, the first link's first."""
        links = [self.exit_backward.seal_many(bodies, now)]
        for relay in reversed(self.relays_backward):
            links.append(relay.wrap_many(links[-1], now))
        return links[::-1]


def forward_body(units, seed=0):
    return seeded(seed)(body_capacity(Direction.FORWARD, units))


def backward_body(units, seed=0):
    return seeded(seed)(body_capacity(Direction.BACKWARD, units))
