"""Bad days for the lab's links: loss, delay, rate, cuts; and captures of what runs over them.

Two ways. `lose` drops at random inside the kernel (nftables) at full speed. `shape` leads a link through the
emulator process, which can also delay, reorder, duplicate and limit the rate, at the pace of Python (about
40,000 packets per second on one core).
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Self

from overlay.demo.box import LabError, Process, wait_until
from overlay.demo.capture import CapturedPacket, read_capture
from overlay.demo.lab import HUB, MTU_BYTES, Host, Lab
from overlay.demo.shaping import Conditions

UNLIMITED_SEGMENTS = 65535
START_TIMEOUT_S = 15.0
_LOSS = """
table netdev {table} {{
    chain drops {{
        type filter hook ingress device {device} priority 0;
        numgen random mod 10000 < {share} counter drop
    }}
}}
"""


class Links:
    """Changes to the links of one lab's hosts. Everything ends with the lab."""

    def __init__(self, lab: Lab) -> None:
        """Work on `lab`, which must be open when a method is called."""
        self._lab = lab
        self._emulators: dict[str, Process] = {}
        self._lossy: set[str] = set()
        self._cut: set[str] = set()

    def segment(self, name: str, *, on: bool = True) -> None:
        """Have both ends of a host's link cut super-packets before sending, so that each packet is one.

        Random drops and captures then see what a real wire would carry. Off is as the lab starts.
        """
        segments = 1 if on else UNLIMITED_SEGMENTS
        self._lab.ip_batch(name, [f"link set dev eth0 gso_max_segs {segments}"])
        self._lab.ip_batch(HUB, [f"link set dev {name} gso_max_segs {segments}"])

    def lose(self, name: str, percent: float) -> None:
        """Drop `percent` (0 to 100, in steps of 0.01) of the packets on a link, each way, at random."""
        if not 0 <= percent <= 100:
            raise LabError(f"a share of lost packets is between 0 and 100 percent, not {percent}")
        self.segment(name, on=percent > 0)
        (self._lossy.add if percent > 0 else self._lossy.discard)(name)
        for host, device in ((name, "eth0"), (HUB, name)):
            table = f"lab_loss_{device}"
            rules = f"table netdev {table}\ndelete table netdev {table}\n"
            if percent > 0:
                # At ingress, behind the segmentation: a dropped super-packet would be up to 64 packets.
                rules += _LOSS.format(table=table, device=device, share=round(percent * 100))
            self._lab.nft(host, rules)

    def lost(self, name: str) -> int:
        """Packets that `lose` has dropped on this host's link so far."""
        total = 0
        for host, device in ((name, "eth0"), (HUB, name)):
            listing = self._lab.run(host, ["nft", "-j", "list", "table", "netdev", f"lab_loss_{device}"])
            if listing.returncode == 0:
                for item in json.loads(listing.stdout)["nftables"]:
                    for part in item.get("rule", {}).get("expr", []):
                        total += part.get("counter", {}).get("packets", 0)
        return total

    def cut(self, name: str) -> None:
        """Take a host's link down, as if its cable were pulled. Routes over it are gone until `mend`."""
        self._lab.ip_batch(HUB, [f"link set {name} down"])
        self._cut.add(name)

    def mend(self, name: str) -> None:
        """Bring a cut link up again, with its addresses."""
        host = self._host(name)
        self._lab.ip_batch(
            HUB, [f"link set {name} up", f"addr replace {host.gateway_v6}/64 dev {name} nodad"]
        )
        self._cut.discard(name)

    def readdress(self, name: str, ipv4: str) -> None:
        """Give a host another IPv4 address of its subnet in place of all it has, as a new lease would."""
        host = self._host(name)
        self._lab.ip_batch(
            name,
            [
                "addr flush dev eth0 scope global",
                f"addr add {ipv4}/24 dev eth0",
                f"addr add {host.ipv6}/64 dev eth0 nodad",
                f"route replace default via {host.gateway_v4}",
                f"route replace ::/0 via {host.gateway_v6}",
            ],
        )

    def restore(self, name: str) -> None:
        """Undo every change to a host's link that is in force."""
        self.unshape(name)
        if name in self._lossy:
            self.lose(name, 0)
        if name in self._cut:
            self.mend(name)

    def shape(
        self, name: str, to_host: Conditions, from_host: Conditions | None = None, *, seed: int | None = None
    ) -> int:
        """Lead a host's link through the emulator; the seed that was used. `from_host` None: as `to_host`.

        Replaces earlier conditions. Raises LabError if the emulator does not start.
        """
        host = self._host(name)
        self.unshape(name)
        used = secrets.randbits(32) if seed is None else seed
        plan = {
            "seed": used,
            "hub_device": f"e-{name}",
            "host_device": "emu0",
            "host_network": str(self._lab.network_path(name)),
            "to_host": asdict(to_host),
            "from_host": asdict(to_host if from_host is None else from_host),
        }
        log = f"emulator-{name}"
        self._lab.log_path(log).unlink(missing_ok=True)
        emulator = self._lab.python(HUB, "overlay.demo.emulator", json.dumps(plan), log=log)
        self._emulators[name] = emulator

        def up() -> bool:
            if not emulator.running:
                raise LabError(f"the emulator of {name} ended: {self._lab.log_text(log).strip()[-500:]}")
            return "ready" in self._lab.log_text(log)

        wait_until(up, START_TIMEOUT_S, f"the emulator of {name}")
        v4 = [host.ipv4, *host.more_v4]
        v6 = [host.ipv6, *host.more_v6]
        hub_lines = [f"link set e-{name} mtu {MTU_BYTES} up"]
        hub_lines += [f"route replace {address}/32 dev e-{name}" for address in v4]
        hub_lines += [f"route replace {address}/128 dev e-{name}" for address in v6]
        self._lab.ip_batch(HUB, hub_lines)
        host_lines = [
            f"link set emu0 mtu {MTU_BYTES} up",
            f"route replace default dev emu0 src {host.ipv4}",
            f"route replace ::/0 dev emu0 src {host.ipv6} metric 512",
        ]
        self._lab.ip_batch(name, host_lines)
        return used

    def unshape(self, name: str) -> dict[str, list[int]]:
        """Back to the veth; [passed, dropped] for `to_host` and `from_host` if it was shaped."""
        emulator = self._emulators.pop(name, None)
        if emulator is None:
            return {}
        host = self._host(name)
        # Its devices, and the routes over them, go with the process.
        emulator.stop()
        self._lab.ip_batch(name, [f"route replace default via {host.gateway_v4}"])
        last = self._lab.log_text(f"emulator-{name}").strip().splitlines()[-1:]
        counters: dict[str, list[int]] = json.loads(last[0]) if last and last[0].startswith("{") else {}
        return counters

    def capture(self, name: str, *, device: str = "eth0", most_bytes: int | None = None) -> Capture:
        """Start capturing on a device of a host (or of the hub: its devices are named after the hosts), at
        most `most_bytes` of each packet.
        """
        number = sum(1 for _ in self._lab.path.glob("*.pcap")) + 1
        path = self._lab.path / f"{number:03d}-{name}-{device}.pcap"
        return Capture(self._lab, name, device, path, most_bytes)

    def _host(self, name: str) -> Host:
        try:
            return self._lab.hosts[name]
        except KeyError:
            raise LabError(f"there is no host {name!r} in the lab") from None


