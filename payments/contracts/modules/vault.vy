# pragma version 0.4.3
"""
@title Vault: deposits of payers for payees
@license MIT
@author hopfare
@notice One ability: keep what each payer has put aside for each payee, what the payee was paid of it, and
        when the payer may have the rest back.
@dev One storage slot for each (payer, payee), packed by hand because Vyper gives each member its own:

         bits   0..103  deposited: wei put in from the purse's beginning, less what was taken back
         bits 104..207  claimed: wei paid to the payee from the purse's beginning
         bits 208..255  unlock_at: seconds since 1970 from when the payer may withdraw; 0 while locked

     Invariant: claimed <= deposited. Both only count upwards, but for a withdrawal, which sets deposited to
     claimed; so the running totals of books stay valid when a purse is filled again.
"""

struct Purse:
    deposited: uint256
    claimed: uint256
    unlock_at: uint256


AMOUNT_MASK: constant(uint256) = 2**104 - 1
TIME_MASK: constant(uint256) = 2**48 - 1

# payer -> payee -> slot
_slots: HashMap[address, HashMap[address, uint256]]


@view
@internal
def _read(payer: address, payee: address) -> Purse:
    """
    @notice Returns a purse.
    @param payer Who pays.
    @param payee Who is paid.
    @return The purse; all zeros if it was never opened.
    """
    slot: uint256 = self._slots[payer][payee]
    return Purse(
        deposited=slot & AMOUNT_MASK,
        claimed=(slot >> 104) & AMOUNT_MASK,
        unlock_at=slot >> 208,
    )


@internal
def _write(payer: address, payee: address, purse: Purse):
    """
    @notice Keeps a purse.
    @param payer Who pays.
    @param payee Who is paid.
    @param purse Amounts below 2**104 and a time below 2**48, which the callers see to.
    """
    self._slots[payer][payee] = (
        purse.deposited | (purse.claimed << 104) | (purse.unlock_at << 208)
    )


@internal
def _deposit(payer: address, payee: address, amount: uint256) -> uint256:
    """
    @notice Adds to a purse's deposit; cancels no unlock.
    @param payer Who pays.
    @param payee Who is paid.
    @param amount Wei that came with the call.
    @return The whole deposit.
    """
    assert amount != 0, "vault: no money"
    purse: Purse = self._read(payer, payee)
    purse.deposited += amount
    assert purse.deposited <= AMOUNT_MASK, "vault: too much money"
    self._write(payer, payee, purse)
    return purse.deposited


@internal
def _pay_up_to(payer: address, payee: address, worth: uint256) -> (uint256, uint256):
    """
    @notice Counts as claimed what a purse owes, at most its deposit.
    @param payer Who pays.
    @param payee Who is paid.
    @param worth The running total that was proved.
    @return The wei now due to the payee (0 if there is nothing new), and all that was claimed so far.
    """
    purse: Purse = self._read(payer, payee)
    total: uint256 = min(worth, purse.deposited)
    if total <= purse.claimed:
        return 0, purse.claimed
    due: uint256 = total - purse.claimed
    purse.claimed = total
    self._write(payer, payee, purse)
    return due, total


@internal
def _unlock(payer: address, payee: address, unlock_at: uint256):
    """
    @notice Starts the notice period.
    @param payer Who pays.
    @param payee Who is paid.
    @param unlock_at When it ends.
    """
    purse: Purse = self._read(payer, payee)
    assert purse.deposited > purse.claimed, "vault: nothing to unlock"
    assert purse.unlock_at == 0, "vault: already unlocking"
    assert unlock_at <= TIME_MASK, "vault: too late"
    purse.unlock_at = unlock_at
    self._write(payer, payee, purse)


@internal
def _release(payer: address, payee: address):
    """
    @notice Ends the notice period, or does without it.
    @param payer Who pays.
    @param payee Who is paid, and gives up waiting.
    """
    purse: Purse = self._read(payer, payee)
    assert purse.deposited > purse.claimed, "vault: nothing to release"
    purse.unlock_at = block.timestamp
    self._write(payer, payee, purse)


@internal
def _take_rest(payer: address, payee: address) -> uint256:
    """
    @notice Takes the rest out of a purse whose notice period is over; the purse is locked again, and empty.
    @param payer Who pays.
    @param payee Who was paid.
    @return The wei that the payer must now get.
    """
    purse: Purse = self._read(payer, payee)
    assert purse.unlock_at != 0, "vault: locked"
    assert block.timestamp >= purse.unlock_at, "vault: notice not over"
    rest: uint256 = purse.deposited - purse.claimed
    purse.deposited = purse.claimed
    purse.unlock_at = 0
    self._write(payer, payee, purse)
    return rest
