"""`hopfare demo`: hands over to `overlay.demo.run`."""

from __future__ import annotations

import sys

import click

from overlay.cli.manual import ManualCommand


@click.command(
    cls=ManualCommand,
    files=(),
    examples=(
        ("hopfare demo", "Six relays, three hops, SOCKS5 on 127.0.0.1:1080, until Ctrl-C."),
        ("hopfare demo --hops 4 --relays 8", "A longer path through a larger network."),
        ("hopfare demo --no-money", "The same for nothing, without a chain."),
        ("hopfare demo --once", "Fetch a page, show what each hop saw, clean up and end."),
    ),
    notes=(
        (
            "Privileges",
            "Root, or a kernel that lets users make namespaces; everything happens in namespaces of its own.",
        ),
        (
            "Money",
            "A chain of its own, anvil if it is found (HOPFARE_ANVIL or the PATH), else one in Python; its "
            "coins are worth nothing.",
        ),
        ("Internet", "A small one of its own, joined to the real one if there is one."),
    ),
)
@click.option(
    "--relays", default=6, show_default=True, type=click.IntRange(4, 60), help="Relays, two of them exits."
)
@click.option("--hops", default=3, show_default=True, type=click.IntRange(1, 4), help="Relays on a path.")
@click.option(
    "--socks", default="127.0.0.1:1080", show_default=True, metavar="ADDRESS", help="Where the proxy answers."
)
@click.option(
    "--quic",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "native", "qh3", "aioquic", "mixed"]),
    help="What carries packets: the native engine, or the Python one on one of its QUIC libraries.",
)
@click.option("--once", is_flag=True, help="Show it once and end, instead of running until Ctrl-C.")
@click.option(
    "--money/--no-money",
    default=True,
    show_default=True,
    help="Let relays ask a price, paid in tickets and settled on a development chain.",
)
@click.option("--plain", is_flag=True, help="No live view: plain lines.")
@click.option(
    "--real-internet/--no-real-internet",
    default=None,
    help="Let the exits reach the real internet too. By default if there is one.",
)
def demo(
    relays: int,
    hops: int,
    socks: str,
    quic: str,
    once: bool,
    money: bool,
    plain: bool,
    real_internet: bool | None,
) -> None:
    """Start a network of relays on this machine and browse through it."""
    from overlay.demo.run import DemoOptions, main

    options = DemoOptions(
        relays=relays,
        hops=hops,
        socks=socks,
        quic=quic,
        once=once,
        money=money,
        plain=plain,
        real_internet=real_internet,
    )
    sys.exit(main(options))