class Capture:
    """A running capture. Sees every packet from the constructor's return on. Context manager."""

    def __init__(self, lab: Lab, name: str, device: str, path: Path, most_bytes: int | None = None) -> None:
        """Start it. Raises LabError if it does not start, for example because there is no such device."""
        self.path = path
        self.missed = 0  # after `stop`: packets lost for want of room, which the file lacks
        self._lab = lab
        self._log = path.stem
        limit = [] if most_bytes is None else [str(most_bytes)]
        self._process = lab.python(name, "overlay.demo.capture", device, str(path), *limit, log=self._log)

        def ready() -> bool:
            if not self._process.running:
                raise LabError(f"the capture ended: {lab.log_text(self._log).strip()[-500:]}")
            return "ready" in lab.log_text(self._log)

        wait_until(ready, START_TIMEOUT_S, "the start of the capture")

    def __enter__(self) -> Self:
        """Nothing more to do: it runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self.stop()

    def stop(self) -> Path:
        """End the capture; the file, complete. Harmless twice."""
        if self._process.running:
            self._process.stop()
            self.missed = json.loads(self._lab.log_text(self._log).splitlines()[-1])["missed"]
        return self.path

    def packets(self) -> list[CapturedPacket]:
        """Stop, and read what was captured."""
        return read_capture(self.stop())
