//! A link between one UDP endpoint and those that send to it: delay, loss, rate and a bounded queue, each way.
//!
//!     emulate --listen 10.3.0.1:4433 --to 10.3.0.1:4434 --delay-ms 25 --loss 0.001 --rate-mbit 100 --queue-ms 50
//!
//! Datagrams that come to `--listen` go to `--to` from a socket of their sender's own, and what comes back there goes
//! back. Each direction has its own shaper: a datagram is lost by chance (seeded), or because the queue in front of the
//! bottleneck is full, else it leaves when the bottleneck has sent what was before it, and arrives `delay-ms` later.
//! A line on standard input such as `delay-ms 50 loss 0 rate-mbit 10` changes the link; the end of the input ends it.
//! `stats` prints one line of figures. Only the standard library: `rustc -O` builds it (bench/emulate.py does).

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const MAX_CLIENTS: usize = 256;
const BUFFER_BYTES: i32 = 16 << 20;
/// What a datagram takes of the bottleneck besides its payload: IPv4 and UDP headers.
const HEADER_BYTES: u64 = 28;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Link {
    delay_ns: u64,
    loss: f64,
    /// Bits per second; 0: no bottleneck.
    rate_bit: u64,
    /// How long the bottleneck may need for what waits in front of it.
    queue_ns: u64,
}

impl Link {
    /// Changes what `words` (name, value, name, value ...) say; None when they say something else.
    fn changed(mut self, words: &[&str]) -> Option<Link> {
        for pair in words.chunks(2) {
            let [name, value] = pair else { return None };
            let value: f64 = value.parse().ok().filter(|value: &f64| *value >= 0.0)?;
            match *name {
                "delay-ms" => self.delay_ns = (value * 1e6) as u64,
                "loss" => self.loss = value,
                "rate-mbit" => self.rate_bit = (value * 1e6) as u64,
                "queue-ms" => self.queue_ns = (value * 1e6) as u64,
                _ => return None,
            }
        }
        Some(self)
    }
}

/// One direction, without sockets or clocks.
struct Shaper {
    link: Link,
    state: u64,
    free_at_ns: u64,
    last_due_ns: u64,
}

#[derive(Debug, PartialEq)]
enum Fate {
    Arrives(u64),
    Lost,
    QueueFull,
}

impl Shaper {
    fn new(link: Link, seed: u64) -> Self {
        Self { link, state: seed, free_at_ns: 0, last_due_ns: 0 }
    }

    /// splitmix64: the same seed loses the same datagrams.
    fn chance(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// What becomes of a datagram of `size` bytes that comes at `now_ns`.
    fn offer(&mut self, now_ns: u64, size: usize) -> Fate {
        let drawn = self.chance();
        let mut leaves = now_ns;
        if self.link.rate_bit > 0 {
            let begins = self.free_at_ns.max(now_ns);
            if begins - now_ns > self.link.queue_ns {
                return Fate::QueueFull;
            }
            leaves = begins + (size as u64 + HEADER_BYTES) * 8_000_000_000 / self.link.rate_bit;
            self.free_at_ns = leaves;
        }
        // Lost behind the bottleneck, as on radio: it has taken its time there.
        if drawn < self.link.loss {
            return Fate::Lost;
        }
        // A shorter delay does not overtake.
        self.last_due_ns = self.last_due_ns.max(leaves + self.link.delay_ns);
        Fate::Arrives(self.last_due_ns)
    }
}

#[derive(Default)]
struct Counts {
    passed: AtomicU64,
    bytes: AtomicU64,
    lost: AtomicU64,
    full: AtomicU64,
    /// How late datagrams left at worst since the last `stats`, in microseconds: the emulator's own fault.
    late_us: AtomicU64,
}

type Parcel = (u64, Vec<u8>, Target);
type Target = (Arc<UdpSocket>, Option<SocketAddr>);

struct Way {
    shaper: Mutex<Shaper>,
    counts: Arc<Counts>,
    parcels: Sender<Parcel>,
}

impl Way {
    fn new(link: Link, seed: u64, epoch: Instant) -> Self {
        let (parcels, waiting) = channel();
        let counts = Arc::new(Counts::default());
        let kept = counts.clone();
        thread::spawn(move || deliver(&waiting, &kept, epoch));
        Self { shaper: Mutex::new(Shaper::new(link, seed)), counts, parcels }
    }

