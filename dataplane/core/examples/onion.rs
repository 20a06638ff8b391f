//! Measures the crate alone, on one core: `cargo run --release -p hopfare_core --example onion [seconds each]`.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hopfare_core::layers::{
    ClientBackward, ClientForward, Command, ExitBackward, Lane, RelayBackward, RelayForward,
};
use hopfare_core::suites::Suite;
use hopfare_core::{Core, Driver, LinkId, Price};

const UNIT: usize = 1384;

/// Print nanoseconds per packet of `packets`; `batch` makes a fresh input (not counted), `work` takes it.
fn measure<T>(
    name: &str,
    length: Duration,
    packets: usize,
    mut batch: impl FnMut() -> T,
    mut work: impl FnMut(T),
) {
    for _ in 0..20 {
        work(batch());
    }
    let (mut spent, mut best, mut rounds) = (Duration::ZERO, Duration::MAX, 0u32);
    while spent < length {
        let input = batch();
        let start = Instant::now();
        work(input);
        let took = start.elapsed();
        spent += took;
        best = best.min(took);
        rounds += 1;
    }
    let mean = spent.as_nanos() as f64 / f64::from(rounds) / packets as f64;
    let least = best.as_nanos() as f64 / packets as f64;
    println!("{name:<44} {mean:8.0} ns a packet, at best {least:6.0}  ({:.2} million a second)", 1e3 / mean);
}

/// Takes everything and keeps nothing.
struct Sink;

impl Driver for Sink {
    fn rtt_ns(&self, _: LinkId) -> u64 {
        1_000_000
    }
    fn datagram_room(&mut self, _: LinkId) -> usize {
        1 << 20
    }
    fn send_datagram(&mut self, _: LinkId, frame: Bytes) {
        std::hint::black_box(&frame);
    }
    fn open_stream(&mut self, _: LinkId) -> Option<u64> {
        Some(2)
    }
    fn send_stream(&mut self, _: LinkId, _: u64, data: Bytes) {
        std::hint::black_box(&data);
    }
    fn reset_stream(&mut self, _: LinkId, _: u64) {}
    fn stop_stream(&mut self, _: LinkId, _: u64) {}
    fn stream_backlog(&mut self, _: LinkId) -> usize {
        0
    }
    fn close_link(&mut self, _: LinkId, _: u64, _: &'static str) {}
    fn tun_write(&mut self, _: &[u8; 10], packet: &[u8]) -> bool {
        std::hint::black_box(packet);
        true
    }
    fn random(&mut self, out: &mut [u8]) {
        out.fill(1);
    }
}

fn layers(suite: Suite, length: Duration) {
    let roots = [[1; 32], [2; 32], [3; 32]];
    const BATCH: usize = 64;
    for (lane, units) in [(Lane::Datagram, 1), (Lane::Stream, 48)] {
        let size = units * UNIT;
        let name = |what: &str| format!("{suite:?} {what}, {units} unit{}", if units > 1 { "s" } else { "" });
        let mut client = ClientForward::new(&roots, suite, lane).unwrap();
        let mut sealed = |_: usize| {
            let mut packet = vec![0; size];
            assert!(client.seal(&mut packet, 0, None, Command::Deliver, &mut |out| out.fill(1)));
            packet
        };
        let mut relay = RelayForward::new(&roots[0], suite, lane);
        let mut out = vec![0; size];
        measure(
            &name("relay opens"),
            length,
            BATCH * units,
            || (0..BATCH).map(&mut sealed).collect::<Vec<_>>(),
            |packets| {
                for packet in &packets {
                    std::hint::black_box(relay.open_to(packet, &mut out, 0));
                }
            },
        );
        let mut relay = RelayBackward::new(&roots[0], suite, lane);
        let packet = vec![7; size];
        measure(
            &name("relay wraps"),
            length,
            BATCH * units,
            || (),
            |()| {
                for _ in 0..BATCH {
                    std::hint::black_box(relay.wrap_to(&packet, &mut out, 0));
                }
            },
        );
        let mut client = ClientForward::new(&roots, suite, lane).unwrap();
        measure(
            &name("client seals 3 layers"),
            length,
            BATCH * units,
            || (),
            |()| {
                for _ in 0..BATCH {
                    let random = &mut |out: &mut [u8]| out.fill(1);
                    std::hint::black_box(client.seal(&mut out, 0, None, Command::Deliver, random));
                }
            },
        );
        let mut exit = ExitBackward::new(&roots[2], suite, lane);
        let mut relays = [1, 0].map(|hop: usize| RelayBackward::new(&roots[hop], suite, lane));
        let mut back = |_: usize| {
            let mut packet = vec![0; size];
            assert!(exit.seal(&mut packet, 0, &mut |out| out.fill(1)));
            assert!(relays.iter_mut().all(|relay| relay.wrap(&mut packet, 0)));
            packet
        };
        let mut client = ClientBackward::new(&roots, suite, lane).unwrap();
        measure(
            &name("client opens 3 layers"),
            length,
            BATCH * units,
            || (0..BATCH).map(&mut back).collect::<Vec<_>>(),
            |mut packets| {
                for packet in &mut packets {
                    assert!(client.open(packet, 0));
                }
            },
        );
        let mut exit = ExitBackward::new(&roots[2], suite, lane);
        measure(
            &name("exit seals"),
            length,
            BATCH * units,
            || (),
            |()| {
                for _ in 0..BATCH {
                    std::hint::black_box(exit.seal(&mut out, 0, &mut |out| out.fill(1)));
                }
            },
        );
    }
}

fn flows(circuits: u32, length: Duration) {
    const BATCH: usize = 64;
    let mut core = Core::new(64 << 20);
    core.link_up(0);
    core.link_up(1);
    let meter = core.new_meter(None, 0);
    let price = Price { meter, wei: 1 };
    let mut senders = Vec::new();
    for circuit in 0..circuits {
        let mut root = [1; 32];
        root[..4].copy_from_slice(&circuit.to_be_bytes());
        core.relay(&root, 2, 0, 1 + circuit, price, 1, 1 + circuit, price).unwrap();
        senders.push(ClientForward::new(&[root], Suite::Aes, Lane::Datagram).unwrap());
    }
    let mut turn = 0;
    measure(
        &format!("Aes relay flow, single packets, {circuits} circuits"),
        length,
        BATCH,
        || {
            let frames = (0..BATCH).map(|_| {
                turn = (turn + 1) % circuits;
                let mut frame = BytesMut::zeroed(4 + UNIT);
                frame[..4].copy_from_slice(&(1 + turn).to_be_bytes());
                let random = &mut |out: &mut [u8]| out.fill(1);
                let sender = &mut senders[turn as usize];
                assert!(sender.seal(&mut frame[4..], 0, Some(1), Command::Forward, random));
                frame.freeze()
            });
            frames.collect::<Vec<_>>()
        },
        |frames| {
            core.on_datagrams(0, &frames, 0, &mut Sink);
            core.pump(0, &mut Sink);
        },
    );
}

fn trains(units: usize, length: Duration) {
    let mut core = Core::new(64 << 20);
    core.link_up(0);
    core.link_up(1);
    let meter = core.new_meter(None, 0);
    let price = Price { meter, wei: 1 };
    core.relay(&[1; 32], 2, 0, 1, price, 1, 1, price).unwrap();
    let mut sender = ClientForward::new(&[[1; 32]], Suite::Aes, Lane::Stream).unwrap();
    core.on_stream(0, 2, &1u32.to_be_bytes(), false, 0, &mut Sink);
    core.on_stream(1, 3, &0u32.to_be_bytes(), false, 0, &mut Sink);
    let mut granted = 0u64;
    measure(
        &format!("Aes relay flow, trains of {units}"),
        length,
        units,
        || {
            let mut frame = vec![0; 1 + units * UNIT];
            frame[0] = units as u8;
            let random = &mut |out: &mut [u8]| out.fill(1);
            assert!(sender.seal(&mut frame[1..], 0, Some(1), Command::Forward, random));
            frame
        },
        |frame| {
            granted += units as u64;
            let grant = hopfare_core::credit::encode_grant(1, granted + 512);
            core.on_stream(1, 3, &grant, false, 0, &mut Sink);
            for piece in frame.chunks(1400) {
                core.on_stream(0, 2, piece, false, 0, &mut Sink);
            }
            core.pump(0, &mut Sink);
        },
    );
}

/// Resident bytes of this process.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<usize>().ok());
    pages.unwrap_or(0) * 4096
}

