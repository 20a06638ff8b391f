//! Both lanes of every circuit on one link: fair queues out, credits in, streams and their circuits
//! (docs/protocol/engine.md).

use bytes::{BufMut, Bytes, BytesMut};

use crate::core::Core;
use crate::credit::{encode_grant, GrantReader, GRANT_BYTES, GRANT_CIRCUIT_ID};
use crate::driver::{Driver, Fault, LinkId, Now};
use crate::params::CIRCUIT_ID_BYTES;
use crate::shared::{EndRef, Inbound, Pulled};
use crate::trains::Step;

/// A link takes no further train while QUIC holds this much that it has not sent once.
pub const BACKLOG_HIGH_BYTES: usize = 512 * 1024;
/// Single packets that one circuit may send before the next has its turn.
const TURN_SINGLES: usize = 64;
/// The link's close code for a broken rule.
const CLOSE_PROTOCOL: u64 = 1;

impl Core {
    // -- coming in

    /// Bytes of one of the peer's unidirectional streams, in order; `fin` with the last ones.
    pub fn on_stream(
        &mut self,
        link: LinkId,
        stream: u64,
        mut chunk: &[u8],
        fin: bool,
        now: Now,
        d: &mut impl Driver,
    ) {
        let Some(known) = self.shared.link(link) else { return };
        let inbound = known
            .inbound
            .entry(stream)
            .or_insert(Inbound::Unnamed { head: [0; CIRCUIT_ID_BYTES], filled: 0 });
        if let Inbound::Unnamed { head, filled } = inbound {
            let (taken, rest) = chunk.split_at(chunk.len().min(CIRCUIT_ID_BYTES - *filled));
            head[*filled..*filled + taken.len()].copy_from_slice(taken);
            *filled += taken.len();
            chunk = rest;
            if *filled == CIRCUIT_ID_BYTES {
                let id = u32::from_be_bytes(*head);
                self.name(link, stream, id, d);
            }
        }
        let Some(known) = self.shared.link(link) else { return };
        match known.inbound.get_mut(&stream) {
            Some(Inbound::Frames(place)) => {
                let place = *place;
                self.read_frames(place, chunk, now, d);
            }
            Some(Inbound::Grants(reader)) => {
                let mut taken = std::mem::take(reader);
                while let Some((id, units)) = taken.step(&mut chunk) {
                    self.read_grant(link, id, units, d);
                }
                if let Some(Inbound::Grants(reader)) =
                    self.shared.link(link).and_then(|known| known.inbound.get_mut(&stream))
                {
                    *reader = taken;
                }
            }
            _ => {}
        }
        if fin {
            self.end_inbound(link, stream, d);
        }
    }

    /// The peer gave up one of its streams, or asks us to give up one of ours.
    pub fn on_stream_reset(&mut self, link: LinkId, stream: u64, d: &mut impl Driver) {
        if self.end_inbound(link, stream, d) {
            return;
        }
        let place = self.shared.link(link).and_then(|known| known.outbound.get(&stream).copied());
        if let Some(place) = place {
            self.fail(place.flow, Fault::StreamReset, d);
        }
    }

    fn end_inbound(&mut self, link: LinkId, stream: u64, d: &mut impl Driver) -> bool {
        let Some(inbound) = self.shared.link(link).and_then(|known| known.inbound.remove(&stream)) else {
            return false;
        };
        if let Inbound::Frames(place) = inbound {
            if let Some((flow, _)) = self.flow_at(place.flow) {
                flow.end(place).stream_in = None;
            }
            self.fail(place.flow, Fault::StreamReset, d);
        }
        true
    }

