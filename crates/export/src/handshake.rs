//! The handshake of a session: options in, answers out.

use bowline_disk::{Disks, Volume};
use bowline_store::DiskId;
use bowline_wire::{CloseReason, Export, ExportId, Progress, greeting};

use crate::budget::Loan;
use crate::interface::CloseCause;
use crate::records::Executing;
use crate::server::NbdServer;
use crate::session::{Agreement, Parked, Phase, Want};
use crate::slab::Key;

/// Smallest length and alignment of requests: the sector of disks.
pub(crate) const BLOCK_BYTES_MIN: u32 = 512;

/// Longest answer to an option; a catalogue beyond that cannot be listed.
const OUTPUT_BYTES_MAX: usize = 32 << 20;

impl NbdServer {
    /// The server speaks first, as soon as it has somewhere to put the words.
    pub(crate) fn greet(&mut self, id: Key) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        if session.phase == Phase::Fresh {
            session.send.push_header(self.budget.memory(), &greeting());
            session.phase = Phase::Handshake;
            session.is_unpublished = true;
        }
    }

    fn exports<V: Volume>(&self, disks: &Disks<V>) -> Vec<Export> {
        let described = self.exported.iter().filter_map(|exported| {
            let disk = disks.store().disk(exported.disk)?;
            Some(Export {
                id: ExportId(exported.disk.0),
                name: exported.name.clone(),
                description: exported.description.clone(),
                bytes: disk.bytes,
                read_only: exported.read_only || disk.read_only,
                block_bytes_min: BLOCK_BYTES_MIN,
            })
        });
        described.collect()
    }

    /// Takes one message. Returns whether there may be more to do.
    pub(crate) fn handshake<V: Volume>(&mut self, disks: &Disks<V>, id: Key) -> bool {
        let exports = self.exports(disks);
        let mut out = std::mem::take(&mut self.scratch);
        out.clear();
        let memory = self.budget.memory();
        let Some(session) = self.sessions.get_mut(id) else { return false };
        if session.ring.used() > 0 {
            self.records.execute(Executing::Session(id.slot));
        }
        if session.attempts.saturating_add(1) >= self.options.attempts_max {
            self.abort(id, CloseCause::Poisoned);
            return false;
        }
        let input = session.ring.slices(memory, 0, session.ring.used()).concat();
        // Nothing has happened until there is room for the answer.
        let mut negotiation = session.negotiation;
        let step = negotiation.advance(&input, &exports, &mut out);
        let has_room = self.queue_answer(id, &out);
        self.scratch = out;
        let Some(session) = self.sessions.get_mut(id).filter(|_| has_room) else { return false };
        session.consume(step.consumed as u32);
        session.negotiation = negotiation;
        session.is_record_old = true;
        let go_on = match step.progress {
            Progress::Taken => true,
            Progress::NeedMore(_) => false,
            Progress::Transmission(agreed) => {
                session.phase = Phase::Transmission;
                session.agreement = Some(Agreement {
                    disk: DiskId(agreed.export.0),
                    structured: agreed.structured,
                    allocation: agreed.allocation,
                });
                true
            }
            Progress::Close(reason) => {
                session.phase = Phase::Draining;
                session.cause = match reason {
                    CloseReason::Abort => CloseCause::Client,
                    other => CloseCause::Handshake(other),
                };
                false
            }
        };
        if step.consumed > 0 {
            self.publish(id);
        }
        self.touch(id);
        go_on
    }

    /// Queues an answer: in the send ring, or in pages of its own if it is longer. False if there
    /// is no room: the session waits for it, or has been closed.
    fn queue_answer(&mut self, id: Key, out: &[u8]) -> bool {
        let Some(session) = self.sessions.get_mut(id) else { return false };
        let loans = std::mem::take(&mut session.output);
        let room: usize = loans.iter().map(|loan| loan.span.bytes() as usize).sum();
        if out.len() <= session.send.free() as usize {
            session.send.push_header(self.budget.memory(), out);
            session.is_unpublished |= !out.is_empty();
        } else if out.len() > OUTPUT_BYTES_MAX {
            self.abort(id, CloseCause::Memory);
            return false;
        } else if session.send.replies_free() == 0 {
            session.output = loans;
            session.parked = Parked::Drain;
            return false;
        } else if out.len() > room {
            session.wants.push_back(Want::Output { bytes: out.len() as u32 });
            session.parked = Parked::Memory;
            self.give_loans(loans);
            self.wake(id);
            return false;
        } else {
            let spare = self.queue_output(id, out, loans);
            self.give_loans(spare);
            return true;
        }
        self.give_loans(loans);
        true
    }

    /// Puts a long answer into pages. Returns those it does not need.
    fn queue_output(&mut self, id: Key, out: &[u8], loans: Vec<Loan>) -> Vec<Loan> {
        let (mut rest, mut pieces, mut spare) = (out, Vec::new(), Vec::new());
        for mut loan in loans {
            let count = rest.len().min(loan.span.bytes() as usize);
            if count == 0 {
                spare.push(loan);
                continue;
            }
            let (now, later) = rest.split_at(count);
            self.budget.memory().write(&mut loan.span, 0, now);
            if let Some(session) = self.sessions.get_mut(id) {
                session.reply_held_bytes += u64::from(loan.span.bytes());
            }
            pieces.push((loan, 0, count as u32));
            rest = later;
        }
        self.push_data(id, pieces);
        spare
    }

    pub(crate) fn give_loans(&mut self, loans: Vec<Loan>) {
        for loan in loans {
            self.budget.give(loan);
            self.freed = true;
        }
    }

    /// There is memory for a long answer; the message it is for is looked at again.
    pub(crate) fn output(&mut self, id: Key, loans: Vec<Loan>) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.output = loans;
        session.parked = Parked::No;
    }
}
