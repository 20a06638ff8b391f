"""The helper process behind `exit.io.namespace`: it lives inside the customer's network namespace.

Run as a script with `python -I -S`, so it imports only what starts fast. It enters a new network and mount
namespace (behind a new user namespace when it lacks CAP_SYS_ADMIN), makes the TUN, sets addresses, routes and
sysctls, and hands descriptors to its parent over a Unix SOCK_SEQPACKET socket. It carries no traffic. It ends
when the parent's end of the socket closes or the parent dies, and the namespace goes with the last socket,
TUN descriptor and process in it.

One message per packet, ASCII words separated by one space; answers come in the order of the commands:

| command | answer |
|---|---|
| (start) | `ready NAME HAS_OFFLOAD HAS_USO IS_USER_NAMESPACE` with the TUN's descriptor |
| `sockets FAMILY TYPE COUNT` | `sockets FAMILY TYPE` with 1 to COUNT descriptors |
| `add ADDRESS...`, `remove ADDRESS...` | `ok` |
| `source V4-OR-MINUS V6-OR-MINUS` | `ok` |
| `gateway NFT-PROGRAM` (the veth peer is there) | `ok` |
| any that failed | `failed STAGE ERRNO TEXT` |

Routing, so that nothing has another way out, no socket gets a circuit it was not bound to, and nothing hangs
where a circuit cannot carry it: a circuit's addresses are `local` routes, on no interface, so the kernel
never chooses one by itself; packets from the inner address ranges always go to the TUN (a rule and a table of
their own); the default source alone is on the TUN and has the main table's default route; without one, an
`unreachable` route refuses at once.

As a gateway (whole-device mode) it also carries the machine's packets, which come over a veth pair, and gives
them the default source's address; see `exit.device`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import struct
import sys

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_NET_ADMIN = 12
_IP_BIND_ADDRESS_NO_PORT = 24
_IP_RECVERR, _IPV6_RECVERR = 11, 25

_INNER_TABLE = 100
_METRIC_LOCAL, _METRIC_DEFAULT, _METRIC_UNREACHABLE = 1024, 100, 4096
_RULE_PRIORITY = 1000
INNER_V4 = ("100.64.0.0", 10)
INNER_V6 = ("fd68:6f70:6661::", 48)
_COMMAND_ROOM_BYTES = 65536
_MAX_DESCRIPTORS = 64

#: Where the machine's default is another one, a namespace may not choose this for all sockets (unless it is
#: in tcp_allowed_congestion_control), but for each.
_CONGESTION = b"cubic"

#: What the kernel's TCP shows of itself is the same for every customer, whatever the machine's own settings;
#: what remembers or links connections is off. Best effort: an older kernel lacks some.
SYSCTLS = (
    ("ipv4/ip_default_ttl", "64"),
    ("ipv4/ip_local_port_range", "1024 65535"),
    ("ipv4/ip_no_pmtu_disc", "0"),
    ("ipv4/conf/all/rp_filter", "1"),
    ("ipv4/conf/default/rp_filter", "1"),
    ("ipv4/conf/all/accept_redirects", "0"),
    ("ipv4/conf/default/accept_redirects", "0"),
    ("ipv4/tcp_congestion_control", _CONGESTION.decode()),
    ("ipv4/tcp_ecn", "0"),
    ("ipv4/tcp_fastopen", "0"),
    # Many uploads at once leave in super-packets too, and not two segments at a time.
    ("ipv4/tcp_min_tso_segs", "16"),
    ("ipv4/tcp_mtu_probing", "0"),
    ("ipv4/tcp_no_metrics_save", "1"),
    # What is not yet on its way waits in the program, not in kernel memory.
    ("ipv4/tcp_notsent_lowat", "524288"),
    ("ipv4/tcp_rmem", "4096 131072 16777216"),
    ("ipv4/tcp_wmem", "4096 65536 16777216"),
    ("ipv4/tcp_sack", "1"),
    ("ipv4/tcp_slow_start_after_idle", "0"),
    ("ipv4/tcp_syn_retries", "4"),
    # Fresh connections to one server would otherwise run out of ports at a thousand a second.
    ("ipv4/tcp_max_tw_buckets", "8192"),
    ("ipv4/tcp_timestamps", "0"),
    ("ipv4/tcp_window_scaling", "1"),
    ("ipv6/auto_flowlabels", "0"),
    # A circuit's address is a `local` route, which IPv6 does not count as its own when binding.
    ("ipv6/ip_nonlocal_bind", "1"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv6/conf/default/hop_limit", "64"),
    ("ipv6/conf/default/use_tempaddr", "0"),
)


class _StageError(Exception):
    """A step of the set-up failed; `stage` names it for `exit.io.namespace`."""

    def __init__(self, stage: str, error: OSError) -> None:
        super().__init__(stage, error.errno or 0, error.strerror or str(error))


class _Helper:
    """The state of the helper once its namespace stands."""

    def __init__(self, control: socket.socket, tun_index: int, has_ipv6: bool) -> None:
        from exit.io import netlink  # the parent gave its folder on the command line

        self._control = control
        self._netlink = netlink
        self._route = netlink.Netlink()
        self._lo_index = socket.if_nametoindex("lo")
        self._tun_index = tun_index
        self._has_ipv6 = has_ipv6
        self._sources: dict[int, str] = {}
        with socket.socket() as ready:
            default = ready.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
        self._has_other_default = default.rstrip(b"\0") != _CONGESTION
        self._tun_name = socket.if_indextoname(tun_index)
        self._gateway: _Gateway | None = None

    def set_up(self) -> None:
        net, route = self._netlink, self._route
        net.set_link_up(route, self._lo_index)
        net.set_link_up(route, self._tun_index)
        for family, (prefix, length) in self._families():
            net.add_source_rule(route, prefix, length, table=_INNER_TABLE, priority=_RULE_PRIORITY)
            net.replace_default(
                route, family, self._tun_index, table=_INNER_TABLE, metric=_METRIC_DEFAULT, source=None
            )
            net.add_unreachable_default(route, family, metric=_METRIC_UNREACHABLE)

    def serve(self) -> None:
        """Answer commands until the parent's end closes."""
        while command := self._control.recv(_COMMAND_ROOM_BYTES):
            words = command.decode("ascii").split(" ")
            try:
                if words[0] == "sockets":
                    self._make_sockets(int(words[1]), int(words[2]), int(words[3]))
                    continue
                if words[0] == "add":
                    for address in words[1:]:
                        self._netlink.add_local(self._route, self._lo_index, address, metric=_METRIC_LOCAL)
                elif words[0] == "remove":
                    for address in words[1:]:
                        self._remove(address)
                elif words[0] == "source":
                    self._set_source(socket.AF_INET, words[1])
                    if self._has_ipv6:
                        self._set_source(socket.AF_INET6, words[2])
                elif words[0] == "gateway":
                    self._become_gateway(words[1])
            except OSError as error:
                _send_failure(self._control, words[0], error)
            else:
                self._control.send(b"ok")

    def _make_sockets(self, family: int, kind: int, count: int) -> None:
        flags = kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        made: list[socket.socket] = []
        try:
            try:
                for _ in range(min(count, _MAX_DESCRIPTORS)):
                    ready = socket.socket(family, flags)
                    made.append(ready)
                    if kind == socket.SOCK_STREAM:
                        ready.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                        ready.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        self._choose_congestion(ready)
                        # Keeps the ICMP message that ends a connect; the taker clears it once connected.
                        if family == socket.AF_INET:
                            ready.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
                        else:
                            ready.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            except OSError:
                if not made:
                    raise
            head = b"sockets %d %d" % (family, kind)
            socket.send_fds(self._control, [head], [one.fileno() for one in made])
        finally:
            for one in made:
                one.close()

    def _choose_congestion(self, ready: socket.socket) -> None:
        if self._has_other_default:
            try:
                ready.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION)
            except OSError:
                self._has_other_default = False  # not in this kernel: the next ones need not ask

    def _remove(self, address: str) -> None:
        for family, source in list(self._sources.items()):
            if source == address:
                self._set_source(family, "-")
        with _Ignored(_NO_SUCH_ROUTE):
            self._netlink.remove_local(self._route, self._lo_index, address, metric=_METRIC_LOCAL)
        self._netlink.abort_tcp_from(address)
        if self._gateway is not None:
            self._gateway.end(address)

    def _set_source(self, family: int, source: str) -> None:
        old = self._sources.get(family, "-")
        if source == old:
            return
        net, route, tun = self._netlink, self._route, self._tun_index
        if source != "-":
            net.add_address(route, tun, source)
            self._sources[family] = source
            net.replace_default(route, family, tun, metric=_METRIC_DEFAULT, source=source)
        else:
            self._sources.pop(family)
            with _Ignored(_NO_SUCH_ROUTE):
                net.remove_default(route, family, tun, metric=_METRIC_DEFAULT)
        if self._gateway is not None:
            self._gateway.use(4 if family == socket.AF_INET else 6, source)
        if old != "-":
            with _Ignored(_NO_SUCH_ADDRESS):
                net.remove_address(route, tun, old)

    def _become_gateway(self, nft: str) -> None:
        from exit import device

        net, route = self._netlink, self._route
        index = socket.if_nametoindex(device.INNER_DEVICE)
        gateway = _Gateway(nft)
        # The filter stands before the first packet can be forwarded.
        gateway.load(device.render_gateway(self._tun_name))
        for name, value in (("rp_filter", "1"), ("accept_redirects", "0"), ("send_redirects", "0")):
            _write_sysctl(f"ipv4/conf/{device.INNER_DEVICE}/{name}", value)
        net.add_address(route, index, device.GATEWAY_V4, device.LENGTH_V4)
        _write_sysctl("ipv4/ip_forward", "1")
        if self._has_ipv6:
            net.add_address(route, index, device.GATEWAY_V6, device.LENGTH_V6)
            _write_sysctl("ipv6/conf/all/forwarding", "1")
        net.set_link_up(route, index)
        # Before the rule for inner sources: the exit's DNS has one.
        hosts = (device.HOST_V4, device.HOST_V6) if self._has_ipv6 else (device.HOST_V4,)
        for host in hosts:
            net.add_target_rule(route, host, table=net.TABLE_MAIN, priority=_RULE_PRIORITY - 1)
        for family, source in self._sources.items():
            gateway.use(4 if family == socket.AF_INET else 6, source)
        self._gateway = gateway

    def _families(self) -> list[tuple[int, tuple[str, int]]]:
        families: list[tuple[int, tuple[str, int]]] = [(socket.AF_INET, INNER_V4)]
        if self._has_ipv6:
            families.append((socket.AF_INET6, INNER_V6))
        return families


