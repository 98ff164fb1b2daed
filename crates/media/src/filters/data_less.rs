//! A medium that keeps what is irregular, and of regular blocks only what they repeat.
//!
//! Pools of terabytes can so be filled, read back and checked in a few gigabytes: a test writes
//! blocks that repeat one word of 8 bytes, a different one for each block and version, and the
//! store's own structures, which repeat nothing, go to the medium below, which is sparse. Nothing
//! is guessed: what is read is what was written, whatever it was.
//!
//! The words are in a file of their own, 16 bytes for each block: whether it is here (1) or below
//! (0), and the word. Like the page cache it survives processes, not the host. Space is never
//! allocated below.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use bowline_arena::{Memory, Part};
use bowline_store::{BLOCK_BYTES, Completion, Io, IoId, Media, MediumError};

use super::moved_bytes;

const RECORD_BYTES: u64 = 16;
const HERE: u64 = 1;

/// What is asked of the medium for one I/O of the store.
struct Whole {
    id: IoId,
    left: usize,
    result: Result<(), MediumError>,
}

/// Keeps regular blocks as their words.
pub struct DataLess {
    inner: Box<dyn Media>,
    memory: Rc<Memory>,
    words: File,
    /// I/Os of the store by their numbers, and the number of each I/O below.
    wholes: HashMap<u64, Whole>,
    parts: HashMap<IoId, u64>,
    count: u64,
    done: VecDeque<Completion>,
}

impl DataLess {
    /// Keeps the words in the file at `path`, which is made if it is not there. Parts name bytes of
    /// `memory`.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn new(
        inner: Box<dyn Media>,
        memory: Rc<Memory>,
        path: &Path,
    ) -> std::io::Result<DataLess> {
        let mut options = File::options();
        let words = options.read(true).write(true).create(true).truncate(false).open(path)?;
        let (wholes, parts, done) = (HashMap::new(), HashMap::new(), VecDeque::new());
        Ok(DataLess { inner, memory, words, wholes, parts, count: 0, done })
    }

    /// Hands over what the medium has to do, and remembers for whom.
    fn hand_down(&mut self, id: IoId, all: Vec<Io>) {
        if all.is_empty() {
            return self.done.push_back(Completion { id, result: Ok(()) });
        }
        self.count += 1;
        let whole = self.count;
        self.wholes.insert(whole, Whole { id, left: all.len(), result: Ok(()) });
        for io in all {
            self.count += 1;
            self.parts.insert(IoId(self.count), whole);
            self.inner.submit(IoId(self.count), io);
        }
    }

    /// The words of regular blocks are kept, the others go down in runs.
    fn write(&mut self, at: u64, from: &[Part]) -> std::io::Result<Vec<Io>> {
        let mut bytes = Vec::new();
        from.iter().for_each(|part| self.memory.fetch(*part, &mut bytes));
        let words: Vec<Option<u64>> =
            bytes.chunks(BLOCK_BYTES as usize).map(repeated_word).collect();
        let records: Vec<u8> = words.iter().flat_map(|word| record(*word)).collect();
        self.words.write_all_at(&records, at / BLOCK_BYTES * RECORD_BYTES)?;
        let blocks: Vec<Part> = from.iter().flat_map(|part| split(*part)).collect();
        let is_below = |index: &usize| words[*index].is_none();
        Ok(runs(blocks.len(), is_below)
            .map(|run| Io::Write {
                at: at + run.start as u64 * BLOCK_BYTES,
                from: join(&blocks[run]),
            })
            .collect())
    }

    /// Regular blocks are made from their words, the others are read below in runs.
    fn read(&mut self, at: u64, into: Part) -> std::io::Result<Vec<Io>> {
        let blocks: Vec<Part> = split(into).collect();
        let mut records = vec![0; blocks.len() * RECORD_BYTES as usize];
        self.read_records(&mut records, at / BLOCK_BYTES * RECORD_BYTES)?;
        let (pairs, _) = records.as_chunks::<{ RECORD_BYTES as usize }>();
        let words: Vec<Option<[u8; 8]>> = pairs.iter().map(word_of).collect();
        for (block, word) in blocks.iter().zip(&words) {
            if let Some(word) = word {
                self.memory.land(*block, &word.repeat(BLOCK_BYTES as usize / 8));
            }
        }
        let is_below = |index: &usize| words[*index].is_none();
        Ok(runs(blocks.len(), is_below)
            .map(|run| Io::Read {
                at: at + run.start as u64 * BLOCK_BYTES,
                into: into.sub(
                    (run.start as u64 * BLOCK_BYTES) as u32,
                    (run.len() as u64 * BLOCK_BYTES) as u32,
                ),
            })
            .collect())
    }

    /// Reads records; behind the end of the file there are none yet, and everything is below.
    fn read_records(&self, into: &mut [u8], at: u64) -> std::io::Result<()> {
        let mut filled = 0;
        while filled < into.len() {
            match self.words.read_at(&mut into[filled..], at + filled as u64)? {
                0 => break,
                more => filled += more,
            }
        }
        Ok(())
    }

    /// Whether an I/O lies on the medium, which may have grown.
    fn holds(&self, io: &Io) -> bool {
        let (at, bytes) = match io {
            Io::Discard { at, bytes } | Io::Allocate { at, bytes, .. } => (*at, *bytes),
            Io::Read { at, .. } | Io::Write { at, .. } => (*at, moved_bytes(io)),
            Io::Flush => return true,
        };
        at.checked_add(bytes).is_some_and(|end| end <= self.inner.bytes_total())
    }

    fn forget(&self, at: u64, bytes: u64) -> std::io::Result<()> {
        let zeros = vec![0; (bytes / BLOCK_BYTES * RECORD_BYTES) as usize];
        self.words.write_all_at(&zeros, at / BLOCK_BYTES * RECORD_BYTES)
    }

    fn collect(&mut self) {
        while let Some(Completion { id, result }) = self.inner.complete() {
            let whole = self.parts.remove(&id);
            let Some(number) = whole else { panic!("the medium completed {id:?} unasked") };
            let Some(whole) = self.wholes.get_mut(&number) else { continue };
            whole.left -= 1;
            if whole.result.is_ok() {
                whole.result = result;
            }
            if whole.left == 0
                && let Some(Whole { id, result, .. }) = self.wholes.remove(&number)
            {
                self.done.push_back(Completion { id, result });
            }
        }
    }
}

