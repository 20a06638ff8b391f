"""The hops' parts of the onion packet: what relays, exits and clients do to a batch of packets of one
lane."""