    fn name(&mut self, link: LinkId, stream: u64, id: u32, d: &mut impl Driver) {
        let Some(known) = self.shared.link(link) else { return };
        if id == GRANT_CIRCUIT_ID {
            if known.has_grants_in {
                known.inbound.insert(stream, Inbound::Dead);
                d.close_link(link, CLOSE_PROTOCOL, "second stream of credits");
                return;
            }
            known.has_grants_in = true;
            known.inbound.insert(stream, Inbound::Grants(GrantReader::default()));
            return;
        }
        let place = known.ends.get(&id).copied();
        let is_new = place.and_then(|place| {
            let (flow, _) = self.flow_at(place.flow)?;
            let end = flow.end(place);
            (end.stream_in.is_none()).then(|| end.stream_in = Some(stream))
        });
        let inbound = match (place, is_new) {
            (Some(place), Some(())) => Inbound::Frames(place),
            _ => {
                // A circuit that was given up a moment ago, or a second stream for one: nothing to read there.
                self.unknown_frames += 1;
                d.stop_stream(link, stream);
                Inbound::Dead
            }
        };
        if let Some(known) = self.shared.link(link) {
            known.inbound.insert(stream, inbound);
        }
    }

    fn read_frames(&mut self, place: EndRef, mut chunk: &[u8], now: Now, d: &mut impl Driver) {
        let Some((flow, shared)) = self.flow_at(place.flow) else { return };
        let fault = loop {
            let end = flow.end(place);
            let before = chunk.len();
            match end.reader.step(&mut chunk, |size| shared.train_buffer(size)) {
                Err(_) => break Fault::BadFraming,
                Ok(Step::Begins(units)) => {
                    shared.budget.add(1);
                    if !end.credit.receive(units) {
                        break Fault::FlowControl;
                    }
                }
                Ok(Step::More) => {
                    shared.budget.add(before - chunk.len());
                    return;
                }
                Ok(Step::Frame(frame)) => {
                    shared.budget.add(before - chunk.len());
                    shared.budget.remove(frame.len());
                    if let Err(fault) = flow.on_train(shared, place, frame, now, d) {
                        break fault;
                    }
                }
            }
        };
        self.fail(place.flow, fault, d);
    }

    fn read_grant(&mut self, link: LinkId, id: u32, units: u64, d: &mut impl Driver) {
        let Some(place) = self.shared.link(link).and_then(|known| known.ends.get(&id).copied()) else {
            return;
        };
        let Some((flow, shared)) = self.flow_at(place.flow) else { return };
        match flow.end(place).credit.grant(units) {
            Ok(false) => {}
            Ok(true) => {
                if flow.has_trains(place) {
                    shared.want_trains(flow.end(place), place);
                }
            }
            Err(_) => self.fail(place.flow, Fault::FlowControl, d),
        }
    }

    // -- going out

    /// A link that was full has room again.
    pub fn on_writable(&mut self, link: LinkId, now: Now, d: &mut impl Driver) {
        self.pump_link(link, now, d);
    }

    /// The end of a batch: move what waits into every link that was touched or blocked, and keep the memory
    /// limit.
    pub fn pump(&mut self, now: Now, d: &mut impl Driver) {
        self.shared.flush_tun(d);
        self.expire_some(now);
        for link in std::mem::take(&mut self.shared.blocked) {
            if let Some(known) = self.shared.link(link) {
                known.is_blocked = false;
                self.pump_link(link, now, d);
            }
        }
        while let Some(link) = self.shared.touched.pop() {
            self.pump_link(link, now, d);
        }
        if self.shared.budget.is_over() {
            self.free_memory(d);
        }
    }

    /// Credits first, then single packets, then trains, circuits taking turns.
    fn pump_link(&mut self, link: LinkId, now: Now, d: &mut impl Driver) {
        let Some(known) = self.shared.link(link) else { return };
        known.is_touched = false;
        if !known.grants.is_empty() {
            self.send_grants(link, d);
        }
        self.pump_singles(link, now, d);
        self.pump_trains(link, now, d);
        let shared = &mut self.shared;
        if let Some(Some(known)) = shared.links.get_mut(link as usize) {
            let is_waiting = !known.trains.is_empty() || !known.singles.is_empty();
            if is_waiting && !known.is_blocked {
                known.is_blocked = true;
                shared.blocked.push(link);
            }
        }
    }

