//! What Python has granted: for a key (credentials, port, family and, where they isolate, the host) the circuit to use;
//! and what names mean on a circuit. Both bounded by Python and by the bounds here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::handshake::{Host, Request};

/// Python's numbers, never used again.
pub type GrantName = u64;
pub type CircuitName = u64;

/// Names kept of one circuit; beyond it one of them makes room.
pub const NAMES_PER_CIRCUIT: usize = 512;

/// A grant's figures for Python.
#[derive(Default)]
pub struct GrantCell {
    /// Connections on it now, those being made included.
    pub connections: AtomicU32,
    /// Requests that used it, ever.
    pub used: AtomicU64,
}

pub struct Grant {
    pub key: Vec<u8>,
    pub circuit: CircuitName,
    pub source_v4: Ipv4Addr,
    pub source_v6: Option<Ipv6Addr>,
    pub cell: Arc<GrantCell>,
    /// No new connections; gone when the last one is.
    pub is_revoked: bool,
}

impl Grant {
    pub fn connections(&self) -> u32 {
        self.cell.connections.load(Ordering::Relaxed)
    }

    pub fn source(&self, target: IpAddr) -> Option<IpAddr> {
        match target {
            IpAddr::V4(_) => Some(IpAddr::V4(self.source_v4)),
            IpAddr::V6(_) => self.source_v6.map(IpAddr::V6),
        }
    }
}

type Names = FxHashMap<String, (Vec<IpAddr>, Instant)>;

#[derive(Default)]
pub struct Grants {
    pub by_name: FxHashMap<GrantName, Grant>,
    by_key: FxHashMap<Vec<u8>, GrantName>,
    names: FxHashMap<CircuitName, Names>,
}

impl Grants {
    /// A second grant for a key takes the first one's place, which is revoked by Python.
    pub fn add(&mut self, name: GrantName, grant: Grant) {
        self.names.entry(grant.circuit).or_default();
        self.by_key.insert(grant.key.clone(), name);
        self.by_name.insert(name, grant);
    }

    /// The grant for a key that may be used for new connections.
    pub fn find(&self, key: &[u8]) -> Option<(GrantName, &Grant)> {
        let name = *self.by_key.get(key)?;
        Some((name, self.by_name.get(&name)?))
    }

    /// No new connections. True if it is without any, and so is gone.
    pub fn revoke(&mut self, name: GrantName) -> bool {
        let Some(grant) = self.by_name.get_mut(&name) else { return false };
        grant.is_revoked = true;
        if self.by_key.get(&grant.key) == Some(&name) {
            self.by_key.remove(&grant.key);
        }
        let is_idle = grant.connections() == 0;
        if is_idle {
            self.forget(name);
        }
        is_idle
    }

    /// A connection begins, by a request of its own or by what Python has made. False if there is no such grant.
    pub fn take(&mut self, name: GrantName, is_request: bool) -> bool {
        let Some(grant) = self.by_name.get(&name) else { return false };
        grant.cell.connections.fetch_add(1, Ordering::Relaxed);
        grant.cell.used.fetch_add(u64::from(is_request), Ordering::Relaxed);
        true
    }

    /// A connection has ended. True if it was the last one of a revoked grant, which is gone.
    pub fn give_back(&mut self, name: GrantName) -> bool {
        let Some(grant) = self.by_name.get(&name) else { return false };
        let is_last = grant.cell.connections.fetch_sub(1, Ordering::Relaxed) == 1 && grant.is_revoked;
        if is_last {
            self.forget(name);
        }
        is_last
    }

    fn forget(&mut self, name: GrantName) {
        let Some(gone) = self.by_name.remove(&name) else { return };
        if self.by_name.values().all(|grant| grant.circuit != gone.circuit) {
            self.names.remove(&gone.circuit);
        }
    }

    /// What a name means on a circuit, until then. Ignored for a circuit without grants.
    pub fn learn(
        &mut self,
        circuit: CircuitName,
        host: String,
        addresses: Vec<IpAddr>,
        until: Instant,
        now: Instant,
    ) {
        let Some(names) = self.names.get_mut(&circuit) else { return };
        if names.len() >= NAMES_PER_CIRCUIT && !names.contains_key(&host) {
            names.retain(|_, (_, until)| *until > now);
            if names.len() >= NAMES_PER_CIRCUIT {
                if let Some(oldest) =
                    names.iter().min_by_key(|(_, (_, until))| *until).map(|(host, _)| host.clone())
                {
                    names.remove(&oldest);
                }
            }
        }
        names.insert(host, (addresses, until));
    }

