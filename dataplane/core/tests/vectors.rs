//! The known answers of tests/vectors/onion.json.

use std::fs;

use aws_lc_rs::digest::{digest, SHA256};
use hopfare_core::keychain::{derive_chain, derive_keys, Label};
use hopfare_core::layers::{
    ClientBackward, ClientForward, Command, ExitBackward, Lane, Opened, RelayBackward, RelayForward,
};
use hopfare_core::params::{BACKWARD_OVERHEAD_BYTES, EPOCH_AGE_NS, FORWARD_OVERHEAD_BYTES, UNIT};
use hopfare_core::suites::Suite;
use serde::Deserialize;

#[derive(Deserialize)]
struct Chain {
    label: String,
    chain: String,
    first_counter: u64,
    aead_key: String,
    header_key: String,
}

#[derive(Deserialize)]
struct Case {
    suite: u8,
    lane: u8,
    hops: u8,
    units: usize,
    packet: String,
    forward_starts: String,
    forward_links: Vec<String>,
    backward_links: Vec<String>,
}

#[derive(Deserialize)]
struct Vectors {
    chains_of_hop_1: Vec<Chain>,
    packets: Vec<Case>,
}

fn vectors() -> Vectors {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/vectors/onion.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn hash(data: &[u8]) -> String {
    hex::encode(digest(&SHA256, data))
}

#[test]
fn chains_and_keys_are_the_known_ones() {
    for expected in vectors().chains_of_hop_1 {
        let label = match expected.label.as_str() {
            "fwd" => Label::Forward,
            "bwd" => Label::Backward,
            "fwd stream" => Label::ForwardStream,
            "bwd stream" => Label::BackwardStream,
            other => panic!("{other}"),
        };
        let (chain, start) = derive_chain(&[1; 32], label);
        let (aead, header) = derive_keys(&chain);
        assert_eq!(hex::encode(*chain), expected.chain);
        assert_eq!(start + 1, expected.first_counter);
        assert_eq!(hex::encode(*aead), expected.aead_key);
        assert_eq!(hex::encode(*header), expected.header_key);
    }
}

#[test]
fn packets_are_the_known_ones_on_every_link() {
    let cases = vectors().packets;
    assert_eq!(cases.len(), 64);
    for case in cases {
        check(&case);
    }
}

fn check(case: &Case) {
    let suite = Suite::from_number(case.suite).unwrap();
    let lane = if case.lane == 1 { Lane::Datagram } else { Lane::Stream };
    let roots: Vec<[u8; 32]> = (1..=case.hops).map(|hop| [hop; 32]).collect();
    let times: &[u64] = if case.packet == "first" { &[0] } else { &[0, EPOCH_AGE_NS] };
    let size = case.units * UNIT;

    let mut sender = ClientForward::new(&roots, suite, lane).unwrap();
    let mut hops: Vec<_> = roots.iter().map(|root| RelayForward::new(root, suite, lane)).collect();
    for (turn, &now) in times.iter().enumerate() {
        let mut packet = vec![0; size];
        for (i, byte) in packet[FORWARD_OVERHEAD_BYTES..].iter_mut().enumerate() {
            *byte = i as u8;
        }
        let body = packet[FORWARD_OVERHEAD_BYTES..].to_vec();
        assert!(sender.seal(&mut packet, now, None, Command::Deliver, &mut |out| out.fill(0xaa)));
        let is_last = turn + 1 == times.len();
        if is_last {
            assert_eq!(hex::encode(&packet[..8]), case.forward_starts);
        }
        for (index, hop) in hops.iter_mut().enumerate() {
            if is_last {
                assert_eq!(hash(&packet), case.forward_links[index]);
            }
            let opened = if index % 2 == 0 {
                hop.open(&mut packet, now)
            } else {
                let mut out = vec![0; size];
                let opened = hop.open_to(&packet, &mut out, now);
                packet = out;
                opened
            };
            assert_eq!(opened, if index + 1 == roots.len() { Opened::Deliver } else { Opened::Forward });
        }
        assert_eq!(packet[FORWARD_OVERHEAD_BYTES..], body);
    }

    let mut sender = ExitBackward::new(roots.last().unwrap(), suite, lane);
    let before = &roots[..roots.len() - 1];
    let mut hops: Vec<_> = before.iter().map(|root| RelayBackward::new(root, suite, lane)).collect();
    let mut receiver = ClientBackward::new(&roots, suite, lane).unwrap();
    for (turn, &now) in times.iter().enumerate() {
        let mut packet = vec![0; size];
        for (i, byte) in packet[BACKWARD_OVERHEAD_BYTES..].iter_mut().enumerate() {
            *byte = (7 * i) as u8;
        }
        let body = packet[BACKWARD_OVERHEAD_BYTES..].to_vec();
        assert!(sender.seal(&mut packet, now, &mut |out| out.fill(0xbb)));
        let is_last = turn + 1 == times.len();
        for (index, hop) in hops.iter_mut().enumerate().rev() {
            if is_last {
                assert_eq!(hash(&packet), case.backward_links[index + 1]);
            }
            if index % 2 == 0 {
                assert!(hop.wrap(&mut packet, now));
            } else {
                let mut out = vec![0; size];
                assert!(hop.wrap_to(&packet, &mut out, now));
                packet = out;
            }
        }
        if is_last {
            assert_eq!(hash(&packet), case.backward_links[0]);
        }
        assert!(receiver.open(&mut packet, now));
        assert_eq!(packet[BACKWARD_OVERHEAD_BYTES..], body);
    }
}
