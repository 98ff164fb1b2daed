//! I/O that waits: for recovery and offline work, where nothing else is to be done meanwhile.

use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Part, SharedPages, Span};

use crate::{Io, IoId, Media, MediumError, StoreError};

/// Pages of the buffer: one mebibyte.
const BUFFER_PAGES: u32 = 256;

/// A medium used one request at a time.
pub(crate) struct Blocking<'a, M> {
    media: &'a mut M,
    memory: Rc<Memory>,
    pages: SharedPages,
    buffer: Option<Span>,
    next: u64,
    /// A broken mode: flushes are not done.
    pub is_flush_skipped: bool,
}

impl<'a, M: Media> Blocking<'a, M> {
    /// # Errors
    /// If there are no pages for a buffer.
    pub(crate) fn new(media: &'a mut M, pages: &SharedPages) -> Result<Self, StoreError> {
        let memory = pages.borrow().memory().clone();
        let mut wanted = BUFFER_PAGES;
        let buffer = loop {
            match pages.borrow_mut().take(wanted) {
                Some(span) => break span,
                None if wanted > 1 => wanted /= 2,
                None => return Err(StoreError::Invalid("no memory for a buffer".into())),
            }
        };
        Ok(Blocking {
            media,
            memory,
            pages: pages.clone(),
            buffer: Some(buffer),
            next: 0,
            is_flush_skipped: false,
        })
    }

    /// The medium itself.
    pub(crate) fn media(&self) -> &M {
        self.media
    }

    /// Bytes the buffer holds.
    pub(crate) fn buffer_bytes(&self) -> u64 {
        self.buffer.as_ref().map_or(0, |span| u64::from(span.bytes()))
    }

    fn run(&mut self, io: Io) -> Result<(), MediumError> {
        self.next += 1;
        let id = IoId(u64::MAX - self.next);
        self.media.submit(id, io);
        loop {
            match self.media.complete() {
                Some(completion) if completion.id == id => return completion.result,
                Some(_) => {}
                None => self.media.wait()?,
            }
        }
    }

    /// Reads up to as much as the buffer holds.
    pub(crate) fn read(&mut self, at: u64, bytes: u64) -> Result<&[u8], MediumError> {
        let Some(span) = &self.buffer else { return Err(MediumError::Died) };
        let bytes = bytes.min(u64::from(span.bytes())) as u32;
        let into = span.part().sub(0, bytes);
        self.run(Io::Read { at, into })?;
        let Some(span) = &self.buffer else { return Err(MediumError::Died) };
        Ok(&self.memory.slice(span)[..bytes as usize])
    }

    /// Reads all of it, however small the buffer is.
    pub(crate) fn read_whole(&mut self, at: u64, bytes: u64) -> Result<Vec<u8>, MediumError> {
        let mut all = Vec::new();
        while (all.len() as u64) < bytes {
            let done = all.len() as u64;
            all.extend_from_slice(self.read(at + done, bytes - done)?);
        }
        Ok(all)
    }

    /// The first bytes of what was read last.
    pub(crate) fn last(&self, bytes: u64) -> Result<&[u8], MediumError> {
        let Some(span) = &self.buffer else { return Err(MediumError::Died) };
        Ok(&self.memory.slice(span)[..bytes.min(u64::from(span.bytes())) as usize])
    }

    /// Writes one block, made by `fill` from zeros.
    pub(crate) fn write_block(
        &mut self,
        at: u64,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), MediumError> {
        let Some(span) = &mut self.buffer else { return Err(MediumError::Died) };
        let block = &mut self.memory.slice_mut(span)[..PAGE_BYTES as usize];
        block.fill(0);
        fill(block);
        let from = vec![span.part().sub(0, PAGE_BYTES)];
        self.run(Io::Write { at, from })
    }

    /// Writes parts one after the other.
    pub(crate) fn write_parts(&mut self, at: u64, from: Vec<Part>) -> Result<(), MediumError> {
        self.run(Io::Write { at, from })
    }

    /// Writes once more what lies there already.
    pub(crate) fn rewrite(&mut self, at: u64, bytes: u64) -> Result<(), MediumError> {
        let mut done = 0;
        while done < bytes {
            let window = self.read(at + done, bytes - done)?.len() as u32;
            let Some(span) = &self.buffer else { return Err(MediumError::Died) };
            let from = vec![span.part().sub(0, window)];
            self.run(Io::Write { at: at + done, from })?;
            done += u64::from(window);
        }
        Ok(())
    }

    /// Takes space.
    pub(crate) fn allocate(&mut self, at: u64, bytes: u64) -> Result<(), MediumError> {
        self.run(Io::Allocate { at, bytes, zeroed: false })
    }

    pub(crate) fn flush(&mut self) -> Result<(), MediumError> {
        if self.is_flush_skipped {
            return Ok(());
        }
        self.run(Io::Flush)
    }
}

impl<M> Drop for Blocking<'_, M> {
    fn drop(&mut self) {
        if let Some(span) = self.buffer.take() {
            self.pages.borrow_mut().give(span);
        }
    }
}
