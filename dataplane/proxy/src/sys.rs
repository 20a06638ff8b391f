//! What the proxy asks of its sockets.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{set_socket_linger, set_tcp_quickack};

/// Acknowledge what a new connection has received now, if it has not been.
pub fn acknowledge(socket: impl AsFd) {
    let _ = set_tcp_quickack(socket, true);
}

/// Close with a reset, so that the other side learns that something is missing.
pub fn reset(socket: OwnedFd) {
    let _ = set_socket_linger(&socket, Some(Duration::ZERO));
}

/// Bind to a circuit's inner address and begin to connect. The last packet of TCP's handshake waits a little for the
/// client's first data to go with it.
pub fn begin_connect(socket: &OwnedFd, source: IpAddr, target: SocketAddr) -> Result<(), Errno> {
    rustix::net::bind(socket, &SocketAddr::new(source, 0))?;
    set_tcp_quickack(socket, false)?;
    match rustix::net::connect(socket, &target) {
        Err(Errno::INPROGRESS) => Ok(()),
        other => other,
    }
}

/// From now on an ICMP message is a hint again and ends nothing.
pub fn ignore_icmp(socket: &OwnedFd, is_ipv6: bool) {
    let (level, name) =
        if is_ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) } else { (libc::IPPROTO_IP, libc::IP_RECVERR) };
    let off: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the value is an int that outlives the call.
    let _ = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(&off).cast(),
            std::mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
}
