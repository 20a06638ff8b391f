//! ICMP and ICMPv6 errors that the exit makes itself, at a limited rate (exit/icmp.py).

use crate::ip::{Address, Packet, Sum, ICMP, ICMPV6};
use crate::params::SECOND_NS;
use crate::policy::Verdict;

const MAX_ERROR_V4_BYTES: usize = 576;
const MAX_ERROR_V6_BYTES: usize = 1280;
const PER_SECOND: u64 = 20;
const ICMP_BYTES: usize = 8;
/// Tokens are counted in shares of a nanosecond's worth, so that no rounding piles up.
const TOKEN: u64 = SECOND_NS;

/// The rate of one circuit's errors: 20 a second, as many at once.
#[derive(Clone, Copy, Debug)]
pub struct IcmpRate {
    tokens: u64,
    last_ns: Option<u64>,
}

impl Default for IcmpRate {
    fn default() -> IcmpRate {
        IcmpRate { tokens: PER_SECOND * TOKEN, last_ns: None }
    }
}

impl IcmpRate {
    fn take(&mut self, now: u64) -> bool {
        if let Some(last) = self.last_ns {
            let gained = now.saturating_sub(last).saturating_mul(PER_SECOND);
            self.tokens = self.tokens.saturating_add(gained).min(PER_SECOND * TOKEN);
        }
        self.last_ns = Some(now);
        match self.tokens.checked_sub(TOKEN) {
            Some(left) => {
                self.tokens = left;
                true
            }
            None => false,
        }
    }
}

/// The answer to a packet that got `verdict`, a whole IP packet; None when it gets none or the rate is used
/// up. `raw` is the packet, `packet` what `ip::parse` read from it.
pub fn refusal(
    rate: &mut IcmpRate,
    sources: ([u8; 4], [u8; 16]),
    raw: &[u8],
    packet: &Packet,
    verdict: Verdict,
    now: u64,
) -> Option<Vec<u8>> {
    let is_to_many = match packet.destination {
        Address::V4(bytes) => bytes[0] >= 224,
        Address::V6(bytes) => bytes[0] == 0xff,
    };
    let is_later_fragment = packet.is_fragment && packet.destination_port.is_none();
    if is_to_many || is_later_fragment || !rate.take(now) {
        return None;
    }
    Some(match packet.source {
        Address::V4(to) => error_v4(sources.0, to, raw),
        Address::V6(to) => error_v6(sources.1, to, raw, if verdict == Verdict::NoIpv6 { 0 } else { 1 }),
    })
}

/// Destination unreachable, communication administratively prohibited (RFC 1812).
fn error_v4(from: [u8; 4], to: [u8; 4], raw: &[u8]) -> Vec<u8> {
    let quote = &raw[..raw.len().min(MAX_ERROR_V4_BYTES - 20 - ICMP_BYTES)];
    let total = 20 + ICMP_BYTES + quote.len();
    let mut out = Vec::with_capacity(total);
    // Precedence 6, internetwork control, as RFC 1812 4.3.2.5 wants
    out.extend_from_slice(&[0x45, 0xc0]);
    out.extend_from_slice(&(total as u16).to_be_bytes());
    out.extend_from_slice(&[0, 0, 0, 0, 64, ICMP, 0, 0]);
    out.extend_from_slice(&from);
    out.extend_from_slice(&to);
    let sum = Sum::default().bytes(&out).checksum();
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend_from_slice(&[3, 13, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(quote);
    let sum = Sum::default().bytes(&out[20..]).checksum();
    out[22..24].copy_from_slice(&sum.to_be_bytes());
    out
}

/// Destination unreachable: code 0, no route; 1, prohibited (RFC 4443).
fn error_v6(from: [u8; 16], to: [u8; 16], raw: &[u8], code: u8) -> Vec<u8> {
    let quote = &raw[..raw.len().min(MAX_ERROR_V6_BYTES - 40 - ICMP_BYTES)];
    let length = ICMP_BYTES + quote.len();
    let mut out = Vec::with_capacity(40 + length);
    out.extend_from_slice(&[0x60, 0, 0, 0]);
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.extend_from_slice(&[ICMPV6, 64]);
    out.extend_from_slice(&from);
    out.extend_from_slice(&to);
    out.extend_from_slice(&[1, code, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(quote);
    let sum = Sum::default().bytes(&out[8..]).number(u64::from(ICMPV6) + length as u64).checksum();
    out[42..44].copy_from_slice(&sum.to_be_bytes());
    out
}