    /// The addresses to try on a grant's circuit, if all of them can be.
    pub fn addresses(&self, grant: &Grant, host: &Host, now: Instant) -> Option<Vec<IpAddr>> {
        let found = match host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => {
                let (addresses, until) = self.names.get(&grant.circuit)?.get(name)?;
                if *until <= now {
                    return None;
                }
                addresses.clone()
            }
        };
        (!found.is_empty() && found.iter().all(|&address| grant.source(address).is_some())).then_some(found)
    }
}

/// Who asks for what, as far as it decides about the circuit.
pub fn key_of(request: &Request, by_destination: bool) -> Vec<u8> {
    let mut key = request.credentials.clone();
    key.extend_from_slice(&request.port.to_be_bytes());
    key.push(u8::from(matches!(request.host, Host::Address(IpAddr::V6(_)))));
    if by_destination {
        match &request.host {
            Host::Address(address) => key.extend_from_slice(address.to_string().as_bytes()),
            Host::Name(name) => key.extend_from_slice(name.as_bytes()),
        }
    }
    // The credentials' length in front would not do for the host: put it behind, where nothing follows.
    key.extend_from_slice(&(request.credentials.len() as u16).to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn grant(key: &[u8], circuit: CircuitName) -> Grant {
        Grant {
            key: key.to_vec(),
            circuit,
            source_v4: Ipv4Addr::new(100, 64, 0, 1),
            source_v6: None,
            cell: Arc::default(),
            is_revoked: false,
        }
    }

    #[test]
    fn a_revoked_grant_lives_until_its_last_connection_ends() {
        let mut grants = Grants::default();
        grants.add(1, grant(b"k", 7));
        assert!(grants.take(1, true) && grants.take(1, false) && !grants.take(3, true));
        assert!(!grants.revoke(1));
        assert!(grants.find(b"k").is_none());
        grants.add(2, grant(b"k", 8));
        assert_eq!(grants.find(b"k").map(|found| found.0), Some(2));
        assert!(!grants.give_back(1));
        assert!(grants.give_back(1));
        assert!(!grants.give_back(1));
        assert!(grants.revoke(2));
        assert!(grants.by_name.is_empty() && grants.names.is_empty());
    }

    #[test]
    fn names_belong_to_a_circuit_and_expire() {
        let mut grants = Grants::default();
        let now = Instant::now();
        let until = now + Duration::from_secs(5);
        grants.add(1, grant(b"k", 7));
        grants.add(2, grant(b"l", 8));
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        grants.learn(7, "a".into(), vec![address], until, now);
        grants.learn(9, "a".into(), vec![address], until, now);
        let host = Host::Name("a".into());
        let on = |grants: &Grants, name, now| grants.addresses(&grants.by_name[&name], &host, now);
        assert_eq!(on(&grants, 1, now), Some(vec![address]));
        assert_eq!(on(&grants, 1, until), None);
        assert_eq!(on(&grants, 2, now), None);
        grants.learn(7, "a".into(), vec!["2001:db8::1".parse().unwrap(), address], until, now);
        assert_eq!(on(&grants, 1, now), None, "the circuit has no IPv6");
        for n in 0..2 * NAMES_PER_CIRCUIT {
            grants.learn(7, n.to_string(), vec![address], until + Duration::from_millis(n as u64), now);
        }
        assert_eq!(grants.names[&7].len(), NAMES_PER_CIRCUIT);
    }

    #[test]
    fn keys_tell_apart_what_must_not_share() {
        let of = |credentials: &[u8], host: &str, port, by| {
            let host = match host.parse() {
                Ok(address) => Host::Address(address),
                Err(_) => Host::Name(host.to_owned()),
            };
            key_of(&Request { credentials: credentials.to_vec(), host, port }, by)
        };
        assert_eq!(of(b"", "a", 80, false), of(b"", "192.0.2.1", 80, false));
        let all = [
            of(b"", "a", 80, false),
            of(b"", "::1", 80, false),
            of(b"", "a", 81, false),
            of(b"\0\x01ab", "a", 80, false),
            of(b"\0\x02ab", "a", 80, false),
            of(b"", "a", 80, true),
            of(b"", "b", 80, true),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(all[at + 1..].iter().all(|other| other != one));
        }
    }
}
