"""`hopfare`: the command that has all others, and the one place where a failure becomes words and a
status.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from overlay.cli.errors import FAILED, INTERRUPTED, USAGE, explain
from overlay.cli.manual import FILES, LazyGroup
from overlay.version import VERSION

COMMANDS = {
    "init": ("overlay.cli.init:init", "Write an identity and a configuration to start from."),
    "client": ("overlay.cli.client:client", "Browse: a SOCKS5 proxy whose traffic leaves through relays."),
    "exec": ("overlay.cli.run_program:exec_command", "Run one program inside the running client's network."),
    "status": ("overlay.cli.status:status", "Show whether the running hopfare works and, if not, why."),
    "circuits": ("overlay.cli.status:circuits", "List the running client's circuits, or ask for new ones."),
    "newnym": ("overlay.cli.choices:newnym", "Use new circuits for new connections."),
    "set": ("overlay.cli.choices:set_command", "Change hops, countries, price and bans while it runs."),
    "market": ("overlay.cli.market:market", "List the relays on offer: price, quality, policy."),
    "stop": ("overlay.cli.status:stop", "Stop the running hopfare."),
    "relay": ("overlay.cli.relay:relay", "Carry other people's traffic between relays."),
    "exit": ("overlay.cli.relay:exit_command", "Carry it and let it out to the internet."),
    "wallet": ("overlay.cli.wallet:wallet", "This node's account: money, purses, funding."),
    "earnings": ("overlay.cli.earnings:earnings", "What this node earned, by day and neighbour."),
    "redeem": ("overlay.cli.earnings:redeem", "Claim what was earned on the chain, now."),
    "stake": ("overlay.cli.stake:stake", "This relay's entry in the registry, and its stake."),
    "pricing": ("overlay.cli.pricing:pricing", "Show or set what this relay asks for."),
    "descriptor": ("overlay.cli.descriptor:descriptor", "Export this node's descriptor, or show one."),
    "backup": ("overlay.cli.backup:backup", "Write this node into one encrypted file."),
    "restore": ("overlay.cli.backup:restore", "Bring a node back from its backup."),
    "seedlist": ("overlay.cli.seedlist:seedlist", "Make, sign and show a network's list of relays."),
    "demo": ("overlay.cli.demo:demo", "A whole network on this machine, to try it all out."),
}


@click.command(
    cls=LazyGroup,
    table=COMMANDS,
    examples=(
        ("hopfare demo", "Try everything on this machine, without a network of relays."),
        ("hopfare init --seed-list FILE --seed-list-key NAME", "Prepare this machine for a network."),
        ("hopfare client", "Then point a browser at the SOCKS5 proxy 127.0.0.1:1080."),
        ("curl --socks5-hostname 127.0.0.1:1080 URL", "Fetch a page through it."),
        ("hopfare COMMAND --help", "More on each command."),
    ),
    files=FILES,
)
@click.version_option(VERSION, prog_name="hopfare", message="%(prog)s %(version)s")
def hopfare() -> None:
    """Browse through several independent relays, none of which knows both who you are and where you go."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line (by default the process's own) and end the process with its status."""
    try:
        result = hopfare.main(arguments, prog_name="hopfare", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(USAGE)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has seen enough
        sys.exit(FAILED)
    except Exception as error:
        explained = explain(error)
        if explained is None:
            raise
        message, status = explained
        for line in message.splitlines():
            click.echo(f"hopfare: {line}", err=True)
        sys.exit(status)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    sys.exit(result if isinstance(result, int) else 0)
