//! The handshake of a session: options in, answers out.

use bowline_disk::{Disks, Volume};
use bowline_store::DiskId;
use bowline_wire::{CloseReason, Export, ExportId, Progress, greeting};

use crate::interface::CloseCause;
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
        let input = session.ring.slices(memory, 0, session.ring.used()).concat();
        let step = session.negotiation.advance(&input, &exports, &mut out);
        session.ring.consume(step.consumed as u32);
        let fits = out.len() <= session.send.free() as usize;
        if fits {
            session.send.push_header(memory, &out);
        } else {
            session.output.extend_from_slice(&out);
            session.wants.push_back(Want::Output);
            session.parked = Parked::Memory;
        }
        self.scratch = out;
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
        if session.output.len() > OUTPUT_BYTES_MAX {
            self.abort(id, CloseCause::Memory);
            return false;
        }
        if fits {
            self.touch(id);
        } else {
            self.wake(id);
        }
        go_on
    }

    /// Puts a long answer into pages. The lane is that of its length.
    pub(crate) fn output(&mut self, id: Key, loans: Vec<crate::budget::Loan>) {
        let Some(session) = self.sessions.get_mut(id) else { return };
        let output = std::mem::take(&mut session.output);
        let mut rest = &output[..];
        for mut loan in loans {
            let count = rest.len().min(loan.span.bytes() as usize);
            let (now, later) = rest.split_at(count);
            self.budget.memory().slice_mut(&mut loan.span)[..count].copy_from_slice(now);
            session.reply_held_bytes += u64::from(loan.span.bytes());
            session.send.push_data(loan, 0, count as u32);
            rest = later;
        }
        session.parked = Parked::No;
    }
}
