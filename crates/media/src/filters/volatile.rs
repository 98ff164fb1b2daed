//! A medium with a write cache that forgets: unflushed writes are lost when the process ends.
//!
//! Writes stay in memory and complete at once. A flush writes everything out that had been written
//! before it, then flushes the medium. So ending the process, however gently, is a power cut.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use bowline_arena::{Memory, Part};
use bowline_store::{BLOCK_BYTES, Completion, Io, IoId, Media, MediumError};

/// A block in the cache.
#[derive(Clone)]
struct Cached {
    data: Rc<[u8]>,
    /// Changes with every write, so that a flush only takes out what it has written.
    version: u64,
}

/// A flush under way: the blocks it has still to write.
struct Flushing {
    id: IoId,
    blocks: Vec<(u64, u64)>,
    next: usize,
}

/// A read that the medium does.
struct Reading {
    at: u64,
    into: Part,
    /// What was newer here when it began. By its end that may have been flushed and forgotten,
    /// later than the medium looked.
    newer: Vec<(u64, Cached)>,
}

/// Keeps unflushed writes in memory.
pub struct Volatile {
    inner: Box<dyn Media>,
    memory: Rc<Memory>,
    /// One block to write out from.
    staging: Part,
    cache: BTreeMap<u64, Cached>,
    versions: u64,
    /// Reads that the medium does.
    reads: HashMap<IoId, Reading>,
    flushes: VecDeque<Flushing>,
    done: VecDeque<Completion>,
}

/// The id of what the filter itself asks of the medium.
const OWN: IoId = IoId(u64::MAX);

impl Volatile {
    /// Caches writes to `inner`, whose parts name bytes of `memory`. `staging` is a page that
    /// nobody else uses.
    ///
    /// # Panics
    /// If it is not a page.
    #[must_use]
    pub fn new(inner: Box<dyn Media>, memory: Rc<Memory>, staging: Part) -> Volatile {
        assert_eq!(u64::from(staging.bytes), BLOCK_BYTES, "a page");
        Volatile {
            inner,
            memory,
            staging,
            cache: BTreeMap::new(),
            versions: 0,
            reads: HashMap::new(),
            flushes: VecDeque::new(),
            done: VecDeque::new(),
        }
    }

    fn write(&mut self, at: u64, from: &[Part]) {
        let mut data = Vec::new();
        from.iter().for_each(|part| self.memory.fetch(*part, &mut data));
        self.versions += 1;
        for (index, block) in data.chunks(BLOCK_BYTES as usize).enumerate() {
            let cached = Cached { data: block.into(), version: self.versions };
            self.cache.insert(at / BLOCK_BYTES + index as u64, cached);
        }
    }

    /// What the cache has of a range.
    fn cached(&self, at: u64, into: Part) -> Vec<(u64, Cached)> {
        let first = at / BLOCK_BYTES;
        let blocks = first..first + u64::from(into.bytes) / BLOCK_BYTES;
        self.cache.range(blocks).map(|(block, cached)| (*block, cached.clone())).collect()
    }

    /// Lays what is newer here over what the medium has read.
    fn patch(&self, reading: &Reading) {
        let Reading { at, into, newer } = reading;
        for (block, cached) in newer.iter().chain(&self.cached(*at, *into)) {
            let skip = (block * BLOCK_BYTES - at) as u32;
            self.memory.land(into.sub(skip, BLOCK_BYTES as u32), &cached.data);
        }
    }

    /// Starts the next step of the first flush.
    fn step(&mut self) {
        let Some(flush) = self.flushes.front_mut() else { return };
        while let Some((block, _)) = flush.blocks.get(flush.next) {
            // A later flush cannot have taken it out: flushes run one after the other. A later
            // write may have changed it, and then the newer content may become durable early.
            if let Some(cached) = self.cache.get(block) {
                self.memory.land(self.staging, &cached.data);
                let (at, from) = (block * BLOCK_BYTES, vec![self.staging]);
                self.inner.submit(OWN, Io::Write { at, from });
                return;
            }
            flush.next += 1;
        }
        self.inner.submit(OWN, Io::Flush);
    }

    /// Takes the result of a step of the first flush.
    fn stepped(&mut self, result: Result<(), MediumError>) {
        let Some(flush) = self.flushes.front_mut() else { return };
        let finished = flush.next == flush.blocks.len();
        if result.is_ok() && !finished {
            flush.next += 1;
            return self.step();
        }
        if let Some(flush) = self.flushes.pop_front() {
            if result.is_ok() {
                for (block, version) in &flush.blocks {
                    if self.cache.get(block).is_some_and(|cached| cached.version == *version) {
                        self.cache.remove(block);
                    }
                }
            }
            self.done.push_back(Completion { id: flush.id, result });
        }
        self.step();
    }

    fn collect(&mut self) {
        while let Some(completion) = self.inner.complete() {
            if completion.id == OWN {
                self.stepped(completion.result);
                continue;
            }
            if let Some(reading) = self.reads.remove(&completion.id)
                && completion.result.is_ok()
            {
                self.patch(&reading);
            }
            self.done.push_back(completion);
        }
    }
}

impl Media for Volatile {
    fn bytes_total(&self) -> u64 {
        self.inner.bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        assert_ne!(id, OWN, "this id is the filter's own");
        match io {
            Io::Read { at, into } => {
                let newer = self.cached(at, into);
                self.reads.insert(id, Reading { at, into, newer });
                self.inner.submit(id, Io::Read { at, into });
            }
            Io::Write { at, from } => {
                let bytes: u64 = from.iter().map(|part| u64::from(part.bytes)).sum();
                let inside = at.checked_add(bytes).is_some_and(|end| end <= self.bytes_total());
                if !inside {
                    // The medium says what is wrong with it.
                    return self.inner.submit(id, Io::Write { at, from });
                }
                self.write(at, &from);
                self.done.push_back(Completion { id, result: Ok(()) });
            }
            Io::Flush => {
                let blocks = self.cache.iter().map(|(block, cached)| (*block, cached.version));
                let flush = Flushing { id, blocks: blocks.collect(), next: 0 };
                self.flushes.push_back(flush);
                if self.flushes.len() == 1 {
                    self.step();
                }
            }
            Io::Discard { at, bytes } => {
                let first = at / BLOCK_BYTES;
                self.cache.retain(|block, _| !(first..first + bytes / BLOCK_BYTES).contains(block));
                self.inner.submit(id, Io::Discard { at, bytes });
            }
            Io::Allocate { .. } => self.inner.submit(id, io),
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        self.collect();
        self.done.pop_front()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        loop {
            self.collect();
            if !self.done.is_empty() {
                return Ok(());
            }
            self.inner.wait()?;
        }
    }
}
