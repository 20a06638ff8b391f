"""Why the customer's namespace could not be made, as one sentence for the user: what is missing and how to
grant it.

Reads the kernel's settings below /proc/sys; changes nothing.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

_TUN = Path("/dev/net/tun")


def explain_failure(
    stage: str, code: int, text: str, *, sys_root: Path = Path("/proc/sys"), tun: Path = _TUN
) -> str:
    """Return the sentence for a failed stage of the helper (`unshare`, `map`, `mount`, `tun`, `routes`).

    `code` is the kernel's error number, `text` its words. `sys_root` and `tun` are for tests.
    """
    if stage == "tun":
        return _explain_tun(code, text, sys_root, tun)
    if stage in ("unshare", "map", "mount"):
        return _explain_user_namespace(stage, code, text, sys_root)
    return f"cannot set up the customer's network namespace ({stage}): {text}"


def _explain_tun(code: int, text: str, sys_root: Path, tun: Path) -> str:
    if code == errno.ENOENT:
        return (
            f"{tun} is missing: load the kernel module with `sudo modprobe tun`"
            f" (in a container, pass the device in with `--device {tun}`)"
        )
    if code in (errno.EACCES, errno.EPERM) and not os.access(tun, os.R_OK | os.W_OK):
        return (
            f"{tun} may not be read and written by user {os.geteuid()}:"
            f" allow it with `sudo chmod 0666 {tun}`, or start hopfare as root"
        )
    if code in (errno.EACCES, errno.EPERM):
        return _denied(sys_root) or (
            f"making a TUN device is refused ({text}) though {tun} can be opened:"
            " a container or security profile withholds CAP_NET_ADMIN or the device;"
            " grant both, or start hopfare outside of it"
        )
    return f"cannot make a TUN device in the customer's network namespace: {text}"


def _explain_user_namespace(stage: str, code: int, text: str, sys_root: Path) -> str:
    if code in (errno.ENOSPC, errno.EUSERS) or _read(sys_root / "user/max_user_namespaces") == "0":
        return (
            "the kernel allows no more user namespaces: raise the limit with"
            " `sudo sysctl -w user.max_user_namespaces=15000`, or start hopfare as root"
        )
    if _read(sys_root / "user/max_net_namespaces") == "0":
        return (
            "the kernel allows no network namespaces: raise the limit with"
            " `sudo sysctl -w user.max_net_namespaces=15000`"
        )
    if denied := _denied(sys_root):
        return denied
    if code == errno.EINVAL:
        return "this kernel has no user or network namespaces (CONFIG_USER_NS, CONFIG_NET_NS)"
    return (
        f"making a network namespace is refused ({stage}: {text}): a container or security profile forbids"
        " user namespaces; allow them (Docker: `--security-opt seccomp=unconfined`, or"
        " `--cap-add SYS_ADMIN --cap-add NET_ADMIN` as root), or start hopfare as root"
    )


def _denied(sys_root: Path) -> str | None:
    if _read(sys_root / "kernel/unprivileged_userns_clone") == "0":
        return (
            "this system does not let users make user namespaces: allow it with"
            " `sudo sysctl -w kernel.unprivileged_userns_clone=1`, or start hopfare as root"
        )
    if _read(sys_root / "kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            "AppArmor on this system takes all rights from user namespaces: allow them with"
            " `sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
            " (or give hopfare's Python a profile with `userns,`), or start hopfare as root"
        )
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
