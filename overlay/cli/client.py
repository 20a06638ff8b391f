"""`hopfare client`."""

from __future__ import annotations

import json

import click

from overlay.cli.manual import ManualCommand
from overlay.cli.options import Common, common_options, override_of, require


@click.command(
    cls=ManualCommand,
    examples=(
        ("hopfare client", "Three relays, SOCKS5 on 127.0.0.1:1080."),
        ("hopfare client --hops 4 --exit-country IS", "Four relays, the last one in Iceland."),
        ("hopfare client --max-price 0.05", "At most 0.05 of the chain's coin per GB, for the whole path."),
        ("curl --socks5-hostname 127.0.0.1:1080 https://example.org/", "Use it; the exit resolves the name."),
        (
            "curl -x socks5h://work:x@127.0.0.1:1080 https://example.org/",
            "A circuit for the user name work alone.",
        ),
        ("hopfare exec -- git clone URL", "Send a whole program through it, whatever it knows of proxies."),
        ("hopfare client --whole-device", "Everything that this machine does goes through it. As root."),
    ),
    notes=(
        (
            "Privileges",
            "None where users may make namespaces; otherwise it says what to do. --whole-device needs "
            "CAP_NET_ADMIN.",
        ),
        ("Failing closed", "Without a working circuit nothing leaves; it never goes out another way."),
        (
            "Whole device",
            "The machine stays locked when the client crashes: start it again, or run `hopfare stop`.",
        ),
        ("Proxy", "SOCKS5 with CONNECT, UDP ASSOCIATE and Tor's RESOLVE; HTTP CONNECT on the same port."),
    ),
)
@common_options
@click.option("--socks", metavar="ADDRESS", help="Where the proxy answers (client.socks).")
@click.option("--hops", metavar="N", help="Relays on a path, 1 to 4 (client.hops).")
@click.option("--exit-country", metavar="CC", help="Leave in this country only (client.exit_country).")
@click.option(
    "--max-price", metavar="COINS", help="Most that a GB may cost, the whole path (payments.budget_per_gb)."
)
@click.option(
    "--whole-device", is_flag=True, help="Send this whole machine's traffic through it (client.whole_device)."
)
@click.option(
    "--direct",
    metavar="NETWORK",
    multiple=True,
    help="Reach this address or network outside of the tunnel (client.direct). May be repeated.",
)
def client(
    common: Common,
    socks: str | None,
    hops: str | None,
    exit_country: str | None,
    max_price: str | None,
    whole_device: bool,
    direct: tuple[str, ...],
) -> None:
    """Browse through relays: build circuits and offer them as a local SOCKS5 proxy, until stopped."""
    from overlay.node.choices import load_overrides

    kept = load_overrides(common.load().state_dir)
    config = common.load(
        [
            *kept,
            *common.overrides,
            override_of("--socks", "client", "socks", socks),
            override_of("--hops", "client", "hops", hops),
            override_of("--exit-country", "client", "exit_country", exit_country),
            override_of("--max-price", "payments", "budget_per_gb", max_price),
            override_of("--whole-device", "client", "whole_device", "true" if whole_device else None),
            override_of("--direct", "client", "direct", json.dumps(direct) if direct else None),
        ]
    )
    require(config, "client")
    from overlay.cli.progress import Progress
    from overlay.cli.running import run_until_stopped
    from overlay.config.check import list_warnings
    from overlay.logs import configure_logging
    from overlay.node.run_client import run_client

    configure_logging(config.node.log_level)
    for warning in list_warnings(config):
        click.echo(f"hopfare: warning: {warning}", err=True)
    for choice in kept:
        click.echo(f"hopfare: kept by `hopfare set`: {choice.label}", err=True)
    with Progress("starting") as progress:

        def started() -> None:
            addresses = ", ".join(str(address) for address in config.client.socks)
            if config.client.whole_device:
                addresses += "; everything else that this machine sends goes through it too"
            progress.finish(
                f"ready: SOCKS5 and HTTP CONNECT on {addresses}, {config.client.hops} relays on a path",
                "`hopfare status` tells how it goes; Ctrl-C stops it",
            )

        run_until_stopped(lambda: run_client(config, started=started, progress=progress.step))