class _Gateway:
    """The namespace's nftables table in whole-device mode."""

    def __init__(self, nft: str) -> None:
        from exit import device

        self._nft = nft
        self._device = device
        self._addresses = {4: "-", 6: "-"}
        self._alive: set[str] = set()

    def use(self, version: int, address: str) -> None:
        """Give new flows of an IP version this address, or none ("-")."""
        old = self._addresses[version]
        if address != old:
            self.load(self._device.render_source(version, old, address))
            self._addresses[version] = address
            self._alive.add(address)

    def end(self, address: str) -> None:
        """End the flows of a circuit that is gone."""
        if address in self._alive:
            self._alive.discard(address)
            self.load(self._device.render_gone(address))

    def load(self, script: str) -> None:
        """Have `nft` carry out a script; raises OSError."""
        reader, writer = os.pipe()  # takes 64 KiB, many times a script
        try:
            os.write(writer, script.encode("ascii"))
            os.close(writer)
            actions = [(os.POSIX_SPAWN_DUP2, reader, 0)]
            pid = os.posix_spawn(self._nft, [self._nft, "-f", "-"], {"LC_ALL": "C"}, file_actions=actions)
        finally:
            os.close(reader)
        _, status = os.waitpid(pid, 0)
        if status:
            raise OSError(5, "nft refused the namespace's rules")


