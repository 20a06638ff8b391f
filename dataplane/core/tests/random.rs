//! Bytes that anybody may have made, for every parser; see `hostile`. The fuzz targets go further.

mod hostile;

use proptest::collection::vec;
use proptest::prelude::*;

/// Bytes as a body, frame or packet might begin, mixed with any.
fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    let likely =
        prop_oneof![Just(0u8), Just(1), Just(2), Just(4), Just(6), Just(0x45), Just(0x60), any::<u8>()];
    prop_oneof![vec(any::<u8>(), 0..most), vec(likely, 0..most)]
}

/// A TCP super-packet that is mostly right, as bytes.
fn super_packet() -> impl Strategy<Value = Vec<u8>> {
    let header = (0u8..3, prop_oneof![Just(1u8), Just(0x81), any::<u8>()], 0u16..60, 0u16..1600);
    (header, 0usize..5000, prop_oneof![Just(0x10u8), any::<u8>()], vec((any::<u16>(), any::<u8>()), 0..3))
        .prop_map(|((flags, kind, hdr_len, size), payload, tcp_flags, changes)| {
            let mut raw = vec![flags, kind];
            for word in [hdr_len, size, 20, 16] {
                raw.extend_from_slice(&word.to_le_bytes());
            }
            raw.extend_from_slice(&[0x45, 0]);
            raw.extend_from_slice(&(40 + payload as u16).to_be_bytes());
            raw.extend_from_slice(&[0, 1, 0x40, 0, 64, 6, 0, 0, 100, 64, 1, 2, 93, 184, 216, 34]);
            raw.extend_from_slice(&[1, 2, 0, 80, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, tcp_flags, 1, 0, 0, 0, 0, 0]);
            raw.resize(50 + payload, 0xab);
            for (at, value) in changes {
                let at = usize::from(at) % 60.min(raw.len());
                raw[at] = value;
            }
            raw
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bodies(data in bytes(400)) {
        hostile::body(&data);
    }

    #[test]
    fn frames(sizes in vec(any::<u8>(), 8), units in vec(prop_oneof![9 => 1u8..4, 1 => any::<u8>()], 0..5), cut in 0usize..1384) {
        let mut data = sizes;
        for units in units {
            data.push(units);
            data.resize(data.len() + 1384 * usize::from(units), units);
        }
        data.truncate(data.len().saturating_sub(cut));
        hostile::frames(&data);
    }

    #[test]
    fn offloads(data in prop_oneof![bytes(200), super_packet()]) {
        hostile::offload(&data);
    }

    #[test]
    fn packets(data in prop_oneof![bytes(200), super_packet().prop_map(|raw| raw[10..].to_vec())]) {
        hostile::packet(&data);
    }

    #[test]
    fn joins(data in bytes(600)) {
        hostile::join(&data);
    }

    #[test]
    fn onions(data in prop_oneof![bytes(40), (any::<u8>(), vec(any::<u8>(), 1384)).prop_map(|(choice, mut raw)| {
        raw.insert(0, choice);
        raw
    })]) {
        hostile::onion(&data);
    }

    #[test]
    fn whole_cores(data in bytes(1000)) {
        hostile::whole_core(&data);
    }
}
