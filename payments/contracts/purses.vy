# pragma version 0.4.3
# pragma evm-version cancun
# pragma optimize gas
"""
@title Purses
@license MIT
@author hopfare
@notice A payer puts money aside for one payee, pays it off-chain with hash-chain tickets, and the payee claims
        what the newest ticket proves. No owner, no upgrade, no fee. See SPECIFICATION.md.
@dev Immutable. Money leaves by two functions only, `cash_out` and `withdraw`; both finish all effects before
     the call that sends it, and are locked against re-entry besides.
"""

from .modules import books
from .modules import chains
from .modules import earnings
from .modules import signatures
from .modules import vault

initializes: earnings
initializes: vault


struct Claim:
    payer: address
    book: books.Book
    index: uint16
    word: bytes32
    v: uint8
    r: bytes32
    s: bytes32


event Deposited:
    payer: indexed(address)
    payee: indexed(address)
    amount: uint256
    deposited: uint256


event Claimed:
    payer: indexed(address)
    payee: indexed(address)
    amount: uint256
    claimed: uint256


event Skipped:
    payer: indexed(address)
    payee: indexed(address)
    reason: uint256


event Unlocking:
    payer: indexed(address)
    payee: indexed(address)
    unlock_at: uint256


event Released:
    payer: indexed(address)
    payee: indexed(address)


event Withdrawn:
    payer: indexed(address)
    payee: indexed(address)
    amount: uint256


MAX_BATCH: constant(uint256) = 64
# A shorter notice could pass before a payee that was down for a moment sees it; a longer one helps nobody.
MIN_NOTICE: constant(uint256) = 60
MAX_NOTICE: constant(uint256) = 90 * 86400

# Why a claim pays nothing.
GOOD: constant(uint256) = 0
BAD_INDEX: constant(uint256) = 1
NOTHING_DUE: constant(uint256) = 2
BAD_SIGNATURE: constant(uint256) = 3
BAD_WORD: constant(uint256) = 4

NOTICE: public(immutable(uint256))


@deploy
def __init__(notice: uint256):
    """
    @notice Fixes the notice period for good.
    @param notice Seconds between `unlock` and `withdraw`: a minute to 90 days.
    """
    assert notice >= MIN_NOTICE and notice <= MAX_NOTICE, "purses: bad notice"
    NOTICE = notice


@payable
@external
def open(payee: address):
    """
    @notice Puts the money that comes with the call into the caller's purse for `payee`. The same as `top_up`
            for oneself.
    @param payee Who can be paid from it, and nobody else.
    """
    self._deposit(msg.sender, payee)


@payable
@external
def top_up(payer: address, payee: address):
    """
    @notice Puts the money that comes with the call into anyone's purse. Cancels no unlock.
    @param payer Whose purse.
    @param payee Who can be paid from it.
    """
    self._deposit(payer, payee)


@external
def claim(c: Claim):
    """
    @notice Pays what a ticket proves into the payee's earnings, at most the purse's deposit. Anyone may call.
    @param c The payer's signed book and one ticket of it.
    """
    reason: uint256 = GOOD
    due: uint256 = 0
    reason, due = self._settle(books._domain_separator(), c)
    assert reason != BAD_INDEX, "purses: bad index"
    assert reason != NOTHING_DUE, "purses: nothing due"
    assert reason != BAD_SIGNATURE, "purses: bad signature"
    assert reason != BAD_WORD, "purses: bad word"
    earnings._earn(c.book.payee, due)


@external
def claim_many(claims: DynArray[Claim, MAX_BATCH]):
    """
    @notice Claims from many purses. One that pays nothing is skipped with an event and stops none of the
            others.
    @param claims At most 64; cheapest when those of one payee stand together.
    """
    separator: bytes32 = books._domain_separator()
    payee: address = empty(address)
    sum: uint256 = 0
    for c: Claim in claims:
        reason: uint256 = GOOD
        due: uint256 = 0
        reason, due = self._settle(separator, c)
        if reason != GOOD:
            log Skipped(payer=c.payer, payee=c.book.payee, reason=reason)
            continue
        if c.book.payee != payee:
            if sum != 0:
                earnings._earn(payee, sum)
            payee = c.book.payee
            sum = 0
        sum += due
    if sum != 0:
        earnings._earn(payee, sum)


