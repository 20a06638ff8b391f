//! Which shard a datagram belongs to: connection ids that say so (docs/decisions/0017-engine-threads.md).

use hopfare_core::ShardId;
use quinn_proto::{ConnectionId, ConnectionIdGenerator};
use std::time::Duration;

use crate::tls::LOCAL_CID_BYTES;

/// Bytes of a packet before the connection id of its receiver: short and long header (RFC 8999).
const SHORT_CID_AT: usize = 1;
const LONG_CID_AT: usize = 6;
const WORD_BYTES: usize = 4;

/// The sum by which connection ids tell their shard: `overlay/links/io/udp.py` has the kernel do the same.
#[derive(Clone, Copy)]
pub struct Steer {
    /// Odd and random: nobody else can tell shards apart by connection ids.
    factor: u32,
    shards: u32,
}

impl Steer {
    pub fn new(factor: u32, shards: usize) -> Self {
        Self { factor: factor | 1, shards: shards.clamp(1, 64) as u32 }
    }

    fn of(self, cid: &[u8]) -> Option<ShardId> {
        let word = u32::from_be_bytes(*cid.first_chunk::<WORD_BYTES>()?);
        Some(((word.wrapping_mul(self.factor) >> 16) % self.shards) as ShardId)
    }

    /// The shard of a datagram's first packet; None for what is too short to tell.
    pub fn shard_of(self, datagram: &[u8]) -> Option<ShardId> {
        let at = if datagram.first()? & 0x80 == 0 { SHORT_CID_AT } else { LONG_CID_AT };
        self.of(datagram.get(at..)?)
    }

    /// A random connection id of a shard.
    pub fn cid(self, shard: ShardId) -> [u8; LOCAL_CID_BYTES] {
        let mut cid = [0; LOCAL_CID_BYTES];
        loop {
            aws_lc_rs::rand::fill(&mut cid).expect("the system's random numbers are there");
            if self.of(&cid) == Some(shard) {
                return cid;
            }
        }
    }
}

/// Makes the connection ids of one shard.
pub struct ShardCids {
    pub steer: Steer,
    pub shard: ShardId,
}

impl ConnectionIdGenerator for ShardCids {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.steer.cid(self.shard))
    }

    fn cid_len(&self) -> usize {
        LOCAL_CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_ids_lead_to_their_shard() {
        for shards in [1, 2, 3, 8, 64] {
            let steer = Steer::new(0x9e37_79b9, shards);
            for shard in 0..shards as ShardId {
                let cid = steer.cid(shard);
                let short = [&[0x40], &cid[..], &[0; 30]].concat();
                let long = [&[0xc0, 0, 0, 0, 1, LOCAL_CID_BYTES as u8], &cid[..], &[0; 30]].concat();
                assert_eq!(steer.shard_of(&short), Some(shard));
                assert_eq!(steer.shard_of(&long), Some(shard));
            }
            assert_eq!(steer.shard_of(&[0x40, 1, 2]), None);
            assert_eq!(steer.shard_of(&[]), None);
        }
    }
}