fn memory(circuits: u32) {
    let before = resident();
    let mut core = Core::new(64 << 20);
    core.link_up(0);
    core.link_up(1);
    let meter = core.new_meter(None, 0);
    let price = Price { meter, wei: 1 };
    let root_of = |circuit: u32| {
        let mut root = [1; 32];
        root[..4].copy_from_slice(&circuit.to_be_bytes());
        root
    };
    for circuit in 1..=circuits {
        core.relay(&root_of(circuit), 2, 0, circuit, price, 1, circuit, price).unwrap();
    }
    let spare = resident() - before;
    for circuit in 1..=circuits {
        let mut sender = ClientForward::new(&[root_of(circuit)], Suite::Aes, Lane::Datagram).unwrap();
        let mut frame = BytesMut::zeroed(4 + UNIT);
        frame[..4].copy_from_slice(&circuit.to_be_bytes());
        let random = &mut |out: &mut [u8]| out.fill(1);
        assert!(sender.seal(&mut frame[4..], 0, Some(1), Command::Forward, random));
        let frame = frame.freeze();
        core.on_datagrams(0, std::slice::from_ref(&frame), 0, &mut Sink);
        core.on_datagrams(1, &[frame], 0, &mut Sink);
        core.pump(0, &mut Sink);
        let mut sender = ClientForward::new(&[root_of(circuit)], Suite::Aes, Lane::Stream).unwrap();
        let mut frame = vec![0; 5 + UNIT];
        frame[..4].copy_from_slice(&circuit.to_be_bytes());
        frame[4] = 1;
        assert!(sender.seal(&mut frame[5..], 0, Some(1), Command::Forward, random));
        for link in [0, 1] {
            core.on_stream(link, u64::from(circuit) * 4, &frame, false, 0, &mut Sink);
        }
        core.pump(0, &mut Sink);
    }
    let start = Instant::now();
    for _ in 0..2 {
        core.expire(200_000_000_000);
    }
    println!("{circuits} circuits: all keys changed in {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    println!(
        "{circuits} circuits: {} bytes each as spares, {} after a packet in each lane and direction",
        spare / circuits as usize,
        (resident() - before) / circuits as usize
    );
}

fn main() {
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(0.3);
    let length = Duration::from_secs_f64(seconds);
    memory(10_000);
    for suite in [Suite::Aes, Suite::ChaCha] {
        layers(suite, length);
    }
    for circuits in [1, 100, 10_000] {
        flows(circuits, length);
    }
    for units in [1, 48] {
        trains(units, length);
    }
}
