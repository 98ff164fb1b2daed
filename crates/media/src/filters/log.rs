//! A record of everything that was asked of a medium, with its data: what the crash replayer
//! rebuilds legal states of the medium from.
//!
//! The file is a sequence of entries, each
//! ```text
//! 0   kind: 1 read, 2 write, 3 flush, 4 discard, 5 allocate; 16 completed, 17 failed
//! 8   id
//! 16  byte offset on the medium
//! 24  number of bytes
//! 32  the data of a write
//! ```
//! with little-endian numbers of 8 bytes. An entry of a submission comes before the I/O begins,
//! one of a completion before the store learns of it. A killed server may leave a last entry cut
//! short; it is left out when reading.

use std::fs::File;
use std::io::{BufReader, BufWriter, Error, Read, Write};
use std::path::Path;
use std::rc::Rc;

use bowline_arena::Memory;
use bowline_store::{Completion, Io, IoId, Media, MediumError};

use super::{Kind, moved_bytes};

const COMPLETED: u64 = 16;
const FAILED: u64 = 17;
const HEAD_BYTES: usize = 32;

/// Writes down every I/O.
pub struct Log {
    inner: Box<dyn Media>,
    memory: Rc<Memory>,
    file: BufWriter<File>,
    /// Why the log has ended before its time.
    broken: Option<Error>,
}

/// One entry of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// An I/O was submitted.
    Submitted {
        /// Its id.
        id: IoId,
        /// Its kind.
        kind: Kind,
        /// Byte offset on the medium.
        at: u64,
        /// Number of bytes.
        bytes: u64,
        /// The data of a write.
        data: Vec<u8>,
    },
    /// An I/O came back.
    Completed {
        /// Its id.
        id: IoId,
        /// Whether it went well.
        well: bool,
    },
}

impl Log {
    /// Appends to the file at `path` what is asked of `inner`, whose parts name bytes of `memory`.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn new(inner: Box<dyn Media>, memory: Rc<Memory>, path: &Path) -> std::io::Result<Log> {
        let file = File::options().append(true).create(true).open(path)?;
        Ok(Log { inner, memory, file: BufWriter::with_capacity(1 << 20, file), broken: None })
    }

    fn put(&mut self, numbers: [u64; 4], data: &[u8]) {
        if self.broken.is_some() {
            return;
        }
        let head: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let result = self.file.write_all(&head).and_then(|()| self.file.write_all(data));
        self.broken = result.err();
    }

    /// Hands the entries to the system; after a kill they are in the file.
    fn hand_over(&mut self) {
        if self.broken.is_none() {
            self.broken = self.file.flush().err();
        }
    }
}

impl Media for Log {
    fn bytes_total(&self) -> u64 {
        self.inner.bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        let kind = Kind::of(&io);
        let mut data = Vec::new();
        let (at, bytes) = match &io {
            Io::Read { at, into } => (*at, u64::from(into.bytes)),
            Io::Write { at, from } => {
                from.iter().for_each(|part| self.memory.fetch(*part, &mut data));
                (*at, moved_bytes(&io))
            }
            Io::Flush => (0, 0),
            Io::Discard { at, bytes } | Io::Allocate { at, bytes, .. } => (*at, *bytes),
        };
        self.put([kind as u64 + 1, id.0, at, bytes], &data);
        self.hand_over();
        self.inner.submit(id, io);
    }

    fn complete(&mut self) -> Option<Completion> {
        if let Some(error) = &self.broken {
            // A log that lacks something is worse than none: whoever asked for it is to notice.
            panic!("the media log cannot be written: {error}");
        }
        let completion = self.inner.complete()?;
        let kind = if completion.result.is_ok() { COMPLETED } else { FAILED };
        self.put([kind, completion.id.0, 0, 0], &[]);
        self.hand_over();
        Some(completion)
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        self.inner.wait()
    }
}

/// Reads a log, entry by entry, up to its end or a last entry that was cut short.
///
/// # Errors
/// If the file cannot be opened; while reading also if it is no log.
pub fn read(path: &Path) -> std::io::Result<impl Iterator<Item = std::io::Result<Entry>>> {
    let file = File::open(path)?;
    let left = file.metadata()?.len();
    let mut reader = Reader { file: BufReader::with_capacity(1 << 20, file), left };
    Ok(std::iter::from_fn(move || reader.next().transpose()))
}

struct Reader {
    file: BufReader<File>,
    left: u64,
}

impl Reader {
    fn next(&mut self) -> std::io::Result<Option<Entry>> {
        let mut head = [0; HEAD_BYTES];
        if !self.take(&mut head)? {
            return Ok(None);
        }
        let number = |index: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&head[index * 8..index * 8 + 8]);
            u64::from_le_bytes(bytes)
        };
        let (kind, id, at, bytes) = (number(0), IoId(number(1)), number(2), number(3));
        if kind == COMPLETED || kind == FAILED {
            return Ok(Some(Entry::Completed { id, well: kind == COMPLETED }));
        }
        let index = usize::try_from(kind).unwrap_or(usize::MAX).wrapping_sub(1);
        let Some(kind) = Kind::ALL.get(index).copied() else {
            return Err(Error::other(format!("no entry of a media log has kind {kind}")));
        };
        if kind == Kind::Write && bytes > self.left {
            return Ok(None);
        }
        let mut data = vec![0; if kind == Kind::Write { bytes as usize } else { 0 }];
        self.take(&mut data)?;
        Ok(Some(Entry::Submitted { id, kind, at, bytes, data }))
    }

    /// Fills `bytes`; false if so many are not left.
    fn take(&mut self, bytes: &mut [u8]) -> std::io::Result<bool> {
        let wanted = bytes.len() as u64;
        if wanted > self.left {
            self.left = 0;
            return Ok(false);
        }
        self.left -= wanted;
        self.file.read_exact(bytes).map(|()| true)
    }
}
