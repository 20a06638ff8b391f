"""What tabs on links are told and what they ask for, beyond the outputs of `payments.tab`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from payments.tab import Output

Side = Literal["earning", "paying"]
"""Of a link: its circuits come in from the neighbour, who pays us; or go out to it, and we pay."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What the engine counted on one side of a link, since the link came up.

    `credit_wei` is what the meter has left (None: it has no limit). `refused_packets` grows when packets are
    held or dropped for want of credit.
    """

    forward: int = 0
    backward: int = 0
    charged_wei: int = 0
    credit_wei: int | None = None
    refused_packets: int = 0


@dataclass(frozen=True, slots=True)
class LoadOwn:
    """Read our own side of the purse towards `payee` from ledger and chain; answer with `on_own_loaded`."""

    payee: bytes


@dataclass(frozen=True, slots=True)
class Look:
    """Ask the chain again about the purse of `payer` that pays us; answer with `on_purse`."""

    payer: bytes


@dataclass(frozen=True, slots=True)
class Fund:
    """Our purse towards `payee` should have `deposit_wei` deposited in all; answer with `on_own_purse`."""

    payee: bytes
    deposit_wei: int


TabOutput = Output | LoadOwn | Look | Fund
