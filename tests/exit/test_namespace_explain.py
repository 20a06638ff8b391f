"""What the user is told when the namespace cannot be made."""

import errno
from pathlib import Path

import pytest

from exit.io.namespace_explain import explain_failure


@pytest.fixture
def sys_root(tmp_path: Path) -> Path:
    for folder in ("kernel", "user"):
        (tmp_path / folder).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("setting", "value", "code", "words"),
    [
        ("kernel/unprivileged_userns_clone", "0", errno.EPERM, "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", errno.ENOSPC, "user.max_user_namespaces=15000"),
        ("user/max_net_namespaces", "0", errno.ENOSPC, "namespaces=15000"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            errno.EACCES,
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("kernel/unprivileged_userns_clone", "1", errno.EPERM, "a container or security profile forbids"),
        ("kernel/unprivileged_userns_clone", "1", errno.EINVAL, "CONFIG_USER_NS"),
    ],
)
def test_names_the_setting_that_forbids_namespaces(
    sys_root: Path, setting: str, value: str, code: int, words: str
) -> None:
    (sys_root / setting).write_text(value + "\n")
    for stage in ("unshare", "map", "mount"):
        sentence = explain_failure(stage, code, "refused", sys_root=sys_root)
        assert words in sentence
        assert "\n" not in sentence


def test_names_the_tun_file_and_how_to_allow_it(sys_root: Path, tmp_path: Path) -> None:
    missing = tmp_path / "tun"
    assert "modprobe tun" in explain_failure("tun", errno.ENOENT, "", sys_root=sys_root, tun=missing)
    refused = explain_failure("tun", errno.EACCES, "Permission denied", sys_root=sys_root, tun=missing)
    assert f"chmod 0666 {missing}" in refused
    missing.write_text("")
    assert "CAP_NET_ADMIN" in explain_failure("tun", errno.EPERM, "no", sys_root=sys_root, tun=missing)
    (sys_root / "kernel/apparmor_restrict_unprivileged_userns").write_text("1")
    assert "AppArmor" in explain_failure("tun", errno.EPERM, "no", sys_root=sys_root, tun=missing)


def test_says_what_the_kernel_said_otherwise(sys_root: Path) -> None:
    assert "weather" in explain_failure("routes", errno.EIO, "weather", sys_root=sys_root)
    assert "weather" in explain_failure("tun", errno.EIO, "weather", sys_root=sys_root)