    fn pump_singles(&mut self, link: LinkId, now: Now, d: &mut impl Driver) {
        let mut room = 0;
        loop {
            let Some(known) = self.shared.link(link) else { return };
            if known.singles.is_empty() {
                return;
            }
            if room == 0 {
                room = d.datagram_room(link);
                if room == 0 {
                    return;
                }
            }
            let Some(place) = known.singles.pop_front() else { return };
            let Some((flow, shared)) = self.flow_at(place.flow) else { continue };
            flow.end(place).in_singles = false;
            let most = room.min(TURN_SINGLES);
            let (mut taken, mut sent) = (0, 0);
            let mut fault = None;
            while taken < most {
                match flow.pull_single(shared, place, now, d) {
                    Ok(Pulled::Frame(frame)) => {
                        d.send_datagram(link, frame.freeze());
                        sent += 1;
                    }
                    Ok(Pulled::Unpaid) => {}
                    Ok(Pulled::Nothing) => break,
                    Err(found) => {
                        fault = Some(found);
                        break;
                    }
                }
                taken += 1;
            }
            room -= sent;
            if let Some(fault) = fault {
                self.fail(place.flow, fault, d);
            } else if taken == most && sent > 0 {
                shared.want_singles(flow.end(place), place);
            }
        }
    }

    fn pump_trains(&mut self, link: LinkId, now: Now, d: &mut impl Driver) {
        loop {
            let Some(known) = self.shared.link(link) else { return };
            if known.trains.is_empty() || d.stream_backlog(link) >= BACKLOG_HIGH_BYTES {
                return;
            }
            let Some(place) = known.trains.pop_front() else { return };
            let Some((flow, shared)) = self.flow_at(place.flow) else { continue };
            flow.end(place).in_trains = false;
            let units = flow.end(place).credit.sendable();
            if units == 0 || !flow.has_trains(place) {
                continue;
            }
            let stream = match flow.end(place).stream_out {
                Some(stream) => stream,
                None => {
                    let Some(stream) = d.open_stream(link) else {
                        // An honest peer allows more streams than it takes circuits.
                        self.fail(place.flow, Fault::FlowControl, d);
                        continue;
                    };
                    let end = flow.end(place);
                    end.stream_out = Some(stream);
                    if let Some(known) = shared.link(link) {
                        known.outbound.insert(stream, place);
                    }
                    d.send_stream(link, stream, Bytes::copy_from_slice(&end.circuit_id.to_be_bytes()));
                    stream
                }
            };
            match flow.pull_train(shared, place, units, now, d) {
                Ok(None) => {}
                Err(fault) => self.fail(place.flow, fault, d),
                Ok(Some(frame)) => {
                    let end = flow.end(place);
                    end.credit.send(usize::from(frame[0]));
                    d.send_stream(link, stream, frame.freeze());
                    if flow.has_trains(place) {
                        shared.want_trains(flow.end(place), place);
                    }
                }
            }
        }
    }

    fn send_grants(&mut self, link: LinkId, d: &mut impl Driver) {
        let Some(known) = self.shared.link(link) else { return };
        let places = std::mem::take(&mut known.grants);
        let mut stream = known.grant_out;
        let mut data = BytesMut::with_capacity(CIRCUIT_ID_BYTES + places.len() * GRANT_BYTES);
        if stream.is_none() {
            data.put_u32(GRANT_CIRCUIT_ID);
        }
        for place in places {
            let Some((flow, _)) = self.flow_at(place.flow) else { continue };
            let end = flow.end(place);
            if let Some(units) = end.grant.take() {
                data.extend_from_slice(&encode_grant(end.circuit_id, units));
            }
        }
        if stream.is_none() {
            stream = d.open_stream(link);
            if let Some(known) = self.shared.link(link) {
                known.grant_out = stream;
            }
        }
        match stream {
            Some(stream) => d.send_stream(link, stream, data.freeze()),
            None => d.close_link(link, CLOSE_PROTOCOL, "no stream is allowed for credits"),
        }
    }
}
