# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title Registry
@license MIT
@author hopfare
@notice The root list of relays. A relay puts up a stake and publishes its identity, where it is reached and
        the address that it earns for; it may leave, and gets its stake back after an unbonding time. No owner,
        no slashing, no fee: the stake makes a thousand fake relays expensive. See SPECIFICATION.md.
@dev Immutable. The caller's address is the payee, so its key is proved by the transaction. The identity's key
     (Ed25519, which the chain cannot check) is proved by `endorsement`, a signature over the chain id, this
     contract and the payee, which every reader checks; an entry with a wrong one is ignored by all. Entries
     are kept by payee, so nobody can take another's place by publishing its identity first.
"""

from .modules import entries
from .modules import stakes

initializes: entries
initializes: stakes


struct Listing:
    payee: address
    entry: entries.Entry
    stake: uint256


event Joined:
    payee: indexed(address)
    identity: indexed(bytes32)
    stake: uint256


event Changed:
    payee: indexed(address)
    identity: indexed(bytes32)


event Left:
    payee: indexed(address)
    identity: indexed(bytes32)
    free_at: uint256


event Returned:
    payee: indexed(address)
    amount: uint256


MAX_PAGE: constant(uint256) = 100
MIN_UNBONDING: constant(uint256) = 60
MAX_UNBONDING: constant(uint256) = 365 * 86400

UNBONDING: public(immutable(uint256))
MIN_STAKE: public(immutable(uint256))


@deploy
def __init__(min_stake: uint256, unbonding: uint256):
    """
    @notice Fixes the least stake and the unbonding time for good.
    @param min_stake Wei, more than 0.
    @param unbonding Seconds between `leave` and `take_stake`: a minute to a year.
    """
    assert min_stake != 0, "registry: bad stake"
    assert unbonding >= MIN_UNBONDING and unbonding <= MAX_UNBONDING, "registry: bad unbonding"
    MIN_STAKE = min_stake
    UNBONDING = unbonding


@payable
@external
def join(entry: entries.Entry):
    """
    @notice Lists the caller with the money that comes with the call as its stake.
    @param entry What is published.
    """
    total: uint256 = stakes._add(msg.sender, msg.value)
    assert total >= MIN_STAKE, "registry: stake too small"
    entries._append(msg.sender, entry)
    log Joined(payee=msg.sender, identity=entry.identity, stake=total)


@payable
@external
def add_stake():
    """
    @notice Adds the money that comes with the call to the caller's stake. Only while listed.
    """
    assert entries._is_listed(msg.sender), "registry: not listed"
    total: uint256 = stakes._add(msg.sender, msg.value)
    log Joined(payee=msg.sender, identity=entries._entry(msg.sender).identity, stake=total)


@external
def change(entry: entries.Entry):
    """
    @notice Replaces what the caller publishes.
    @param entry What is published from now on.
    """
    entries._replace(msg.sender, entry)
    log Changed(payee=msg.sender, identity=entry.identity)


@external
def leave():
    """
    @notice Takes the caller off the list at once and starts the unbonding time of its stake.
    """
    identity: bytes32 = entries._entry(msg.sender).identity
    entries._remove(msg.sender)
    free_at: uint256 = block.timestamp + UNBONDING
    stakes._unbond(msg.sender, free_at)
    log Left(payee=msg.sender, identity=identity, free_at=free_at)


@external
@nonreentrant
def take_stake():
    """
    @notice Sends the caller's stake back, once it has left and the unbonding time is over.
    """
    amount: uint256 = stakes._take(msg.sender)
    log Returned(payee=msg.sender, amount=amount)
    raw_call(msg.sender, b"", value=amount)


@view
@external
def count() -> uint256:
    """
    @notice Returns how many relays are listed.
    @return The count.
    """
    return entries._count()


@view
@external
def page(first: uint256, limit: uint256) -> DynArray[Listing, MAX_PAGE]:
    """
    @notice Returns listed relays, in no lasting order.
    @dev A relay that leaves between two pages moves the last one into its place; readers that page through a
         long list do so at one block.
    @param first Place of the first one, from 0.
    @param limit How many at most; never more than 100.
    @return The listings; fewer than asked for at the end of the list.
    """
    found: DynArray[Listing, MAX_PAGE] = []
    total: uint256 = entries._count()
    if first >= total:
        return found
    last: uint256 = min(total, first + min(limit, MAX_PAGE))
    for place: uint256 in range(first, last, bound=MAX_PAGE):
        payee: address = entries._payee_at(place)
        found.append(
            Listing(
                payee=payee, entry=entries._entry(payee), stake=stakes._read(payee).amount
            )
        )
    return found


@view
@external
def entry_of(payee: address) -> entries.Entry:
    """
    @notice Returns what a payee publishes.
    @param payee The relay's payee address.
    @return The entry; all zeros if it is not listed.
    """
    return entries._entry(payee)


@view
@external
def stake_of(payee: address) -> stakes.Stake:
    """
    @notice Returns a payee's stake, and from when it is free (0: it is bound).
    @param payee The relay's payee address.
    @return The stake.
    """
    return stakes._read(payee)