_NO_SUCH_ROUTE, _NO_SUCH_ADDRESS = 3, 99  # ESRCH, EADDRNOTAVAIL


class _Ignored:
    """Swallow the OSError with this number (contextlib takes too long to import)."""

    def __init__(self, code: int) -> None:
        self._code = code

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        return isinstance(error, OSError) and error.errno == self._code


def main(arguments: list[str]) -> int:
    """Run the helper: CONTROL-FD PARENT-PID NAME MTU OFFLOAD USO FOLDER... (0 or 1; import folders last)."""
    control = socket.socket(fileno=int(arguments[0]))
    sys.path.extend(arguments[6:])
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        tun_fd, greeting, helper = _enter(libc, control, arguments)
        socket.send_fds(control, [greeting], [tun_fd])
        os.close(tun_fd)
        _drop_privileges(libc)
        helper.serve()
    except _StageError as error:
        stage, code, text = error.args
        control.send(f"failed {stage} {code} {text}".encode("ascii", "replace"))
        return 1
    except (BrokenPipeError, ConnectionResetError):
        return 0
    return 0


def _enter(libc: ctypes.CDLL, control: socket.socket, arguments: list[str]) -> tuple[int, bytes, _Helper]:
    parent_pid, name, mtu = int(arguments[1]), arguments[2], int(arguments[3])
    # A terminal's Ctrl-C is the client's to handle; our end is the closing of the socket.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _raise_descriptor_limit()
    is_user_namespace = _unshare(libc)
    # Only now: a change of credentials clears it.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        raise SystemExit(0)
    if libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise _StageError("mount", _last_error())
    has_ipv6 = os.path.isdir("/proc/sys/net/ipv6/conf")  # noqa: PTH112 - pathlib takes 15 ms to import
    _apply_sysctls(is_user_namespace=is_user_namespace)
    from exit.errors import EnvError
    from exit.io.tun import Tun

    try:
        tun = Tun.open(name, arguments[4] == "1", uso=arguments[5] == "1", mtu=mtu)
    except EnvError as error:
        cause = error.__cause__
        raise _StageError("tun", cause if isinstance(cause, OSError) else OSError(0, str(error))) from error
    _write_sysctl(f"ipv4/conf/{tun.name}/rp_filter", "1")
    helper = _Helper(control, socket.if_nametoindex(tun.name), has_ipv6)
    try:
        helper.set_up()
    except OSError as error:
        raise _StageError("routes", error) from error
    flags = (tun.has_offload, tun.has_uso, is_user_namespace)
    greeting = f"ready {tun.name} {' '.join(str(int(flag)) for flag in flags)}"
    tun_fd = os.dup(tun.fileno())
    tun.close()
    return tun_fd, greeting.encode("ascii"), helper


