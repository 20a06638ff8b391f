"""What a customer is told of circuits: their rows in `hopfare circuits`, and why they ended."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from overlay.engine.interface import FlowFault
from overlay.identity import format_node_id
from overlay.node.customer_money import end_code
from overlay.node.switch import (
    DESTROY_CLOSING,
    DESTROY_EXPIRED,
    DESTROY_FAULT_BASE,
    DESTROY_PAYMENT_BASE,
)
from payments.tab import CloseReason

if TYPE_CHECKING:
    from circuits.pool.types import CircuitStatus
    from overlay.node.lease import Circuit

FAULT_SENTENCES: dict[FlowFault, str] = {
    FlowFault.LINK_CLOSED: "the link to its guard was lost",
    FlowFault.BAD_PACKETS: "packets came that its relays changed, or that are not theirs",
    FlowFault.BAD_FRAMING: "its guard sent what cannot be read",
    FlowFault.FLOW_CONTROL: "its guard does not keep to the rules of flow control",
    FlowFault.STREAM_RESET: "its guard gave it up",
    FlowFault.MEMORY: "it held the most when the memory limit (node.memory_limit) was reached",
    FlowFault.EXHAUSTED: "it has carried all that one circuit can",
}
"""Why the engine dropped a circuit's flow, as the rest of "it died: ..."."""

_RELAY_FAULT: dict[FlowFault, str] = {
    FlowFault.LINK_CLOSED: "it lost the link to its neighbour",
    FlowFault.BAD_PACKETS: "packets came that a neighbour changed",
    FlowFault.BAD_FRAMING: "a neighbour sent what cannot be read",
    FlowFault.FLOW_CONTROL: "a neighbour does not keep to the rules of flow control",
    FlowFault.STREAM_RESET: "a neighbour gave up its stream",
    FlowFault.MEMORY: "it has no memory left",
    FlowFault.EXHAUSTED: "it has carried all that one circuit can",
}


def describe_circuit(row: CircuitStatus, circuit: Circuit | None, held: int = 0) -> dict[str, Any]:
    """The row of one circuit, in values for JSON; ``circuit`` is None while it is built.

    ``held``: how many more connections than leases it has.
    """
    return {
        "id": row.circuit_id,
        "state": row.state.value,
        "path": [format_node_id(relay.node_id) for relay in row.relays],
        "countries": [relay.country or "??" for relay in row.relays],
        "addresses": [relay.addresses[0][0] for relay in row.relays],
        "why": list(row.reasons),
        "rules": [[{"rule": step.rule, "left": step.left} for step in steps] for steps in row.steps],
        "price_wei_per_packet": row.price_wei_per_packet,
        "prices_wei_per_packet": [relay.price_wei_per_packet for relay in row.relays],
        "age_s": round(row.age_s, 1),
        "connections": row.leases + held,
        "isolated": row.isolated,
        "suspect": row.suspect,
        "rtt_ms": round(row.rtt_s * 1000, 2) if row.rtt_s is not None else None,
        "loss": round(row.loss, 3),
        "build_ms": round(circuit.build_s * 1000, 2) if circuit is not None else None,
        "packets_up": circuit.flow.counters.forward.packets if circuit is not None else 0,
        "packets_down": circuit.flow.counters.backward.packets if circuit is not None else 0,
        "inner_ipv4": str(circuit.addresses.ipv4) if circuit is not None else None,
        "inner_ipv6": str(circuit.addresses.ipv6)
        if circuit is not None and circuit.addresses.ipv6 is not None
        else None,
    }


def explain_destroy(code: int) -> str:
    """What the code of a Destroy for a circuit that stood says, for the user (docs/protocol/build.md)."""
    if code == DESTROY_EXPIRED:
        return "its time was over"
    if code == DESTROY_CLOSING:
        return "one of its relays is stopping"
    with suppress(ValueError):
        return f"one of its relays gave it up: {_RELAY_FAULT[FlowFault(code - DESTROY_FAULT_BASE)]}"
    with suppress(ValueError):
        return f"one of its relays gave it up: {end_code(CloseReason(code - DESTROY_PAYMENT_BASE))}"
    return f"one of its relays closed it (code {code})"
