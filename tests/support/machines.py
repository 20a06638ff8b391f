"""What a machine of a lab looks like: everything that hopfare changes there, or could leave behind."""

from __future__ import annotations

import difflib
import re
import time

from labkit import CLIENT, SystemLab


def machine(lab: SystemLab, host: str) -> dict[str, str]:
    """Everything of a host that hopfare changes, or could leave behind."""
    commands = {
        "rules": "nft list ruleset | sed 's/packets [0-9]* bytes [0-9]*//'",
        "links": "ip -br link | awk '{print $1}' | sort",
        "addresses": "ip -br addr | awk '{$2=\"\"; print}' | sort",
        "routes": "ip route; ip -6 route | grep -v multicast; ip rule; ip -6 rule",
        "settings": "cd /proc/sys/net; grep -H . ipv4/ip_forward ipv6/conf/all/forwarding"
        " ipv4/conf/*/forwarding ipv6/conf/*/forwarding 2>/dev/null | sort",
    }
    found = {name: lab.run_in(host, ["sh", "-c", command]).text for name, command in commands.items()}
    # What customers' flows put into sets while they last is no setting.
    found["rules"] = re.sub(r"(flags dynamic[^}]*?)\s*elements = \{[^}]*\}", r"\1", found["rules"])
    return found


def assert_same(lab: SystemLab, host: str, before: dict[str, str]) -> None:
    """The machine is as it was `before`; the kernel may take a moment to remove what has ended."""
    deadline = time.monotonic() + 20
    while (now := machine(lab, host)) != before and time.monotonic() < deadline:
        time.sleep(0.1)
    for name, text in before.items():
        assert not list(difflib.unified_diff(text.splitlines(), now[name].splitlines(), lineterm="")), name


def processes_of(lab: SystemLab, session: int) -> list[str]:
    listing = lab.run_in(CLIENT, ["ps", "-eo", "sid=,stat=,args="]).text.splitlines()
    return [
        line for line in listing if line.split()[0] == str(session) and not line.split()[1].startswith("Z")
    ]
