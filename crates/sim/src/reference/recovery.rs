//! How the reference store starts and stops.

use bowline_store::Io;

use twox_hash::XxHash3_64;

use super::record::{Header, MAGIC, NOTHING};
use super::{PAGE_U32, Reference};
use crate::platter::PAGE;
use crate::subject::OpenError;

impl Reference {
    /// The longest chain that verifies.
    pub(super) fn replay(&mut self) -> Result<(), OpenError> {
        let mut at = 0;
        while let Some(page) = self.read_blocks(at, 1)? {
            let header = Header::decode(&page);
            let next = |header: &Header| header.number == self.number + 1;
            let found = match header {
                Some(header) if next(&header) && header.chain == self.chain => Some(header),
                Some(header) if self.buggy("reorder") && header.number > self.number => {
                    Some(header)
                }
                _ => None,
            };
            let Some(header) = found else {
                if self.buggy("reorder") && at < self.position + 200 {
                    at += 1;
                    continue;
                }
                break;
            };
            if header.data_blocks() > 0 {
                let Some(data) = self.read_blocks(at + 1, header.data_blocks())? else { break };
                if XxHash3_64::oneshot(&data) != header.data_sum && !self.buggy("tear") {
                    if self.buggy("reorder") {
                        at += 1;
                        continue;
                    }
                    break;
                }
            }
            self.apply(header, at);
            at += 1 + header.data_blocks();
            self.position = at;
        }
        Ok(())
    }

    /// What the dead left in the memory, written again where it belongs.
    pub(super) fn adopt(&mut self) -> Result<(), OpenError> {
        let memory = self.pages.memory().clone();
        if memory.read(&self.control, 8) != MAGIC || self.buggy("lose-acknowledged") {
            return Ok(());
        }
        let (mut skip, tail) = (0, memory.read(&self.control, 0) as u32);
        while skip < tail {
            let page = &memory.slice(&self.arena)[skip as usize..];
            let Some(header) = Header::decode(&page[..PAGE]) else {
                return Err(OpenError::Damaged("a record in the memory".into()));
            };
            let bytes = (1 + header.data_blocks() as u32) * PAGE_U32;
            if header.number > self.number {
                if header.chain != self.chain {
                    return Err(OpenError::Damaged("a gap before the memory's records".into()));
                }
                let from = vec![self.arena.part().sub(skip, bytes)];
                let at = self.position;
                self.blocking(Io::Write { at: at * PAGE as u64, from })?;
                self.apply(header, at);
                self.position += 1 + header.data_blocks();
            }
            skip += bytes;
        }
        Ok(())
    }

    /// A record of this start or stop: what an earlier one left beyond it does not chain to it.
    pub(super) fn mark(&mut self, boot: u64, clean: bool) -> Result<(), OpenError> {
        let mut span = self.pages.take(1).ok_or(OpenError::Other("no page".into()))?;
        let salt = self.setup.seed ^ self.media.generation() | 1 << 63;
        let header = self.header(NOTHING, salt, boot, u64::from(clean), 0);
        self.pages.memory().write(&mut span, 0, &header.encode());
        let at = self.position * PAGE as u64;
        self.blocking(Io::Write { at, from: vec![span.part()] })?;
        self.pages.give(span);
        if !self.buggy("no-flush-at-recovery") {
            self.blocking(Io::Flush)?;
        }
        self.apply(header, self.position);
        self.position += 1;
        Ok(())
    }

    pub(super) fn begin(&mut self, boot: u64) -> Result<(), OpenError> {
        if !self.buggy("no-flush-at-recovery") {
            self.blocking(Io::Flush)?;
        }
        // The memory belongs to this start before the log says that there is one.
        let memory = self.pages.memory().clone();
        if memory.read(&self.control, 8) != MAGIC {
            memory.publish(&mut self.control, 0, 0);
            memory.publish(&mut self.control, 8, MAGIC);
        }
        self.mark(boot, false)?;
        self.durable = self.number;
        memory.publish(&mut self.control, 0, 0);
        Ok(())
    }
}
