"""The circuit build in one round trip: records, the client's machine, the relay's, its onion keys and replay
memory.

Specification: docs/protocol/build.md. The seam: `client.ClientBuild` makes a BUILD and reads its BUILT;
`relay.RelayBuild` turns a BUILD into what a relay should do next and makes the BUILT. Both move whole
messages as bytes; whoever owns the links carries them. Root keys come out as 32 raw bytes per hop.
"""
