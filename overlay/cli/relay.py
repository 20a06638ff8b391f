"""`hopfare relay` and `hopfare exit`."""

from __future__ import annotations

import sys

import click

from overlay.cli.manual import LazyGroup, ManualCommand
from overlay.cli.options import Common, common_options, override_of, require

_LISTEN = click.option(
    "--listen", metavar="ADDRESS", help="UDP address to answer on, or several with commas."
)
_ADVERTISE = click.option("--advertise", metavar="ADDRESS", help="Address that others reach it at.")
_PRICE = click.option("--price", metavar="PRICE", help='What it asks, such as "0.05 per GB" (relay.price).')


@click.command(
    cls=LazyGroup,
    default="run",
    table={
        "run": ("overlay.cli.relay:run", "Run it, until stopped (what `relay` alone does)."),
        "init": ("overlay.cli.relay_init:relay_init", "Set one up: questions, checks, an estimate."),
    },
    examples=(
        ("hopfare relay init", "First: what must be known, and what stands in the way."),
        ("hopfare relay", "Then run it."),
        ("hopfare relay --listen 192.0.2.7:4433", "The same with an option of `relay run`."),
    ),
)
def relay() -> None:
    """Carry other people's traffic between relays.

    A relay sees its two neighbours on each path and nothing of what is carried, and nothing leaves to the
    internet from it.
    """


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare relay init", "First make the relay's identity and configuration."),
        ("hopfare relay --listen 192.0.2.7:4433", "Run; the address is this machine's public one."),
        ("hopfare descriptor export -o relay.descriptor", "What to send to whoever signs the seed list."),
    ),
    notes=(("Privileges", "None. Open the UDP port in the firewall."),),
)
@common_options
@_LISTEN
@_ADVERTISE
@_PRICE
def run(common: Common, listen: str | None, advertise: str | None, price: str | None) -> None:
    """Carry other people's traffic between relays, until stopped."""
    _run(common, listen, advertise, price, as_exit=False)


@click.command(
    "exit",
    cls=ManualCommand,
    examples=(
        ("hopfare exit --listen 192.0.2.7:4433", "Run; the address is this machine's public one."),
        ("hopfare exit --set exit.policy='accept *:443,reject *:*'", "Let out to HTTPS only."),
    ),
    notes=(
        (
            "Privileges",
            "CAP_NET_ADMIN and /dev/net/tun, for the TUN interface, forwarding and the firewall table. "
            "All changes are undone on stop and, after a crash, by the next start. "
            "docs/operations/install.md has a systemd unit with just these.",
        ),
        (
            "Consequences",
            "The internet sees your address for what customers do. Private and special ranges are always "
            "refused; exit.policy decides about the rest.",
        ),
    ),
)
@common_options
@_LISTEN
@_ADVERTISE
@_PRICE
def exit_command(common: Common, listen: str | None, advertise: str | None, price: str | None) -> None:
    """Be a relay that also lets customers' traffic out to the internet, until stopped."""
    _run(common, listen, advertise, price, as_exit=True)


def _run(
    common: Common, listen: str | None, advertise: str | None, price: str | None, *, as_exit: bool
) -> None:
    config = common.load(
        [
            override_of("--listen", "relay", "listen", listen),
            override_of("--advertise", "relay", "advertise", advertise),
            override_of("--price", "relay", "price", price),
        ]
    )
    require(config, "relay")
    from overlay.cli.running import run_until_stopped
    from overlay.logs import configure_logging
    from overlay.node.relay import run_relay

    configure_logging(config.node.log_level)

    def started() -> None:
        addresses = ", ".join(str(address) for address in config.relay.listen)
        print(f"hopfare {'exit' if as_exit else 'relay'}: ready on {addresses}", file=sys.stderr, flush=True)

    run_until_stopped(lambda: run_relay(config, as_exit=as_exit, started=started))
