//! What each session does next: its actions, its share of memory, its end.

use bowline_arena::Part;
use bowline_disk::{Disks, Volume};
use bowline_store::Micros;

use crate::budget::{Lane, Loan};
use crate::interface::{Action, CloseCause, SessionId};
use crate::records::Executing;
use crate::send::PARTS_MAX;
use crate::server::NbdServer;
use crate::session::{
    BUFFER_BYTES, Incoming, Parked, Phase, RECEIVE_RING_BYTES, Receiving, SEND_RING_BYTES, Session,
    Want,
};
use crate::slab::Key;
use crate::write::place_of;

/// What became of the first want of a session.
pub(crate) enum Grant {
    /// There was none, or it must wait for replies of its own session to be sent.
    Nothing,
    /// It was granted, at least in part.
    Served,
    /// The lane has no memory for it now.
    Waits(Lane),
}

impl NbdServer {
    /// The next thing the loop has to do.
    pub fn next_action(&mut self) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let id = self.dirty.pop_front()?;
            if let Some(session) = self.sessions.get_mut(id) {
                session.is_dirty = false;
                self.plan(id);
            }
        }
    }

    /// Tells the arena what it does not know of a session, and of the next operations with it. One
    /// on its way out is closed later: its place must not be another's before the loop knows.
    pub(crate) fn plan_news(&mut self, id: Key) {
        let Some(session) = self.sessions.get(id).filter(|one| one.is_unpublished) else { return };
        match session.phase {
            Phase::Handshake | Phase::Transmission if !session.ended => self.plan(id),
            _ => self.publish(id),
        }
    }

    fn plan(&mut self, id: Key) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if session.ended
            && session.parked == Parked::No
            && matches!(session.phase, Phase::Fresh | Phase::Handshake | Phase::Transmission)
        {
            session.phase = Phase::Draining;
            session.is_unpublished = true;
        }
        if session.phase == Phase::Draining
            && session.requests == 0
            && session.wants.is_empty()
            && session.send.is_empty()
            && !session.sending
        {
            session.phase = Phase::Closing;
            session.is_unpublished = true;
        }
        if session.is_closing() {
            return self.plan_close(id);
        }
        if !session.sending && !session.send.is_empty() {
            session.sending = true;
            session.send_number = session.send_number.wrapping_add(1);
            session.is_unpublished = true;
            let (parts, number) = (session.send.parts(), session.send_number);
            self.actions.push_back(Action::Send { session: SessionId(id), number, parts });
        }
        self.plan_receive(id);
        // The arena knows of an operation before the kernel does.
        self.publish_news(id);
    }

    fn plan_receive(&mut self, id: Key) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if !matches!(session.phase, Phase::Handshake | Phase::Transmission)
            || session.receiving != Receiving::No
            || session.parked != Parked::No
            || session.ended
        {
            return;
        }
        if !session.ring.is_attached() {
            if session.waiting.is_none() {
                session.receiving = Receiving::Awaiting;
                self.actions.push_back(Action::AwaitReadable { session: SessionId(id) });
            }
            return;
        }
        let (parts, payload_bytes) = receive_parts(session);
        if !parts.is_empty() {
            session.receiving = Receiving::Posted { payload_bytes, cancelling: false };
            session.receive_number = session.receive_number.wrapping_add(1);
            session.is_unpublished = true;
            let number = session.receive_number;
            self.actions.push_back(Action::Receive { session: SessionId(id), number, parts });
        }
    }

    fn plan_close(&mut self, id: Key) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if session.phase == Phase::Closing && session.is_at_kernel() {
            if !session.shut {
                session.shut = true;
                self.actions.push_back(Action::Shutdown { session: SessionId(id) });
            }
            return self.publish_news(id);
        }
        if session.phase == Phase::Closing {
            session.phase = Phase::Closed;
            let (rings, mut loans) = session.send.discard();
            for loan in &loans {
                session.reply_held_bytes -= u64::from(loan.span.bytes());
            }
            loans.append(&mut session.output);
            let [send, replies] = rings;
            let rings = [session.ring.discard(), send, replies].into_iter().flatten();
            loans.extend(rings.map(|span| Loan { span, lane: Lane::Buffers }));
            let incoming = session.incoming.take();
            let taken_up = std::mem::take(&mut session.to_take_up);
            let in_doubt = session.in_doubt.take();
            session.kept.clear();
            let cause = session.cause;
            // From here on a successor does not know the session.
            self.publish(id);
            if let Some(Incoming { key, lane, spans, .. }) = incoming {
                self.finish(key);
                loans.extend(spans.into_iter().map(|span| Loan { span, lane }));
            }
            let rest = taken_up.into_iter().map(|one| one.key).chain(in_doubt.map(|(key, _)| key));
            rest.for_each(|key| self.finish(key));
            self.give_loans(loans);
            self.freed = true;
            self.actions.push_back(Action::Close { session: SessionId(id), cause });
        }
        if self.sessions.get(id).is_some_and(|session| session.requests == 0)
            && let Some(session) = self.sessions.remove(id)
            && let Some(agreement) = session.agreement
        {
            self.departed.entry(agreement.disk).or_default().add(&session.counters);
        }
    }

    /// Lets everything go on that can.
    pub(crate) fn settle<V: Volume>(&mut self, disks: &mut Disks<V>) {
        loop {
            if let Some(id) = self.ready.pop_front() {
                let Some(session) = self.sessions.get_mut(id) else { continue };
                session.is_ready = false;
                if self.take_up(disks, id) {
                    self.serve_wants(disks, id);
                    self.run(disks, id);
                }
            } else if std::mem::take(&mut self.freed) {
                for lane in [Lane::Buffers, Lane::Small, Lane::Jumbo] {
                    self.serve_lane(disks, lane);
                }
            } else {
                return self.execute(Executing::Nobody);
            }
        }
    }

    /// Parses what a session has received, as far as it can be.
    fn run<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key) {
        loop {
            let Some(session) = self.sessions.get(id) else { return };
            if session.parked != Parked::No || !session.ring.is_attached() {
                return;
            }
            let go_on = match session.phase {
                Phase::Handshake => self.handshake(disks, id),
                Phase::Transmission => self.transmission(disks, id),
                _ => false,
            };
            if !go_on {
                return;
            }
        }
    }

    /// Grants the wants of a session in order, until one must wait.
    pub(crate) fn serve_wants<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key) {
        while self.sessions.get(id).is_some_and(|session| session.waiting.is_none()) {
            match self.grant(disks, id, None) {
                Grant::Served => {}
                Grant::Nothing => return,
                Grant::Waits(lane) => {
                    if let Some(session) = self.sessions.get_mut(id) {
                        session.waiting = Some(lane);
                        self.budget.waiters(lane).push_back(id);
                    }
                }
            }
        }
    }

    /// Serves those who wait in a lane, strictly in order.
    fn serve_lane<V: Volume>(&mut self, disks: &mut Disks<V>, lane: Lane) {
        while let Some(id) = self.budget.waiters(lane).front().copied() {
            if lane == Lane::Buffers {
                if self.attach(id) {
                    continue;
                }
                return self.evict_one();
            }
            if let Grant::Waits(_) = self.grant(disks, id, Some(lane)) {
                return;
            }
            self.budget.waiters(lane).pop_front();
            if let Some(session) = self.sessions.get_mut(id) {
                session.waiting = None;
            }
            self.wake(id);
        }
    }

    /// Grants the first want of a session, whose turn it is in lane `turn`.
    fn grant<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key, turn: Option<Lane>) -> Grant {
        let Some(session) = self.sessions.get_mut(id) else { return Grant::Nothing };
        let Some(want) = session.wants.front().copied() else { return Grant::Nothing };
        let bytes = match want {
            Want::Read(key) => return self.grant_read(disks, id, key, turn),
            Want::Payload { header, .. } => header.bytes,
            Want::Output { bytes } => bytes,
        };
        let lane = Lane::of(bytes);
        if !self.may_take(lane, turn) {
            return Grant::Waits(lane);
        }
        let before = if let Want::Payload { header, .. } = want { place_of(&header) } else { 0 };
        let Some(spans) = self.budget.take(lane, before + bytes) else { return Grant::Waits(lane) };
        if let Some(session) = self.sessions.get_mut(id) {
            session.wants.pop_front();
        }
        match want {
            Want::Payload { header, fua, key } => {
                self.payload_begins(id, (key, header, fua), spans, lane);
            }
            _ => {
                let loans = spans.into_iter().map(|span| Loan { span, lane }).collect();
                self.output(id, loans);
            }
        }
        self.wake(id);
        Grant::Served
    }

    /// Whether nobody stands before the asking session.
    pub(crate) fn may_take(&mut self, lane: Lane, turn: Option<Lane>) -> bool {
        turn == Some(lane) || self.budget.waiters(lane).is_empty()
    }

    /// Gets a session its rings, or a place among those who wait for them.
    pub(crate) fn want_buffers(&mut self, id: Key) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if session.waiting.is_some() {
            return;
        }
        session.waiting = Some(Lane::Buffers);
        let alone = self.budget.waiters(Lane::Buffers).is_empty();
        self.budget.waiters(Lane::Buffers).push_back(id);
        if !(alone && self.attach(id)) {
            self.evict_one();
        }
    }

    /// Gives rings to the session that is first in line.
    fn attach(&mut self, id: Key) -> bool {
        let taken = self.budget.take_run(Lane::Buffers, BUFFER_BYTES);
        let Some(mut receive) = taken else { return false };
        let buffers = NbdServer::page_of(receive.part());
        let mut send = receive.split_off(RECEIVE_RING_BYTES);
        let replies = send.split_off(SEND_RING_BYTES);
        let first = self.budget.waiters(Lane::Buffers).pop_front();
        assert_eq!(first, Some(id), "rings go to the first in line");
        let Some(session) = self.sessions.get_mut(id) else { unreachable!("a waiter is gone") };
        session.ring.attach(self.budget.memory(), receive);
        session.send.attach(send, replies);
        (session.buffers, session.is_record_old) = (buffers, true);
        session.waiting = None;
        self.greet(id);
        self.publish(id);
        self.wake(id);
        true
    }

    /// Asks the session that has been quiet for longest to give its rings up.
    fn evict_one(&mut self) {
        let is_cancelling = |session: &Session| {
            matches!(session.receiving, Receiving::Posted { cancelling: true, .. })
        };
        let cancelling = self.sessions.iter().filter(|(_, session)| is_cancelling(session)).count();
        if cancelling >= self.budget.waiters(Lane::Buffers).len() {
            return;
        }
        let light = self
            .sessions
            .iter()
            .filter(|(_, session)| session.is_light() && !is_cancelling(session));
        if let Some((id, _)) = light.min_by_key(|(id, session)| (session.moved, *id)) {
            self.cool(id);
        }
    }

    /// Has a light session give its rings up, now or when its receive has come back.
    fn cool(&mut self, id: Key) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        match &mut session.receiving {
            Receiving::Posted { cancelling, .. } if !*cancelling => {
                *cancelling = true;
                let (session, number) = (SessionId(id), session.receive_number);
                self.actions.push_back(Action::CancelReceive { session, number });
            }
            Receiving::No => self.give_buffers_up(id),
            _ => {}
        }
    }

    /// Takes the rings of a session that holds nothing else.
    pub(crate) fn give_buffers_up(&mut self, id: Key) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if !session.is_light() || session.receiving != Receiving::No {
            return;
        }
        let [send, replies] = session.send.detach();
        let spans = [session.ring.detach(self.budget.memory()), send, replies];
        (session.buffers, session.is_record_old) = (0, true);
        self.publish(id);
        for span in spans.into_iter().flatten() {
            self.budget.give(Loan { span, lane: Lane::Buffers });
        }
        self.freed = true;
        self.touch(id);
    }

    /// Looks through all sessions for those whose time is up.
    pub(crate) fn sweep(&mut self) {
        let (now, options) = (self.now, self.options);
        let since = |then: Micros| now.0.saturating_sub(then.0);
        let lanes = [Lane::Buffers, Lane::Small, Lane::Jumbo];
        for lane in lanes {
            if self.budget.waiters(lane).is_empty() {
                self.wanted_since[lane as usize] = now;
            }
        }
        let wanted_since = self.wanted_since;
        let is_in_the_way = |session: &Session| {
            lanes.into_iter().any(|lane| {
                let moved = session.moved.max(wanted_since[lane as usize]);
                session.holds(lane) && since(moved) >= options.stall_us
            })
        };
        let mut found = Vec::new();
        self.greeting = false;
        for (id, session) in self.sessions.iter() {
            if session.is_closing() {
                continue;
            }
            let greeting = matches!(session.phase, Phase::Fresh | Phase::Handshake);
            self.greeting |= greeting;
            if greeting && since(session.accepted) >= options.handshake_us_max {
                found.push((id, Some(CloseCause::HandshakeTime)));
            } else if session.is_stalling() && is_in_the_way(session) {
                found.push((id, Some(CloseCause::Stalled)));
            } else if session.is_light() && since(session.moved) >= options.idle_us {
                found.push((id, None));
            }
        }
        for (id, cause) in found {
            match cause {
                Some(cause) => self.abort(id, cause),
                None => self.cool(id),
            }
        }
    }
}

/// Where the next bytes of a session go, and how many of them are payload.
///
/// The header after a long write is received by itself, in one go with the end of the payload: the
/// next is likely as long, and its payload is to be received where it stays.
fn receive_parts(session: &mut Session) -> (Vec<Part>, u32) {
    let header = bowline_wire::REQUEST_BYTES as u32;
    let Some(incoming) = &session.incoming else {
        let limit =
            if session.after_long { header.saturating_sub(session.ring.used()) } else { u32::MAX };
        return (session.ring.free_parts(limit), 0);
    };
    let (mut parts, payload_bytes, is_all) = incoming.parts();
    if !is_all {
        return (parts, payload_bytes);
    }
    parts.extend(session.ring.free_parts(header));
    parts.truncate(PARTS_MAX);
    (parts, payload_bytes)
}