@external
def unlock(payee: address):
    """
    @notice Starts the notice period of the caller's purse for `payee`, who may claim until it is over.
    @param payee Who is paid from the purse.
    """
    unlock_at: uint256 = block.timestamp + NOTICE
    vault._unlock(msg.sender, payee, unlock_at)
    log Unlocking(payer=msg.sender, payee=payee, unlock_at=unlock_at)


@external
def release(payer: address):
    """
    @notice Lets a payer withdraw at once. Only for purses that pay the caller.
    @param payer Whose purse.
    """
    vault._release(payer, msg.sender)
    log Released(payer=payer, payee=msg.sender)


@external
@nonreentrant
def withdraw(payee: address):
    """
    @notice Sends the rest of the caller's purse back, once its notice period is over.
    @param payee Who was paid from the purse.
    """
    rest: uint256 = vault._take_rest(msg.sender, payee)
    log Withdrawn(payer=msg.sender, payee=payee, amount=rest)
    raw_call(msg.sender, b"", value=rest)


@external
@nonreentrant
def cash_out(to: address, amount: uint256):
    """
    @notice Sends the caller's earnings.
    @param to Where they go.
    @param amount Wei, at most what the caller has earned and not taken out.
    """
    earnings._cash_out(msg.sender, to, amount)


@view
@external
def purse(payer: address, payee: address) -> vault.Purse:
    """
    @notice Returns a purse's deposit, what was claimed of it, and when it unlocks (0: it is locked).
    @param payer Who pays.
    @param payee Who is paid.
    @return The purse; all zeros if it was never opened.
    """
    return vault._read(payer, payee)


@view
@external
def earned(payee: address) -> uint256:
    """
    @notice Returns what a payee may take out.
    @param payee Whose earnings.
    @return Wei.
    """
    return earnings._earned[payee]


@view
@external
def domain_separator() -> bytes32:
    """
    @notice Returns the EIP-712 domain separator on this chain.
    @return The 32-byte separator.
    """
    return books._domain_separator()


@view
@external
def book_digest(book: books.Book) -> bytes32:
    """
    @notice Returns what a payer signs for a book.
    @param book The book.
    @return The 32-byte EIP-712 digest.
    """
    return books._digest(books._domain_separator(), book)


@payable
@internal
def _deposit(payer: address, payee: address):
    """
    @notice Adds the call's money to a purse.
    @param payer Whose purse.
    @param payee Who can be paid from it.
    """
    assert payer != empty(address), "purses: no payer"
    assert payee != empty(address) and payee != self, "purses: no payee"
    deposited: uint256 = vault._deposit(payer, payee, msg.value)
    log Deposited(payer=payer, payee=payee, amount=msg.value, deposited=deposited)


@internal
def _settle(separator: bytes32, c: Claim) -> (uint256, uint256):
    """
    @notice Checks one claim and counts it as paid. The earnings are the caller's to add.
    @param separator The domain separator.
    @param c The claim.
    @return Why nothing is due (GOOD if something is), and the wei due.
    """
    index: uint256 = convert(c.index, uint256)
    length: uint256 = convert(c.book.length, uint256)
    if index > length or length > chains.MAX_LENGTH:
        return BAD_INDEX, 0
    digest: bytes32 = books._digest(separator, c.book)
    signer: address = signatures._signer(digest, c.v, c.r, c.s)
    if signer == empty(address) or signer != c.payer:
        return BAD_SIGNATURE, 0
    if chains._walk(c.word, index) != c.book.tip:
        return BAD_WORD, 0
    worth: uint256 = (
        convert(c.book.base, uint256) + index * convert(c.book.value, uint256)
    )
    due: uint256 = 0
    claimed: uint256 = 0
    due, claimed = vault._pay_up_to(c.payer, c.book.payee, worth)
    if due == 0:
        return NOTHING_DUE, 0
    log Claimed(payer=c.payer, payee=c.book.payee, amount=due, claimed=claimed)
    return GOOD, due
