# pragma version 0.4.3
"""
@title Stakes: money that binds
@license MIT
@author hopfare
@notice One ability: keep what each relay has put up, and give it back after an unbonding time.
@dev One storage slot a relay, packed by hand: bits 0..127 amount, bits 128..175 free_at (seconds since 1970
     from when it may be taken; 0 while it is bound).
"""

struct Stake:
    amount: uint256
    free_at: uint256


AMOUNT_MASK: constant(uint256) = 2**128 - 1
TIME_MASK: constant(uint256) = 2**48 - 1

_slots: HashMap[address, uint256]


@view
@internal
def _read(who: address) -> Stake:
    """
    @notice Returns a stake.
    @param who Whose stake.
    @return The stake; zeros if there is none.
    """
    slot: uint256 = self._slots[who]
    return Stake(amount=slot & AMOUNT_MASK, free_at=slot >> 128)


@internal
def _add(who: address, amount: uint256) -> uint256:
    """
    @notice Adds to a bound stake.
    @param who Whose stake.
    @param amount Wei that came with the call.
    @return The whole stake.
    """
    stake: Stake = self._read(who)
    assert stake.free_at == 0, "stakes: unbonding"
    total: uint256 = stake.amount + amount
    assert total <= AMOUNT_MASK, "stakes: too much money"
    self._slots[who] = total
    return total


@internal
def _unbond(who: address, free_at: uint256):
    """
    @notice Starts the unbonding time.
    @param who Whose stake.
    @param free_at When it ends.
    """
    stake: Stake = self._read(who)
    assert stake.amount != 0 and stake.free_at == 0, "stakes: not bound"
    assert free_at <= TIME_MASK, "stakes: too late"
    self._slots[who] = stake.amount | (free_at << 128)


@internal
def _take(who: address) -> uint256:
    """
    @notice Takes a stake out whose unbonding time is over.
    @param who Whose stake.
    @return The wei that they must now get.
    """
    stake: Stake = self._read(who)
    assert stake.free_at != 0, "stakes: bound"
    assert block.timestamp >= stake.free_at, "stakes: unbonding"
    self._slots[who] = 0
    return stake.amount
