//! The exit's rules as a table that the node compiles (exit/policy.py, exit/denied.py): deny list, then
//! rules, the first that matches decides.

use std::net::IpAddr;

use crate::ip::{Address, Packet, ICMP, ICMPV6, TCP, UDP};

/// What the exit does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let it out.
    Accept,
    /// The destination is on the deny list.
    DeniedAddress,
    /// The operator's policy, or the denied ports.
    DeniedPort,
    /// Neither TCP, UDP nor ICMP echo.
    DeniedProtocol,
    /// This exit has no way out for IPv6.
    NoIpv6,
}

/// One rule: a network as number and mask, ports inclusive.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Rule {
    pub accept: bool,
    pub network: u128,
    pub mask: u128,
    pub min_port: u16,
    pub max_port: u16,
}

/// The whole table. Ranges are inclusive, sorted and do not overlap.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Denied IPv4 addresses.
    pub deny4: Vec<(u32, u32)>,
    /// Denied IPv6 addresses.
    pub deny6: Vec<(u128, u128)>,
    /// Rules for IPv4.
    pub rules4: Vec<Rule>,
    /// Rules for IPv6.
    pub rules6: Vec<Rule>,
    /// Whether the exit has a way out for IPv6.
    pub has_ipv6: bool,
    /// The exit's own inner addresses: port 53 and echoes are open there.
    pub local: Vec<IpAddr>,
    /// Where ICMP answers come from.
    pub dns4: [u8; 4],
    /// Where ICMPv6 answers come from.
    pub dns6: [u8; 16],
}

const CACHE_ENTRIES: usize = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
struct Key {
    protocol: u8,
    destination: Address,
    port: Option<u16>,
}

/// A policy with a cache of verdicts. Each key has one place; a customer who makes keys collide only makes
/// his own verdicts slower.
pub struct PolicyTable {
    policy: Policy,
    cache: Vec<Option<(Key, Verdict)>>,
}

impl PolicyTable {
    /// A table with an empty cache.
    pub fn new(policy: Policy) -> PolicyTable {
        PolicyTable { policy, cache: vec![None; CACHE_ENTRIES] }
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Judge a packet.
    pub fn verdict(&mut self, packet: &Packet) -> Verdict {
        let key =
            Key { protocol: packet.protocol, destination: packet.destination, port: packet.destination_port };
        let mixed = packet.destination.number()
            ^ u128::from(packet.destination_port.map_or(0x1_0000, u32::from)) << 40
            ^ u128::from(packet.protocol) << 60;
        let folded = (mixed as u64) ^ (mixed >> 64) as u64;
        let place = (folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 52) as usize % CACHE_ENTRIES;
        if let Some((known, verdict)) = self.cache[place] {
            if known == key {
                return verdict;
            }
        }
        let verdict = self.policy.judge(&key);
        self.cache[place] = Some((key, verdict));
        verdict
    }
}

impl Policy {
    fn judge(&self, key: &Key) -> Verdict {
        let is_v4 = matches!(key.destination, Address::V4(_));
        if ![TCP, UDP, if is_v4 { ICMP } else { ICMPV6 }].contains(&key.protocol) {
            return Verdict::DeniedProtocol;
        }
        if self.local.contains(&key.destination.into()) {
            return match key.port {
                Some(53) | None => Verdict::Accept,
                Some(_) => Verdict::DeniedAddress,
            };
        }
        if self.denies(&key.destination) {
            return Verdict::DeniedAddress;
        }
        if !is_v4 && !self.has_ipv6 {
            return Verdict::NoIpv6;
        }
        if key.port == Some(0) {
            return Verdict::DeniedPort;
        }
        let value = key.destination.number();
        for rule in if is_v4 { &self.rules4 } else { &self.rules6 } {
            if value & rule.mask != rule.network {
                continue;
            }
            let decides = match key.port {
                None => rule.accept || (rule.min_port <= 1 && rule.max_port == 65535),
                Some(port) => rule.min_port <= port && port <= rule.max_port,
            };
            if decides {
                return if rule.accept { Verdict::Accept } else { Verdict::DeniedPort };
            }
        }
        Verdict::DeniedPort
    }

    fn denies(&self, address: &Address) -> bool {
        match *address {
            Address::V4(bytes) => is_in(&self.deny4, u32::from_be_bytes(bytes)),
            Address::V6(bytes) => {
                let value = u128::from_be_bytes(bytes);
                is_in(&self.deny6, value)
                    || embedded_v4(value).iter().flatten().any(|&inner| is_in(&self.deny4, inner as u32))
            }
        }
    }
}

fn is_in<T: PartialOrd + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let above = ranges.partition_point(|&(first, _)| first <= value);
    above > 0 && value <= ranges[above - 1].1
}

/// The IPv4 addresses that an IPv6 address may stand for (RFC 4291, 6052, 8215, 3056); mostly none.
fn embedded_v4(value: u128) -> [Option<u128>; 4] {
    const LOW: u128 = 0xffff_ffff;
    let low = value & LOW;
    // ::ffff:0:0/96 and ::/96 without :: and ::1; 64:ff9b::/96
    if value >> 32 == 0xffff || (value > 1 && value <= LOW) || value >> 32 == 0x0064_ff9b << 64 {
        return [Some(low), None, None, None];
    }
    if value >> 80 == 0x0064_ff9b_0001 {
        // A local NAT64 prefix may be used at 48, 56, 64 or 96 bits, bits 64 to 71 being left out.
        let joined = (value >> 64 & 0xffff) << 48 | (value & 0x00ff_ffff_ffff_ffff) >> 8;
        return [Some(joined >> 32), Some(joined >> 24 & LOW), Some(joined >> 16 & LOW), Some(low)];
    }
    if value >> 112 == 0x2002 {
        return [Some(value >> 80 & LOW), None, None, None];
    }
    [None; 4]
}