impl Media for DataLess {
    fn bytes_total(&self) -> u64 {
        self.inner.bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        let below = match &io {
            // What lies past the end is refused below.
            io if !self.holds(io) => Ok(vec![io.clone()]),
            Io::Read { at, into } => self.read(*at, *into),
            Io::Write { at, from } => self.write(*at, from),
            Io::Discard { at, bytes } => self.forget(*at, *bytes).map(|()| vec![io]),
            Io::Allocate { .. } => Ok(Vec::new()),
            Io::Flush => Ok(vec![io]),
        };
        match below {
            Ok(below) => self.hand_down(id, below),
            Err(error) => {
                let code = error.raw_os_error().unwrap_or(libc::EIO);
                let call = "the words of a data-less medium".to_owned();
                let result = Err(MediumError::System { call, code });
                self.done.push_back(Completion { id, result });
            }
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        self.collect();
        self.done.pop_front()
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        self.collect();
        if self.done.is_empty() { self.inner.wait() } else { Ok(()) }
    }
}

/// The word that a block repeats from its beginning to its end.
fn repeated_word(block: &[u8]) -> Option<u64> {
    let (words, _) = block.as_chunks::<8>();
    let first = words.first()?;
    words.iter().all(|word| word == first).then(|| u64::from_le_bytes(*first))
}

fn record(word: Option<u64>) -> [u8; RECORD_BYTES as usize] {
    let mut bytes = [0; RECORD_BYTES as usize];
    if let Some(word) = word {
        bytes[..8].copy_from_slice(&HERE.to_le_bytes());
        bytes[8..].copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn word_of(record: &[u8; RECORD_BYTES as usize]) -> Option<[u8; 8]> {
    let (words, _) = record.as_chunks::<8>();
    let [state, word] = words else { return None };
    (u64::from_le_bytes(*state) == HERE).then_some(*word)
}

/// The blocks of a part.
fn split(part: Part) -> impl Iterator<Item = Part> {
    let blocks = part.bytes / BLOCK_BYTES as u32;
    (0..blocks).map(move |index| part.sub(index * BLOCK_BYTES as u32, BLOCK_BYTES as u32))
}

/// Blocks as few parts.
fn join(blocks: &[Part]) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for block in blocks {
        match parts.last_mut() {
            Some(last) if last.offset + u64::from(last.bytes) == block.offset => {
                last.bytes += block.bytes;
            }
            _ => parts.push(*block),
        }
    }
    parts
}

/// The runs of indices below `count` for which something holds.
fn runs(
    count: usize,
    holds: impl Fn(&usize) -> bool,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = (next..count).find(&holds)?;
        let end = (start..count).find(|index| !holds(index)).unwrap_or(count);
        next = end;
        Some(start..end)
    })
}
