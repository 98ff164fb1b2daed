//! Requests of a dead process that were taken and not answered: each is answered, or tried again,
//! before its session goes on with its stream.

use bowline_disk::{Disks, Submitted, Volume};
use bowline_store::{BLOCK_BYTES, Payload};
use bowline_wire::values::{command, command_flag};
use bowline_wire::{Command, REQUEST_BYTES, RequestHeader};

use crate::budget::Lane;
use crate::interface::{Poison, SessionId};
use crate::records::Executing;
use crate::server::NbdServer;
use crate::session::{Parked, TakeUp, Verdict};
use crate::slab::Key;
use crate::transmission::LONG_PAYLOAD_BYTES;

impl NbdServer {
    /// Takes up the requests of a dead process that a session still has. False if the disk has no
    /// room for the next one.
    pub(crate) fn take_up<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key) -> bool {
        loop {
            let Some(session) = self.sessions.get(id) else { return false };
            let Some(one) = session.to_take_up.front().copied() else { return true };
            if session.is_closing() || session.parked == Parked::Busy {
                return false;
            }
            self.execute(Executing::Request(one.key.slot));
            if !self.take_up_one(disks, id, one) {
                self.park_busy(id);
                return false;
            }
            if let Some(session) = self.sessions.get_mut(id) {
                session.to_take_up.pop_front();
            }
        }
    }

    fn take_up_one<V: Volume>(&mut self, disks: &mut Disks<V>, id: Key, one: TakeUp) -> bool {
        let TakeUp { key, header, begins, verdict, .. } = one;
        let Some(request) = self.requests.get_mut(key) else { return true };
        let lane = Lane::of(header.bytes);
        let fua = header.flags & command_flag::FUA != 0;
        if verdict == Verdict::Open
            && request.attempts.saturating_add(1) >= self.options.attempts_max
        {
            self.note_poison(id, &header);
            self.fail_taken(key);
            return true;
        }
        match verdict {
            Verdict::Failed => self.fail_taken(key),
            Verdict::Admitted(seq) => {
                let (ticket, disk) = (self.ticket(key, 0), self.disk_of(key));
                let is_write = header.kind == command::WRITE;
                let bytes = if is_write { u64::from(header.bytes) } else { BLOCK_BYTES };
                let submitted = disks.admitted(ticket, disk, seq, bytes, fua);
                self.taken(key, submitted, lane, Vec::new());
            }
            Verdict::Open => match self.judge(disks, id, &header) {
                Ok(command) => return self.try_again(disks, id, key, begins, header, command),
                Err(_) => self.fail_taken(key),
            },
        }
        true
    }

    /// A request is not tried again.
    pub(crate) fn note_poison(&mut self, id: Key, header: &RequestHeader) {
        let RequestHeader { kind, offset, bytes, .. } = *header;
        self.counters.poisoned += 1;
        if let Some(session) = self.sessions.get_mut(id) {
            session.counters.poisoned += 1;
        }
        self.poison.push_back(Poison { session: SessionId(id), kind, offset, bytes });
    }

    /// Has the disk do again what a dead process had asked it for in vain.
    fn try_again<V: Volume>(
        &mut self,
        disks: &mut Disks<V>,
        id: Key,
        key: Key,
        begins: u32,
        header: RequestHeader,
        command: Command,
    ) -> bool {
        let lane = Lane::of(header.bytes);
        let (submitted, left) = match command {
            Command::Read { .. } => {
                self.read_goes(disks, id, key);
                return true;
            }
            Command::BlockStatus { .. } => {
                self.ask_status(disks, key);
                return true;
            }
            Command::Write { fua } if header.bytes >= LONG_PAYLOAD_BYTES => {
                let request = self.requests.get_mut(key);
                let spans = request.map(|request| std::mem::take(&mut request.payload));
                self.try_long(disks, key, &header, fua, spans.unwrap_or_default())
            }
            Command::Write { fua } => {
                let (ticket, disk) = (self.ticket(key, 0), self.disk_of(key));
                let Some(session) = self.sessions.get(id) else { return true };
                let back = session.ring.behind(begins) - REQUEST_BYTES as u32;
                let memory = self.budget.memory();
                let slices = session.ring.kept_slices(memory, back, header.bytes);
                let count = if slices[1].is_empty() { 1 } else { 2 };
                let mut payload = Payload::Copied(&slices[..count]);
                (disks.write(ticket, disk, header.offset, &mut payload, fua), Vec::new())
            }
            _ => (self.try_plain(disks, key, &header, command), Vec::new()),
        };
        if submitted == Submitted::Busy {
            if let Some(request) = self.requests.get_mut(key) {
                request.payload = left;
            }
            return false;
        }
        self.taken(key, submitted, lane, left);
        true
    }
}
