//! The medium that a simulated process sees of a [`Device`].
//!
//! A process can be made to die at the n-th call of its medium ([`Device::arm`]): the call unwinds
//! with [`Killed`], so no further instruction of the process runs. What a dead process calls after
//! that, from its destructors, does nothing.

use bowline_store::{Completion, Io, IoId, Media, MediumError};

use crate::device::{Device, SharedDevice};
use crate::platter::PAGE;

/// What unwinds through a process that dies inside a call.
#[derive(Debug, Clone, Copy)]
pub struct Killed;

/// One process's medium over a [`Device`].
pub struct SimMedia {
    device: SharedDevice,
    generation: u64,
}

impl SimMedia {
    /// The medium of the process that lives now.
    #[must_use]
    pub fn new(device: &SharedDevice) -> SimMedia {
        let generation = device.borrow().generation();
        SimMedia { device: device.clone(), generation }
    }

    /// Which process of the device this is.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    fn alive(&self) -> bool {
        self.device.borrow().living() == Some(self.generation)
    }

    /// Dies if it is time, before or after what `last` does.
    fn die_if_due(&self, last: impl FnOnce(&mut Device)) {
        let mut device = self.device.borrow_mut();
        if device.burn() {
            if device.toss() {
                last(&mut device);
            }
            device.kill();
            drop(device);
            std::panic::resume_unwind(Box::new(Killed));
        }
    }
}

impl Media for SimMedia {
    fn bytes_total(&self) -> u64 {
        self.device.borrow_mut().platter().blocks() * PAGE as u64
    }

    fn submit(&mut self, id: IoId, io: Io) {
        if self.alive() {
            self.die_if_due(|device| device.submit(id, io.clone()));
            let mut device = self.device.borrow_mut();
            device.note_stores();
            if let Io::Write { from, .. } = &io {
                device.note_sent(from);
            }
            device.submit(id, io);
            device.note_moved();
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        if !self.alive() {
            return None;
        }
        let mut device = self.device.borrow_mut();
        device.note_stores();
        let (id, result) = device.complete()?;
        device.note_moved();
        drop(device);
        self.die_if_due(|_| {});
        Some(Completion { id, result })
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        if !self.alive() {
            return Err(MediumError::Died);
        }
        if self.device.borrow_mut().wait() { Ok(()) } else { Err(MediumError::Died) }
    }
}

#[cfg(test)]
#[path = "media_tests.rs"]
mod tests;
