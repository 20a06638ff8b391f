"""The onion packet written down once more: slowly, from docs/protocol/onion.md, no code shared.

HKDF is written out with HMAC, the streams go block by block, and suite 1's bodies use libsodium, not OpenSSL.
`counter` is always the absolute 56-bit counter; nothing here keeps state.
"""

import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
)

FORWARD, DELIVER, DROP = 0, 1, 2
DATAGRAM, STREAM = 1, 2


def xor(left, right):
    return bytes(a ^ b for a, b in zip(left, right, strict=True))


def expand(secret, label, length):
    info = b"onion/1 " + label.encode()
    out, block, number = b"", b"", 0
    while len(out) < length:
        number += 1
        block = hmac.digest(secret, block + info + bytes((number,)), "sha256")
        out += block
    return out[:length]


def label_of(direction, lane):
    return direction if lane == DATAGRAM else direction + " stream"


def first_counter(root, direction, lane):
    """The counter of the first packet."""
    return int.from_bytes(expand(root, label_of(direction, lane) + " ctr0", 6), "little") + 1


def keys_at(root, direction, lane, counter):
    label = label_of(direction, lane)
    chain = expand(root, label + " chain", 32)
    start = int.from_bytes(expand(root, label + " ctr0", 6), "little") >> 20
    for _ in range((counter >> 20) - start):
        chain = expand(chain, "ratchet", 32)
    keys = expand(chain, "keys", 64)
    return keys[:32], keys[32:]


def nonce_of(counter):
    return bytes(4) + counter.to_bytes(8, "little")


def keystream(suite, key, counter, length):
    nonce = nonce_of(counter)
    if suite == 1:
        context = Cipher(algorithms.ChaCha20(key, bytes(4) + nonce), None).encryptor()
        return context.update(bytes(length))
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = [block.update(nonce + number.to_bytes(4, "big")) for number in range(-(-length // 16))]
    return b"".join(blocks)[:length]


def seal(suite, key, counter, extra, plain):
    """Return (body, tag)."""
    nonce = nonce_of(counter)
    if suite == 1:
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(plain, extra, nonce, key)
        return sealed[:-16], sealed[-16:]
    context = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
    context.authenticate_additional_data(extra)
    return context.update(plain) + context.finalize(), context.tag


def open_sealed(suite, key, counter, extra, body, tag):
    nonce = nonce_of(counter)
    if suite == 1:
        return crypto_aead_chacha20poly1305_ietf_decrypt(body + tag, extra, nonce, key)
    context = Cipher(algorithms.AES(key), modes.GCM(nonce, tag)).decryptor()
    context.authenticate_additional_data(extra)
    return context.update(body) + context.finalize()


def client_forward(roots, suite, lane, counters, payload, filler, command=DELIVER):
    """One packet for the first link; `filler` is the random tail of (4 - n) * 24 bytes."""
    hops = len(roots)
    keys = [keys_at(root, "fwd", lane, counter) for root, counter in zip(roots, counters, strict=True)]
    streams = [keystream(suite, key, counter, 97) for (_, key), counter in zip(keys, counters, strict=True)]
    phi = b""
    for index in range(hops - 1):
        phi = xor(phi + bytes(24), streams[index][96 - 24 * (index + 1) : 96])
    rest, body = filler + phi, payload
    header = b""
    for index in reversed(range(hops)):
        if header:
            rest = xor(header, streams[index][:96])[:72]
        order = command if index == hops - 1 else FORWARD
        head = counters[index].to_bytes(7, "little") + bytes((order ^ streams[index][96],))
        body, tag = seal(suite, keys[index][0], counters[index], head + rest, body)
        header = head + tag + rest
    return header + body


def relay_forward(root, suite, lane, packet):
    """Return (command, body, next packet); raises when the packet is not authentic."""
    counter = int.from_bytes(packet[:7], "little")
    aead, header_key = keys_at(root, "fwd", lane, counter)
    rest = packet[24:96]
    body = open_sealed(suite, aead, counter, packet[:8] + rest, packet[96:], packet[8:24])
    stream = keystream(suite, header_key, counter, 97)
    return packet[7] ^ stream[96], body, xor(rest + bytes(24), stream[:96]) + body


def exit_backward(root, suite, lane, counter, payload, filler):
    head = counter.to_bytes(8, "little")
    body, tag = seal(suite, keys_at(root, "bwd", lane, counter)[0], counter, head, payload)
    return head + filler + tag + body


def relay_backward(root, suite, lane, counter, packet):
    kept = packet[:24] + packet[32:]
    stream = keystream(suite, keys_at(root, "bwd", lane, counter)[1], counter, len(kept))
    return counter.to_bytes(8, "little") + xor(kept, stream)


def client_backward(roots, suite, lane, packet):
    for root in roots[:-1]:
        counter = int.from_bytes(packet[:8], "little")
        # The 8 bytes that the relay dropped are unknown: any will do.
        stream = keystream(suite, keys_at(root, "bwd", lane, counter)[1], counter, len(packet) - 8)
        kept = xor(packet[8:], stream)
        packet = kept[:24] + bytes(8) + kept[24:]
    counter = int.from_bytes(packet[:8], "little")
    key = keys_at(roots[-1], "bwd", lane, counter)[0]
    return open_sealed(suite, key, counter, packet[:8], packet[48:], packet[32:48])
