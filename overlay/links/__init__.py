"""QUIC links between neighbours: certificates, control stream, two QUIC back ends behind one adapter,
admission.

Pure code here and in `backends/` is given the time; sockets and trio are in `io/`. Wire format:
docs/protocol/links.md.
"""