    fn carry(&self, data: &[u8], target: Target, epoch: Instant) {
        let now = epoch.elapsed().as_nanos() as u64;
        let fate = self.shaper.lock().expect("no thread panics with it").offer(now, data.len());
        match fate {
            Fate::Lost => drop(self.counts.lost.fetch_add(1, Relaxed)),
            Fate::QueueFull => drop(self.counts.full.fetch_add(1, Relaxed)),
            Fate::Arrives(due) => drop(self.parcels.send((due, data.to_vec(), target))),
        }
    }

    fn change(&self, words: &[&str]) -> bool {
        let mut shaper = self.shaper.lock().expect("no thread panics with it");
        let changed = shaper.link.changed(words);
        if let Some(link) = changed {
            shaper.link = link;
        }
        changed.is_some()
    }

    fn stats(&self) -> String {
        let counts = &self.counts;
        format!(
            "{} {} {} {} {}",
            counts.passed.load(Relaxed),
            counts.bytes.load(Relaxed),
            counts.lost.load(Relaxed),
            counts.full.load(Relaxed),
            counts.late_us.swap(0, Relaxed)
        )
    }
}

/// Sends each parcel when it is due; they are in order of their times.
fn deliver(waiting: &Receiver<Parcel>, counts: &Counts, epoch: Instant) {
    while let Ok((due, data, (socket, to))) = waiting.recv() {
        let now = epoch.elapsed().as_nanos() as u64;
        if due > now {
            thread::sleep(Duration::from_nanos(due - now));
        }
        let late = (epoch.elapsed().as_nanos() as u64).saturating_sub(due) / 1000;
        counts.late_us.fetch_max(late, Relaxed);
        let sent = match to {
            Some(to) => socket.send_to(&data, to),
            None => socket.send(&data),
        };
        if sent.is_ok() {
            counts.passed.fetch_add(1, Relaxed);
            counts.bytes.fetch_add(data.len() as u64, Relaxed);
        }
    }
}

unsafe extern "C" {
    fn setsockopt(fd: i32, level: i32, name: i32, value: *const i32, length: u32) -> i32;
}

/// Bursts wait in the socket, not in the sender; the kernel gives what it allows.
fn widen(socket: &UdpSocket) {
    // SOL_SOCKET 1; SO_RCVBUF 8, SO_SNDBUF 7, and 33 and 32 for those who may have more than is allowed to all.
    for name in [8, 7, 33, 32] {
        // SAFETY: the value is an i32 that lives over the call, and its length is said.
        unsafe { setsockopt(socket.as_raw_fd(), 1, name, &BUFFER_BYTES, 4) };
    }
}

fn serve(listen: SocketAddr, to: SocketAddr, link: Link, seed: u64) -> std::io::Result<()> {
    let epoch = Instant::now();
    let front = Arc::new(UdpSocket::bind(listen)?);
    widen(&front);
    let (there, back) =
        (Arc::new(Way::new(link, seed, epoch)), Arc::new(Way::new(link, seed ^ 0xb4c4, epoch)));
    println!("ready {}", front.local_addr()?);
    std::io::stdout().flush()?;
    let ways = [there.clone(), back.clone()];
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let words: Vec<&str> = line.split_whitespace().collect();
            if words == ["stats"] {
                println!("{} {}", ways[0].stats(), ways[1].stats());
            } else if ways.iter().all(|way| way.change(&words)) {
                println!("changed");
            } else {
                println!("not understood: {line}");
            }
        }
        std::process::exit(0);
    });
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut buffer = vec![0; 65536];
    loop {
        // An error here is of an earlier send (a closed port); the socket goes on.
        let Ok((size, from)) = front.recv_from(&mut buffer) else { continue };
        if !clients.contains_key(&from) {
            if clients.len() == MAX_CLIENTS {
                continue;
            }
            let any: SocketAddr =
                if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().expect("an address");
            let socket = Arc::new(UdpSocket::bind(any)?);
            widen(&socket);
            socket.connect(to)?;
            clients.insert(from, socket.clone());
            let (front, back) = (front.clone(), back.clone());
            thread::spawn(move || {
                let mut buffer = vec![0; 65536];
                loop {
                    if let Ok(size) = socket.recv(&mut buffer) {
                        back.carry(&buffer[..size], (front.clone(), Some(from)), epoch);
                    }
                }
            });
        }
        there.carry(&buffer[..size], (clients[&from].clone(), None), epoch);
    }
}

