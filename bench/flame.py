#!/usr/bin/env python3
"""Flame graphs and tables from `perf script`: where a node's time goes.

    perf record -F 999 --call-graph dwarf,16384 -t TID -o node.data -- sleep 3
    perf script -i node.data | python bench/flame.py --svg node.svg --title "exit" --us-per-packet 2.6

Prints the share of each part (`PARTS`), in microseconds too if told how many a packet takes. Pure but for
reading standard input and writing the picture.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

Stack = tuple[str, ...]
WIDTH, ROW, LEAST = 1200, 16, 0.0025

#: Name and patterns, each of which must match a frame of the stack; the first that fits. What a write sets
#: off in the kernel before it returns (the far end's answer, and the way of that back to us) is the write's.
PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("TUN writes: far end's TCP", ("tun_(chr_write|get_user)", "^tcp_v[46]_rcv")),
    ("TUN writes: nftables, conntrack", ("tun_(chr_write|get_user)", "^nf_|^nft_")),
    ("TUN writes: rest of the kernel's way", ("tun_(chr_write|get_user)",)),
    ("TUN reads", ("tun_chr_read|tun_do_read",)),
    ("UDP sends", ("sys_sendmsg|udp_sendmsg",)),
    ("UDP receives", ("sys_recvmmsg|udp_recvmsg",)),
    ("the proxy's sockets", ("sys_(sendto|recvfrom|splice)|tcp_sendmsg|tcp_recvmsg",)),
    ("waiting, waking", ("sys_poll|ppoll|sys_epoll|schedule|futex",)),
    ("kernel, other", (r"^(asm_|entry_SYSCALL|do_syscall|irq|handle_softirqs|process_one_work)",)),
    ("onion layers' AES", ("hopfare_core", "aws_lc")),
    ("QUIC's AES", ("quinn|rustls", "aws_lc")),
    ("AES, by whom is not known", ("aws_lc|aes|EVP_|aead|ghash",)),
    ("QUIC", ("quinn",)),
    ("copies", ("memcpy|memmove|memset",)),
    ("core: lanes, queues, bodies", ("hopfare_core",)),
    ("engine's loop", ("hopfare_dataplane",)),
    ("memory", ("mi_|malloc|free",)),
    ("Python", ("_Py|Py[A-Z]|libpython",)),
)


def decode_stacks(lines: Iterable[str]) -> Iterator[Stack]:
    """The stacks of `perf script`, outermost frame first, behind the thread's name."""
    name, frames = "", []  # type: tuple[str, list[str]]
    for line in lines:
        if not line.strip():
            if name:
                yield (name, *reversed(frames))
            name, frames = "", []
        elif not line[0].isspace():
            name = line.split()[0]
        else:
            if "[unknown]" not in line:
                frames.append(_symbol(line.strip()))
    if name:
        yield (name, *reversed(frames))


def _symbol(text: str) -> str:
    words = text.split(" ", 1)
    found = (words[1] if len(words) > 1 else "").rsplit(" (", 1)[0]
    found = re.sub(r"\+0x[0-9a-f]+$", "", found)
    found = re.sub(r"::h[0-9a-f]{16}$", "", found)
    return re.sub(r"^aws_lc_\d+_\d+_\d+_", "aws_lc_", found) or "[unknown]"


def part_of(stack: Stack) -> str:
    """Which part a stack belongs to."""
    for name, patterns in PARTS:
        if all(any(re.search(pattern, frame) for frame in stack) for pattern in patterns):
            return name
    return "other"


def table(stacks: Counter[Stack], us_per_packet: float | None) -> list[tuple[str, float, float | None]]:
    """(part, share, microseconds of a packet), the largest first."""
    parts: Counter[str] = Counter()
    for stack, count in stacks.items():
        parts[part_of(stack)] += count
    total = sum(parts.values()) or 1
    return [
        (name, count / total, us_per_packet and us_per_packet * count / total)
        for name, count in parts.most_common()
    ]


def svg(stacks: Counter[Stack], title: str) -> str:
    """The flame graph; frames under a four-hundredth of the whole are left out."""
    total = sum(stacks.values()) or 1
    boxes: list[tuple[int, float, float, str]] = []

    def place(rows: list[tuple[Stack, int]], depth: int, left: float) -> None:
        groups: dict[str, list[tuple[Stack, int]]] = {}
        for stack, count in rows:
            if len(stack) > depth:
                groups.setdefault(stack[depth], []).append((stack, count))
        for name in sorted(groups):
            share = sum(count for _, count in groups[name]) / total
            if share >= LEAST:
                boxes.append((depth, left, share, name))
                place(groups[name], depth + 1, left)
            left += share

    place(list(stacks.items()), 0, 0.0)
    height = (max((depth for depth, *_ in boxes), default=0) + 1) * ROW + 24
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
        ' font-family="sans-serif" font-size="10">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="4" y="14" font-size="12">{escape(title)}</text>',
    ]
    for depth, left, share, name in boxes:
        x, width, y = left * WIDTH, share * WIDTH, height - (depth + 1) * ROW
        shown = escape(_shortened(name, int(width / 5.6)))
        out.append(
            f"<g><title>{escape(name)} {share:.1%}</title>"
            f'<rect x="{x:.1f}" y="{y}" width="{max(width - 0.5, 0.5):.1f}" height="{ROW - 1}"'
            f' fill="{_colour(name)}"/>'
            + (f'<text x="{x + 2:.1f}" y="{y + 11}">{shown}</text>' if shown else "")
            + "</g>"
        )
    return "\n".join([*out, "</svg>"]) + "\n"


def _shortened(name: str, room: int) -> str:
    if len(name) <= room:
        return name
    last = re.sub(r"<.*>", "", name).rsplit("::", 2)[-2:]
    short = "::".join(last)
    return short[:room] if room >= 4 else ""


def _colour(name: str) -> str:
    for pattern, colour in (
        (r"aws_lc|EVP_|aead|aes", "#d9a5d9"),
        (r"quinn|rustls", "#9fc5e8"),
        (r"hopfare", "#f6b26b"),
        (r"^nf_|^nft_", "#e06666"),
        (r"::|mi_|mem(cpy|move|set)", "#b6d7a8"),
    ):
        if re.search(pattern, name):
            return colour
    return "#ffe599"


def main() -> int:
    """Read `perf script` from standard input; see the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--svg", type=Path, help="write the flame graph there")
    parser.add_argument("--title", default="flame graph")
    parser.add_argument("--us-per-packet", type=float, help="what all of it takes for one packet")
    arguments = parser.parse_args()
    stacks = Counter(decode_stacks(sys.stdin))
    for name, share, micros in table(stacks, arguments.us_per_packet):
        print(f"{name:40} {share:6.1%}" + (f" {micros:6.2f} us" if micros is not None else ""))
    if arguments.svg is not None:
        arguments.svg.write_text(svg(stacks, arguments.title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
