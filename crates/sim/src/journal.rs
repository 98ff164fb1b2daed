//! Everything that happens to a memory and a device, in the order in which it happens, so that a
//! process can be cut off between any two stores.

use bowline_arena::{Part, Record};

use crate::device::Device;

/// One thing that happened.
#[derive(Clone)]
pub enum Moment {
    /// Bytes were stored to the memory, by the process or by a read that landed.
    Stored(Record),
    /// Bytes that a write was submitted with. They need not have been stored for a successor to
    /// find, but the device takes them from the memory when the write lands.
    Sent(Record),
    /// An I/O was submitted or completed, and the device is as here.
    Moved(Box<Device>),
    /// The change with this number was asked for.
    Asked(u64),
    /// The change with this number was admitted.
    Replied(u64),
}

impl Device {
    /// Begins a journal; what it starts from is the device and its memory now.
    pub fn start_journal(&mut self) {
        self.memory().record_stores(true);
        self.journal = Some(Vec::new());
    }

    /// Ends the journal.
    pub fn take_journal(&mut self) -> Vec<Moment> {
        self.note_stores();
        self.memory().record_stores(false);
        self.journal.take().unwrap_or_default()
    }

    /// A copy without the journal.
    #[must_use]
    pub fn snapshot(&mut self) -> Device {
        let journal = self.journal.take();
        let copy = self.clone();
        self.journal = journal;
        copy
    }

    /// Notes something that a guest sees.
    pub fn note(&mut self, moment: Moment) {
        self.note_stores();
        if let Some(journal) = &mut self.journal {
            journal.push(moment);
        }
    }

    /// Notes the bytes of a write.
    pub(crate) fn note_sent(&mut self, parts: &[Part]) {
        if self.journal.is_none() {
            return;
        }
        for part in parts {
            let mut bytes = Vec::new();
            self.memory().fetch(*part, &mut bytes);
            self.note(Moment::Sent(Record { offset: part.offset, bytes }));
        }
    }

    /// Notes that an I/O has moved.
    pub(crate) fn note_moved(&mut self) {
        if self.journal.is_some() {
            let snapshot = Box::new(self.snapshot());
            self.note(Moment::Moved(snapshot));
        }
    }

    pub(crate) fn note_stores(&mut self) {
        if self.journal.is_none() {
            return;
        }
        let stores = self.memory().record_stores(true);
        if let Some(journal) = &mut self.journal {
            journal.extend(stores.into_iter().map(Moment::Stored));
        }
    }
}
