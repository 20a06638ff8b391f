"""How likely a relay is to be drawn: from capacity as far as it was seen, quality, price, stake, and chance.

Owns the numbers behind "what can an attacker buy" (docs/threat-model.md, bench/paths_attack.py). Pure
functions over columns. Specification: docs/protocol/pool.md, section "Weights".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from circuits.candidates import Candidate

CHANCE_SHARE = 0.2
"""Part of the choice that neither capacity nor price nor stake can buy: spread evenly over networks (/16,
/32), since more nodes in a network one has are easy to get, and more networks are not."""
OPERATOR_SHARE = 0.1
"""Most that one operator gets of a position's weight, where there are enough operators for it; one network
(/16, /32) likewise."""
CAPACITY_CLIP = 10.0
"""Capacity counts up to this many times the usual one: nobody gets everything by being large."""
CUT_AT_MOST = 1 + int(1 / OPERATOR_SHARE)
"""Only so many can be over that."""
MEASURED_HEADROOM = 4
"""A relay is believed to have this many times what one circuit was seen to carry: others use it as well."""
STAKE_ROOM = 1.0
"""The usual stake stands behind so many times the usual capacity."""
LEAST_BACKING = 0.01
"""For who has no stake among those that have."""
PRICE_BEND = 0.5
"""A relay of the usual price or above counts two thirds of one that asks nothing."""
SLOW_SHARE = 0.2
"""What measurements can take away: a bad guard can slow down what it wants this customer to find slow."""
LEAST_QUALITY = 0.05
"""For the same reason, and so that a relay that was bad is drawn again now and then, and found better."""
SPARE_EXITS = 0.02
"""Least factor for exits in other positions while exits are scarce."""


def believed_capacity(candidate: Candidate, usual: float) -> float:
    """Return the bytes per second that a relay counts with: what it says, as far as this node has seen it.

    One that was never measured counts as the usual relay at most, one that was slow as a fifth of it if it
    says so much; who says nothing as half of one.
    """
    said = candidate.capacity_bytes_per_s or usual / 2
    seen = candidate.measured_bytes_per_s * MEASURED_HEADROOM
    return min(said, max(seen, SLOW_SHARE * usual) if seen else usual, CAPACITY_CLIP * usual)


def base_weights(candidates: Sequence[Candidate]) -> list[float]:
    """Return capacity, as far as stake stands behind it, x quality, bent a little by price.

    Stake buys no weight that capacity does not have, and capacity none that stake does not back, so an
    attacker needs both, and gains nothing by splitting either among many nodes. A low price is easy to offer
    for who wants to be chosen, so it counts for little beside the customer's own limit.
    """
    usual_capacity = _median(c.capacity_bytes_per_s for c in candidates) or 1.0
    usual_price = _median(c.price_wei_per_packet for c in candidates) or 1.0
    usual_stake = _median(c.stake_wei for c in candidates)
    weights = []
    for c in candidates:
        weight = believed_capacity(c, usual_capacity) / usual_capacity
        if usual_stake:
            weight = min(weight, STAKE_ROOM * c.stake_wei / usual_stake)
        weight *= min(max(c.quality, LEAST_QUALITY), 1.0)
        weights.append(weight / (1 + PRICE_BEND * min(c.price_wei_per_packet / usual_price, 1.0)))
    return weights


def stake_backing(candidates: Sequence[Candidate]) -> list[float]:
    """Return for each relay how far its stake is the usual one, at most 1; 1 for all where none has any."""
    usual = _median(c.stake_wei for c in candidates)
    if not usual:
        return [1.0] * len(candidates)
    return [max(LEAST_BACKING, min(1.0, c.stake_wei / usual)) for c in candidates]


def spare_factor(candidates: Sequence[Candidate], weights: Sequence[float]) -> float:
    """Return the factor for exits as guards and middles: exits count less there while they are under a third
    of all.
    """
    total = sum(weights)
    exits = sum(weight for c, weight in zip(candidates, weights, strict=True) if c.is_exit)
    return min(1.0, max(SPARE_EXITS, 1 - total / (3 * exits))) if exits else 1.0


def share_weights(
    weights: Sequence[float],
    networks: Sequence[int],
    operators: Sequence[int],
    backing: Sequence[float],
    exits: Sequence[bool],
    spare: float,
) -> list[float]:
    """Mix weights with chance, and cap each network's and each operator's part.

    The columns are of one length; networks and operators are small numbers, the same for the same one.
    `backing` (0 to 1) is a factor of the chance, as `stake_backing` returns it. Where `exits` (may be empty
    for none) says so, both parts get the factor `spare`. The result adds up to at most 1.
    """
    if not weights:
        return []
    crowds = [0] * (max(networks) + 1)
    for network in networks:
        crowds[network] += 1
    chances = [b / crowds[network] for network, b in zip(networks, backing, strict=True)]
    if exits:
        weights = [w * spare if e else w for w, e in zip(weights, exits, strict=True)]
        chances = [c * spare if e else c for c, e in zip(chances, exits, strict=True)]
    total = sum(weights)
    scale = (1 - CHANCE_SHARE) / total if total > 0 else 0.0
    chance = CHANCE_SHARE / (sum(chances) or 1.0)
    mixed = [w * scale + c * chance for w, c in zip(weights, chances, strict=True)]
    if len(networks) > crowds[networks[0]]:  # else it is a test network on one machine
        mixed = _cap(mixed, networks)
    return _cap(mixed, operators)


def _cap(weights: list[float], owners: Sequence[int]) -> list[float]:
    """Cut those whose part, summed over all weights of one owner, is more than anybody may have."""
    sums = [0.0] * (max(owners) + 1)
    for owner, weight in zip(owners, weights, strict=True):
        sums[owner] += weight
    total = sum(weights)
    if max(sums) <= OPERATOR_SHARE * total:
        return weights
    largest = sorted(sums, reverse=True)[:CUT_AT_MOST]
    limit = _limit(largest, total, len(set(owners)))
    if largest[0] <= limit:
        return weights
    factors = [limit / part if part > limit else 1.0 for part in sums]
    return [weight * factors[owner] for owner, weight in zip(owners, weights, strict=True)]


def _limit(shares: list[float], total: float, names: int) -> float:
    """Return the weight above which a name is cut, so that none has more than its share of what is left
    then.
    """
    part = max(OPERATOR_SHARE, 2 / max(1, names))
    cut = 0
    for share in shares:
        if (cut + 1) * part >= 1 or share <= part * total / (1 - cut * part):
            break
        cut += 1
        total -= share
    return part * total / (1 - cut * part)


def _median(values: Iterable[int]) -> float:
    """Return the median of the values above 0, or 0."""
    positive = [value for value in values if value > 0]
    return float(median(positive)) if positive else 0.0
