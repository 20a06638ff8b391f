# pragma version 0.4.3
"""
@title Signatures: who signed
@license MIT
@author hopfare
@notice One ability: the address whose key signed a digest, for signatures in their one canonical form.
@dev Stateless and pure.
"""

# Half the order of secp256k1, rounded down (EIP-2). A signature with a larger s has an equally valid twin.
HALF_ORDER: constant(uint256) = (
    115792089237316195423570985008687907852837564279074904382605163141518161494337 // 2
)


@pure
@internal
def _signer(digest: bytes32, v: uint8, r: bytes32, s: bytes32) -> address:
    """
    @notice Returns who signed.
    @param digest The signed 32 bytes.
    @param v 27 or 28.
    @param r The signature's first half.
    @param s The signature's second half, at most HALF_ORDER.
    @return The signer, or the zero address if there is none or the signature is not canonical.
    """
    if convert(s, uint256) > HALF_ORDER:
        return empty(address)
    return ecrecover(digest, v, r, s)
