"""`hopfare exec -- PROGRAM`: run a program inside the running client's network namespace.

Owns entering the namespace, the program's view of name resolution, and giving up every privilege that could
lead out again. Does not own the command line or finding the client (the caller hands in the helper's process
number). The program replaces this process, so exit status, signals, terminal and job control pass by
themselves.

Inside, the program sees only `lo` and the TUN; its resolv.conf names the exit's DNS; nothing on the machine
that resolves names for others can be reached. Files, users, desktop sockets and everything else are the
machine's own: this keeps a program's traffic in, it is no sandbox against a program that wants to hand its
work to another process of the user.

Imports the standard library only: a process with threads cannot enter a user namespace, so then this file
runs again as a script of its own.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

#: The exit's DNS, at every exit.
DNS_ADDRESSES = ("100.64.0.1", "fd68:6f70:6661::1")
#: Exit statuses of our own failures, as `env`, `nohup` and the shell use them.
STATUS_FAILED, STATUS_NOT_EXECUTABLE, STATUS_NOT_FOUND = 125, 126, 127

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND = 0x1, 0x2, 0x4, 0x8, 0x1000
_MS_MOVE, _MS_REC, _MS_SLAVE = 0x2000, 0x4000, 0x80000
_MNT_DETACH = 2
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_MAX_CAPABILITY = 63
# What root keeps: rights over files, processes and low ports; nothing that enters or changes namespaces,
# routes, the kernel or other processes. By number: CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL
# SETGID SETUID NET_BIND_SERVICE NET_RAW IPC_LOCK SYS_CHROOT SYS_NICE SYS_RESOURCE AUDIT_WRITE.
_ROOT_KEEPS = frozenset({0, 1, 2, 3, 4, 5, 6, 7, 10, 13, 14, 18, 23, 24, 29})

#: Folders and sockets of services that resolve names (or can be asked to) outside of the namespace.
MASKED_FOLDERS = ("/run/systemd/resolve", "/run/systemd/resolve.hook", "/run/nscd", "/run/avahi-daemon")
MASKED_SOCKETS = ("/run/dbus/system_bus_socket", "/run/.nscd_socket")
_STAGES = ("/mnt", "/media", "/srv", "/opt", "/tmp")
_SSH_SNIPPETS = Path("/etc/ssh/ssh_config.d")
_NSSWITCH = Path("/etc/nsswitch.conf")
_RESOLV_CONF = Path("/etc/resolv.conf")


class ExecError(Exception):
    """The program could not be started; `status` is the exit status, the message one sentence."""

    def __init__(self, message: str, status: int = STATUS_FAILED) -> None:
        """Keep the sentence and the status."""
        super().__init__(message)
        self.status = status


def run_exec(
    helper_pid: int, argv: Sequence[str], *, dns_addresses: Sequence[str] = DNS_ADDRESSES
) -> NoReturn:
    """Enter the namespace of the client's helper process and become the program `argv`.

    The program keeps user, groups, folder, environment and terminal, gains no privileges (setuid has no
    effect), and, as root, loses those that could lead out of the namespace. Raises ExecError, which carries
    the exit status (127 program not found, 126 not executable, 125 anything else), before anything has run;
    this process may then be half inside the namespace and should end.
    """
    if not argv:
        raise ExecError("no program to run was named: hopfare exec -- PROGRAM [ARGUMENT]...")
    sys.stdout.flush()
    sys.stderr.flush()
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        script = [sys.executable, "-I", "-S", str(Path(__file__).resolve())]
        os.execv(sys.executable, [*script, ",".join(dns_addresses), str(helper_pid), *argv])
    libc = ctypes.CDLL(None, use_errno=True)
    _enter(libc, helper_pid)
    _arrange_names(libc, dns_addresses)
    _drop_privileges(libc)
    # Python ignores these, and ignoring is inherited.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        os.execvp(argv[0], list(argv))
    except FileNotFoundError as error:
        raise ExecError(f"{argv[0]}: there is no such program", STATUS_NOT_FOUND) from error
    except NotADirectoryError as error:
        raise ExecError(f"{argv[0]}: there is no such program", STATUS_NOT_FOUND) from error
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else str(error)
        raise ExecError(f"{argv[0]}: cannot be run: {text}", STATUS_NOT_EXECUTABLE) from error


def _enter(libc: ctypes.CDLL, helper_pid: int) -> None:
    process = Path(f"/proc/{helper_pid}")
    try:
        owner = process.stat().st_uid
        if b"namespace_helper" not in (process / "cmdline").read_bytes():
            raise FileNotFoundError
        _check_owner(owner)
        user = os.open(process / "ns/user", os.O_RDONLY)
        net = os.open(process / "ns/net", os.O_RDONLY)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise ExecError("the client's namespace is gone: is `hopfare client` still running?") from error
    except PermissionError as error:
        raise ExecError(
            f"the client's namespace may not be entered ({error.strerror}):"
            " run `hopfare exec` as the user who runs `hopfare client`"
        ) from error
    try:
        if not os.path.samestat(os.fstat(user), Path("/proc/self/ns/user").stat()):
            _call(libc.setns(user, _CLONE_NEWUSER), "enter the client's user namespace")
        _call(libc.setns(net, _CLONE_NEWNET), "enter the client's network namespace")
        _call(libc.unshare(_CLONE_NEWNS), "make a mount namespace")
    finally:
        os.close(user)
        os.close(net)


def _check_owner(owner: int) -> None:
    if owner == os.geteuid():
        return
    who = "as root (`sudo hopfare exec ...`)" if owner == 0 else f"as user {owner}"
    raise ExecError(f"the client belongs to user {owner}: run `hopfare exec` {who}")


# Name resolution.


def _arrange_names(libc: ctypes.CDLL, dns_addresses: Sequence[str]) -> None:
    """Give this mount namespace its own resolver configuration and hide the services that resolve outside."""
    # Slave: what the machine mounts later appears here too, what we mount does not appear there.
    _mount(libc, "none", "/", None, _MS_REC | _MS_SLAVE, "make the mounts private")
    stage = next((Path(folder) for folder in _STAGES if Path(folder).is_dir()), None)
    if stage is None:
        raise ExecError(f"none of the folders {', '.join(_STAGES)} exists, and one is needed to mount over")
    for folder in MASKED_FOLDERS:
        if Path(folder).is_dir():
            _mount_tmpfs(libc, folder)
    for path in MASKED_SOCKETS:
        if Path(path).exists():
            _bind(libc, "/dev/null", path)
    _mount_tmpfs(libc, str(stage))
    try:
        _write_names(libc, stage, dns_addresses)
        _copy_ssh_snippets(libc, stage)
        _replace_sysfs(libc, stage)
    finally:
        libc.umount2(os.fsencode(stage), _MNT_DETACH)


def _write_names(libc: ctypes.CDLL, stage: Path, dns_addresses: Sequence[str]) -> None:
    resolv_conf = stage / "resolv.conf"
    resolv_conf.write_text(resolver_configuration(dns_addresses))
    target = Path(os.path.realpath(_RESOLV_CONF))
    if target.exists():
        _bind(libc, str(resolv_conf), str(target))
    elif any(target.is_relative_to(folder) for folder in MASKED_FOLDERS) and target.parent.is_dir():
        # What it led to is hidden by our own empty folder, where we may make files.
        target.write_text(resolver_configuration(dns_addresses))
    else:
        raise ExecError(
            f"{_RESOLV_CONF} leads to {target}, which does not exist: make an empty file there,"
            " so that names can be resolved through the exit"
        )
    with suppress(FileNotFoundError):
        original = _NSSWITCH.read_text(errors="surrogateescape")
        nsswitch = stage / "nsswitch.conf"
        nsswitch.write_text(name_service_switch(original), errors="surrogateescape")
        _bind(libc, str(nsswitch), os.path.realpath(_NSSWITCH))


def resolver_configuration(dns_addresses: Sequence[str]) -> str:
    """Return resolv.conf's text: these servers, and no search list (the default is the machine's domain)."""
    servers = "".join(f"nameserver {address}\n" for address in dns_addresses)
    return f"# hopfare: names are resolved at the exit\n{servers}search .\noptions edns0\n"


def name_service_switch(original: str) -> str:
    """Return nsswitch.conf's text with hosts resolved by file and DNS only; the other lines stay.

    `myhostname` stays too, since it answers for this machine's own name, which would otherwise go to the
    exit.
    """
    lines = []
    hosts = ["files", "dns"]
    for line in original.splitlines():
        key, colon, sources = line.partition(":")
        if key.strip() != "hosts" or not colon:
            lines.append(line)
        elif "myhostname" in sources.split():
            hosts = ["files", "myhostname", "dns"]
    return "\n".join([*lines, f"hosts: {' '.join(hosts)}", ""])


def _copy_ssh_snippets(libc: ctypes.CDLL, stage: Path) -> None:
    """Let ssh read the system's snippets: in a user namespace they look like nobody's, and ssh refuses."""
    try:
        if os.stat(_SSH_SNIPPETS).st_uid == 0 or not os.listdir(_SSH_SNIPPETS):  # noqa: PTH116, PTH208
            return
    except OSError:
        return
    copies = stage / "ssh"
    copies.mkdir()
    for snippet in _SSH_SNIPPETS.iterdir():
        with suppress(OSError):
            shutil.copyfile(snippet, copies / snippet.name)
    _bind(libc, str(copies), str(_SSH_SNIPPETS))


def _replace_sysfs(libc: ctypes.CDLL, stage: Path) -> None:
    """Show this namespace's interfaces in /sys, not the machine's; leave it where that is not allowed."""
    fresh = stage / "sys"
    fresh.mkdir()
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    if libc.mount(b"sysfs", os.fsencode(fresh), b"sysfs", flags | _MS_RDONLY, None):
        return
    cgroup = fresh / "fs/cgroup"
    if cgroup.is_dir():
        libc.mount(b"/sys/fs/cgroup", os.fsencode(cgroup), None, _MS_BIND | _MS_REC, None)
    libc.mount(os.fsencode(fresh), b"/sys", None, _MS_MOVE, None)


# Privileges.


def _drop_privileges(libc: ctypes.CDLL) -> None:
    """Leave nothing with which the program could enter another namespace or change this one."""
    kept = _ROOT_KEEPS if os.geteuid() == 0 else frozenset[int]()
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    for number in range(_MAX_CAPABILITY + 1):
        if number not in kept:
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)  # fails for numbers this kernel does not have
    _call(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up privileges")
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    state = ctypes.create_string_buffer(24)  # effective, permitted, inheritable; low words, then high
    _call(libc.capget(header, state), "read our privileges")
    _, low, _, _, high, _ = struct.unpack("=6I", state.raw)
    mask = (low | high << 32) & sum(1 << number for number in kept)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    # Inheritable stays empty: for root, execve adds what the bounding set still has.
    _call(libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)), "give up privileges")


def _bind(libc: ctypes.CDLL, source: str, target: str) -> None:
    _mount(libc, source, target, None, _MS_BIND, f"mount over {target}")


def _mount_tmpfs(libc: ctypes.CDLL, folder: str) -> None:
    _mount(
        libc,
        "tmpfs",
        folder,
        "tmpfs",
        _MS_NOSUID | _MS_NODEV | _MS_NOEXEC,
        f"mount over {folder}",
        "mode=755",
    )


def _mount(
    libc: ctypes.CDLL,
    source: str,
    target: str,
    kind: str | None,
    flags: int,
    what: str,
    data: str | None = None,
) -> None:
    arguments = (text if text is None else os.fsencode(text) for text in (source, target, kind))
    _call(libc.mount(*arguments, flags, None if data is None else data.encode()), what)


def _call(result: int, what: str) -> None:
    if result:
        raise ExecError(f"cannot {what}: {os.strerror(ctypes.get_errno())}")


def main(arguments: Sequence[str]) -> int:
    """Run as a script: DNS-ADDRESS,... HELPER-PID PROGRAM [ARGUMENT]..."""
    try:
        run_exec(int(arguments[1]), arguments[2:], dns_addresses=arguments[0].split(","))
    except ExecError as error:
        print(f"hopfare: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
