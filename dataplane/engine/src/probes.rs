//! Packets of a version that nobody speaks, which any node answers: they tell whether a node that does not finish the
//! handshake is there at all, and whether full packets reach it (docs/protocol/links.md, "Sizes").

use rustc_hash::FxHashMap;

use crate::shared::Name;
use crate::tls::{LOCAL_CID_BYTES, UDP_PAYLOAD};

/// RFC 9000 section 15: a reserved version.
const RESERVED_VERSION: [u8; 4] = [0x1a, 0x2a, 0x3a, 0x4a];
const SIZES: [usize; 2] = [1200, UDP_PAYLOAD as usize];

pub type Cid = [u8; LOCAL_CID_BYTES];

/// A connection id of nobody in particular.
pub fn random_cid() -> Cid {
    let mut cid = Cid::default();
    aws_lc_rs::rand::fill(&mut cid).expect("the system's random numbers are there");
    cid
}

#[derive(Default)]
pub struct Probes {
    waiting: FxHashMap<Cid, (Name, usize)>,
}

impl Probes {
    /// A small and a full probe for a link that is being dialled. `make_cid` makes the ids that answers come to.
    pub fn make(&mut self, link: Name, make_cid: impl Fn() -> Cid) -> Vec<Vec<u8>> {
        SIZES
            .iter()
            .map(|&size| {
                let (source, destination) = (make_cid(), random_cid());
                self.waiting.insert(source, (link, size));
                let mut packet = vec![0xc0];
                packet.extend_from_slice(&RESERVED_VERSION);
                for cid in [destination, source] {
                    packet.push(LOCAL_CID_BYTES as u8);
                    packet.extend_from_slice(&cid);
                }
                packet.resize(size, 0);
                packet
            })
            .collect()
    }

    /// Whether a datagram with a long header is the Version Negotiation packet that answers a probe, and which.
    pub fn answered(&self, datagram: &[u8]) -> Option<(Name, usize)> {
        if self.waiting.is_empty() || datagram.get(1..5)? != [0; 4] {
            return None;
        }
        if usize::from(*datagram.get(5)?) != LOCAL_CID_BYTES {
            return None;
        }
        let cid: Cid = datagram.get(6..6 + LOCAL_CID_BYTES)?.try_into().ok()?;
        self.waiting.get(&cid).copied()
    }

    pub fn forget(&mut self, link: Name) {
        if !self.waiting.is_empty() {
            self.waiting.retain(|_, (name, _)| *name != link);
        }
    }
}