fn main() {
    let mut link = Link { delay_ns: 0, loss: 0.0, rate_bit: 0, queue_ns: 100_000_000 };
    let (mut listen, mut to, mut seed) = (None, None, 1);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for pair in arguments.chunks(2) {
        let understood = match pair {
            [name, value] => match name.as_str() {
                "--listen" => value.parse().map(|address: SocketAddr| listen = Some(address)).is_ok(),
                "--to" => value.parse().map(|address: SocketAddr| to = Some(address)).is_ok(),
                "--seed" => value.parse().map(|number: u64| seed = number).is_ok(),
                name => link
                    .changed(&[name.trim_start_matches("--"), value])
                    .map(|changed| link = changed)
                    .is_some(),
            },
            _ => false,
        };
        if !understood {
            eprintln!("emulate: {} is not understood; see the head of bench/emulate.rs", pair.join(" "));
            std::process::exit(2);
        }
    }
    let (Some(listen), Some(to)) = (listen, to) else {
        eprintln!("emulate: --listen and --to are needed");
        std::process::exit(2);
    };
    if let Err(error) = serve(listen, to, link, seed) {
        eprintln!("emulate: {error}");
        std::process::exit(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: Link = Link { delay_ns: 0, loss: 0.0, rate_bit: 0, queue_ns: 0 };

    #[test]
    fn a_seed_loses_the_same_datagrams_and_the_share_that_was_asked() {
        let lost = |seed| {
            let mut shaper = Shaper::new(Link { loss: 0.1, ..FREE }, seed);
            (0..10_000).map(|_| shaper.offer(0, 100) == Fate::Lost).collect::<Vec<_>>()
        };
        assert_eq!(lost(7), lost(7));
        assert_ne!(lost(7), lost(8));
        let count = lost(7).iter().filter(|lost| **lost).count();
        assert!((900..1100).contains(&count), "{count}");
    }

    #[test]
    fn the_bottleneck_sends_one_after_the_other() {
        // 972 and 28 bytes at 8 Mbit/s: a millisecond each.
        let mut shaper =
            Shaper::new(Link { rate_bit: 8_000_000, queue_ns: 2_000_000, delay_ns: 500, ..FREE }, 1);
        let fates: Vec<Fate> = (0..4).map(|_| shaper.offer(0, 972)).collect();
        assert_eq!(fates[..3], [1, 2, 3].map(|ms| Fate::Arrives(ms * 1_000_000 + 500)));
        assert_eq!(fates[3], Fate::QueueFull);
        assert_eq!(shaper.offer(10_000_000, 972), Fate::Arrives(11_000_500));
    }

    #[test]
    fn a_shorter_delay_does_not_overtake() {
        let mut shaper = Shaper::new(Link { delay_ns: 1_000_000, ..FREE }, 1);
        assert_eq!(shaper.offer(0, 10), Fate::Arrives(1_000_000));
        shaper.link = shaper.link.changed(&["delay-ms", "0"]).expect("words it knows");
        assert_eq!(shaper.offer(10, 10), Fate::Arrives(1_000_000));
    }

    #[test]
    fn what_is_not_understood_changes_nothing() {
        for words in [&["speed", "1"][..], &["loss"], &["loss", "much"], &["rate-mbit", "-1"]] {
            assert_eq!(FREE.changed(words), None);
        }
    }
}
