# pragma version 0.4.3
"""
@title Earnings: what each payee may take out
@license MIT
@author hopfare
@notice One ability: pull payment. Earnings add up here until their owner takes them out.
@dev Checks, effects, then the one interaction, in that order.
"""

event CashedOut:
    payee: indexed(address)
    to: indexed(address)
    amount: uint256


_earned: HashMap[address, uint256]


@internal
def _earn(payee: address, amount: uint256):
    """
    @notice Adds to a payee's earnings.
    @param payee Who earned.
    @param amount Wei.
    """
    self._earned[payee] += amount


@internal
def _cash_out(payee: address, to: address, amount: uint256):
    """
    @notice Sends earnings.
    @param payee Whose earnings.
    @param to Where they go; all of the remaining gas goes along.
    @param amount Wei, at most what was earned.
    """
    assert to != empty(address), "earnings: no receiver"
    assert amount != 0, "earnings: no amount"
    assert amount <= self._earned[payee], "earnings: not earned"
    self._earned[payee] -= amount
    log CashedOut(payee=payee, to=to, amount=amount)
    raw_call(to, b"", value=amount)
