# pragma version 0.4.3
"""
@title Entries: the list of relays
@license MIT
@author hopfare
@notice One ability: an unordered list of what relays publish, one entry a payee, that can be read in pages.
@dev Five slots an entry: identity, two halves of the endorsement, and one packed by hand with the endpoint
     (bits 0..127 IPv6 address, an IPv4 address in its mapped form; bits 128..143 UDP port) and the place in
     the list plus one (bits 144..183; 0: not listed); and the list's own.
"""

struct Entry:
    identity: bytes32
    endorsement_r: bytes32
    endorsement_s: bytes32
    ip: uint128
    port: uint16


IP_MASK: constant(uint256) = 2**128 - 1
PORT_MASK: constant(uint256) = 2**16 - 1
MAX_ENTRIES: constant(uint256) = 2**32

_identities: HashMap[address, bytes32]
_endorsements: HashMap[address, bytes32[2]]
_packed: HashMap[address, uint256]
_payees: HashMap[uint256, address]
_length: uint256


@view
@internal
def _count() -> uint256:
    """
    @notice Returns the list's length.
    @return Entries.
    """
    return self._length


@view
@internal
def _payee_at(place: uint256) -> address:
    """
    @notice Returns who stands at a place of the list.
    @param place From 0, below the length.
    @return The payee.
    """
    return self._payees[place]


@view
@internal
def _is_listed(payee: address) -> bool:
    """
    @notice Tells whether a payee is listed.
    @param payee The relay's payee address.
    @return Whether it is.
    """
    return (self._packed[payee] >> 144) != 0


@view
@internal
def _entry(payee: address) -> Entry:
    """
    @notice Returns what a payee publishes.
    @param payee The relay's payee address.
    @return The entry; zeros if it is not listed.
    """
    packed: uint256 = self._packed[payee]
    endorsement: bytes32[2] = self._endorsements[payee]
    return Entry(
        identity=self._identities[payee],
        endorsement_r=endorsement[0],
        endorsement_s=endorsement[1],
        ip=convert(packed & IP_MASK, uint128),
        port=convert((packed >> 128) & PORT_MASK, uint16),
    )


@internal
def _append(payee: address, entry: Entry):
    """
    @notice Puts a payee at the list's end.
    @param payee The relay's payee address.
    @param entry What it publishes.
    """
    assert not self._is_listed(payee), "entries: listed already"
    assert self._length < MAX_ENTRIES, "entries: full"
    self._payees[self._length] = payee
    self._length += 1
    self._store(payee, entry, self._length)


@internal
def _replace(payee: address, entry: Entry):
    """
    @notice Changes what a listed payee publishes; its place stays.
    @param payee The relay's payee address.
    @param entry What it publishes from now on.
    """
    place: uint256 = self._packed[payee] >> 144
    assert place != 0, "entries: not listed"
    self._store(payee, entry, place)


@internal
def _remove(payee: address):
    """
    @notice Takes a payee off the list; the last one takes its place.
    @param payee The relay's payee address.
    """
    place: uint256 = self._packed[payee] >> 144
    assert place != 0, "entries: not listed"
    last: address = self._payees[self._length - 1]
    if last != payee:
        self._payees[place - 1] = last
        self._packed[last] = (self._packed[last] & (2**144 - 1)) | (place << 144)
    self._length -= 1
    self._payees[self._length] = empty(address)
    self._packed[payee] = 0
    self._identities[payee] = empty(bytes32)
    self._endorsements[payee] = empty(bytes32[2])


@internal
def _store(payee: address, entry: Entry, place: uint256):
    """
    @notice Writes an entry.
    @param payee The relay's payee address.
    @param entry What it publishes.
    @param place Its place in the list, plus one.
    """
    assert entry.identity != empty(bytes32), "entries: no identity"
    assert entry.port != 0, "entries: no port"
    self._identities[payee] = entry.identity
    self._endorsements[payee] = [entry.endorsement_r, entry.endorsement_s]
    self._packed[payee] = (
        convert(entry.ip, uint256) | (convert(entry.port, uint256) << 128) | (place << 144)
    )