def _unshare(libc: ctypes.CDLL) -> bool:
    """Enter the new namespaces; return whether a user namespace was needed."""
    if not libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS):
        return False
    if ctypes.get_errno() != 1:  # EPERM: no CAP_SYS_ADMIN
        raise _StageError("unshare", _last_error())
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS):
        raise _StageError("unshare", _last_error())
    # The user's own number, not 0: a program of `hopfare exec` then needs no second user namespace to be
    # itself, and the capabilities here do not depend on the number.
    try:
        for path, text in (
            ("/proc/self/setgroups", "deny"),
            ("/proc/self/uid_map", f"{uid} {uid} 1"),
            ("/proc/self/gid_map", f"{gid} {gid} 1"),
        ):
            with open(path, "w") as file:  # noqa: PTH123
                file.write(text)
    except OSError as error:
        raise _StageError("map", error) from error
    return True


def _apply_sysctls(*, is_user_namespace: bool) -> None:
    # Lets `ping` work without privileges. In a user namespace only our own group has a number.
    groups = f"{os.getegid()} {os.getegid()}" if is_user_namespace else "0 2147483647"
    for name, value in (("ipv4/ping_group_range", groups), *SYSCTLS):
        _write_sysctl(name, value)


def _write_sysctl(name: str, value: str) -> None:
    try:
        with open(f"/proc/sys/net/{name}", "w") as file:  # noqa: PTH123
            file.write(value)
    except OSError:
        pass  # not in this kernel, or not settable here


def _drop_privileges(libc: ctypes.CDLL) -> None:
    """Keep CAP_NET_ADMIN (addresses, routes, aborting sockets) and nothing else."""
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    kept = 1 << _CAP_NET_ADMIN
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    libc.capset(header, struct.pack("=6I", kept, kept, kept, 0, 0, 0))
    # For `nft`, which this process starts as a gateway: without it only root's programs would have it.
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_NET_ADMIN, 0, 0)


def _raise_descriptor_limit() -> None:
    # Descriptors in flight count against the sender's limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _send_failure(control: socket.socket, stage: str, error: OSError) -> None:
    control.send(f"failed {stage} {error.errno or 0} {error.strerror or error}".encode("ascii", "replace"))


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
