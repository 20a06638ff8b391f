"""Every bound of links in one place. The defaults suit a relay; a customer dials one or two links."""

from dataclasses import dataclass

RELAY_FULL_PING_EVERY = 4
"""For relays: a full packet each way every minute tells of a path that shrank, and a dozen idle neighbours
then cost half a kilobyte a second and not two.
"""


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds and times of one endpoint's links."""

    handshake_timeout_s: float = 10.0
    """From the first packet until the link is up."""
    idle_timeout_s: float = 60.0
    """QUIC closes a link that nothing was received on for so long; the dialler's keep-alive prevents it."""
    keepalive_s: float = 15.0
    """The dialler sends a padded Ping this often: shorter than the 30 s after which the first NATs forget
    (RFC 4787).
    """
    full_ping_every: int = 1
    """Pings of which one is padded to a full packet; the others are small."""
    answer_timeout_s: float = 10.0
    """A Ping without Pong, or data without any packet in answer, for so long means that the link is dead."""

    max_links: int = 4096
    max_links_per_address: int = 64
    """Per IPv4 address or IPv6 /64. Many customers may sit behind one NAT."""
    max_half_open: int = 512
    """Handshakes at once; above it, Initials are dropped."""
    max_half_open_per_address: int = 32
    retry_half_open: int = 64
    """Handshakes at once above which a dialler must prove its address by a Retry first."""
    handshakes_per_s: float = 300.0
    """About 1.5 ms of CPU each: half a core."""
    handshake_burst: float = 600.0
    handshakes_per_address_per_s: float = 20.0
    handshake_burst_per_address: float = 60.0

    control_messages_per_s: float = 5000.0
    control_burst: float = 10000.0
    max_control_backlog_bytes: int = 1024 * 1024
    """Control messages of ours that the peer has not let us send; beyond it the link is closed."""
    max_bad_datagrams: int = 16
    """DATAGRAM frames of a wrong size before the link is closed."""
    max_early_bytes: int = 256 * 1024
    """Stream data that may overtake the control stream's greeting."""
    max_held_bytes: int = 32 * 1024 * 1024
    """Received stream data of one link that waits for a gap to close."""
