"""The native engine's pure core behind the Python engine's interface, for nets in memory (engine_net)."""

from __future__ import annotations

from native_parts import testing

from overlay.engine.interface import DirectionCounters, FlowCounters, FlowFault

EVERYTHING = (1 << 32) - 1, (1 << 128) - 1
OPEN_RULES = [(False, 0, 0, 25, 25), (True, 0, 0, 1, 65535)]
FILL = 0x5A


def fill(size: int) -> bytes:
    """What stands for random bytes on both sides."""
    return bytes([FILL]) * size


class CoreFlow:
    """A flow of a core."""

    def __init__(self, engine: CoreEngine, number: int) -> None:
        self.engine = engine
        self.number = number
        self.last = FlowCounters()

    @property
    def closed(self) -> bool:
        return self.engine.core.counters(self.number) is None

    @property
    def counters(self) -> FlowCounters:
        values = self.engine.core.counters(self.number)
        if values is not None:
            self.last = FlowCounters(DirectionCounters(*values[:3]), DirectionCounters(*values[3:]))
        return self.last


class CoreEngine:
    """Takes the calls of a PythonEngine's links and node; what the core sends goes to the links' fakes."""

    def __init__(self, events, *, clock, rng, memory_limit_bytes, gate) -> None:
        self.core = testing.Core(memory_limit_bytes, 20_000_000, FILL)
        self._events = events
        self._clock = clock
        self._links = []
        self._meters = {}
        self._flows = {}
        self._tun = None

    # -- helpers

    @property
    def budget(self) -> CoreEngine:
        return self

    @property
    def used_bytes(self) -> int:
        return self.core.used_bytes()

    @property
    def unknown_packets(self) -> int:
        return self.core.unknown_packets()

    def now(self) -> int:
        return round(self._clock() * 1_000_000_000)

    def _link(self, link) -> int:
        return self._links.index(link)

    def _price(self, price):
        known = self._meters.get(id(price.meter))
        if known is None:
            number = self.core.new_meter(price.meter.credit_wei, price.meter.low_wei)
            known = self._meters[id(price.meter)] = (price.meter, number)
        return known[1], price.wei_per_packet

    def figures(self, meter):
        """(credit, charged, packets, refused packets) of a meter."""
        known = self._meters.get(id(meter))
        return self.core.meter(known[1]) if known else None

    def _flow(self, number):
        flow = self._flows[number] = CoreFlow(self, number)
        return flow

    def _before(self) -> None:
        for number, link in enumerate(self._links):
            if link is not None:
                self.core.set_room(number, link.room, link.backlog)

    def _after(self) -> None:
        for what, number, stream, data in self.core.take_sent():
            link = self._links[number]
            if what == "datagram":
                link.send_datagrams([data])
            elif what == "stream":
                link.send_stream(stream, data)
            elif what == "reset":
                link.reset_stream(stream, 0)
            elif what == "stop":
                link.stop_stream(stream, 0)
            elif what == "close":
                link.close(stream, data.decode())
            else:
                self._tun.write(data if self._tun.has_offload else data[10:])
        for what, number, fault, token in self.core.take_events():
            if what == "lost":
                self._events.on_flow_lost(self._flows[number], FlowFault(fault))
            elif what == "echo":
                self._events.on_echo_reply(self._flows[number], token)

    # -- what a Net calls

    def attach_tun(self, tun, *, by_source: bool) -> None:
        self._tun = tun
        self.core.attach_tun(tun.has_offload, by_source)
        self.core.join_packets(False, False)  # the reference joins nothing
        dns4, dns6 = bytes([100, 64, 0, 1]), bytes.fromhex("fd686f70666100000000000000000001")
        self.core.set_policy(([], [], OPEN_RULES, OPEN_RULES, True, [], dns4, dns6))

    def on_link_up(self, link) -> None:
        self._links.append(link)
        self.core.link_up(len(self._links) - 1, link.first_stream)

    def on_link_closed(self, link, code, reason) -> None:
        self.core.link_down(self._link(link))
        self._after()

    def on_datagrams(self, link, frames) -> None:
        self._before()
        self.core.on_datagrams(self._link(link), frames, self.now())
        self._after()

    def on_stream(self, link, stream_id, chunks, fin) -> None:
        self._before()
        for chunk in chunks or [b""]:
            self.core.on_stream(
                self._link(link), stream_id, chunk, fin and chunk is (chunks or [b""])[-1], self.now()
            )
        self._after()

    def on_stream_reset(self, link, stream_id, code) -> None:
        self.core.on_stream_reset(self._link(link), stream_id)
        self._after()

    def on_batch_end(self) -> None:
        self._before()
        self.core.pump(self.now())
        self._after()

    pump = on_batch_end

    def on_tun_packets(self, raws) -> None:
        self._before()
        for raw in raws:
            self.core.on_tun(raw, self.now())
        self.core.pump(self.now())
        self._after()

    def expire(self) -> None:
        self.core.expire(self.now())

    def echo(self, flow, token) -> None:
        self._before()
        self.core.echo(flow.number, token, self.now())
        self._after()

    def drop(self, flow) -> None:
        flow.counters  # noqa: B018 - kept for the last look
        self.core.drop_flow(flow.number)
        self._after()

    def add_credit(self, meter, flows, wei) -> None:
        self.core.add_credit(self._meters[id(meter)][1], wei)
        self._before()
        for flow in flows:
            self.core.wake(flow.number, self.now())
        self._after()

    def client(self, roots, suite, link, circuit_id, price, addresses):
        inner = (addresses.v4, addresses.v6)
        return self._flow(
            self.core.client(list(roots), suite, self._link(link), circuit_id, self._price(price), inner)
        )

    def exit(self, root, suite, link, circuit_id, price, addresses):
        inner = (addresses.v4, addresses.v6)
        return self._flow(
            self.core.exit(root, suite, self._link(link), circuit_id, self._price(price), inner)
        )

    def relay(self, root, suite, link_in, id_in, price_in, link_out, id_out, price_out):
        return self._flow(
            self.core.relay(
                root,
                suite,
                self._link(link_in),
                id_in,
                self._price(price_in),
                self._link(link_out),
                id_out,
                self._price(price_out),
            )
        )
