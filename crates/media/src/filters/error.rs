//! I/Os that fail without having been done.

use std::collections::VecDeque;

use bowline_store::{Completion, Io, IoId, Media, MediumError};

use super::Kind;

/// Which I/Os fail.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Which {
    /// This part of them, drawn by a generator started with the seed.
    Part {
        /// From 0 (none) to 1 (all).
        part: f64,
        /// Start of the generator.
        seed: u64,
    },
    /// The one with this number, counted from 1.
    Number(u64),
}

/// Lets I/Os of one kind, or of all, fail with EIO.
pub struct Errors {
    inner: Box<dyn Media>,
    kind: Option<Kind>,
    which: Which,
    seen: u64,
    failed: VecDeque<Completion>,
}

impl Errors {
    /// Lets those of `kind` fail that `which` says.
    #[must_use]
    pub fn new(inner: Box<dyn Media>, kind: Option<Kind>, which: Which) -> Errors {
        Errors { inner, kind, which, seen: 0, failed: VecDeque::new() }
    }

    fn fails(&mut self) -> bool {
        self.seen += 1;
        match self.which {
            Which::Number(number) => self.seen == number,
            // 53 bits are a number that the comparison has exactly.
            Which::Part { part, seed } => {
                ((mixed(seed.wrapping_add(self.seen)) >> 11) as f64) < part * (1u64 << 53) as f64
            }
        }
    }
}

/// SplitMix64's output function.
fn mixed(state: u64) -> u64 {
    let mut z = state.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Media for Errors {
    fn bytes_total(&self) -> u64 {
        self.inner.bytes_total()
    }

    fn submit(&mut self, id: IoId, io: Io) {
        let kind = Kind::of(&io);
        if self.kind.is_none_or(|wanted| wanted == kind) && self.fails() {
            let call = format!("{} (an error asked for)", kind.name());
            let result = Err(MediumError::System { call, code: libc::EIO });
            self.failed.push_back(Completion { id, result });
        } else {
            self.inner.submit(id, io);
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        self.failed.pop_front().or_else(|| self.inner.complete())
    }

    fn wait(&mut self) -> Result<(), MediumError> {
        if self.failed.is_empty() { self.inner.wait() } else { Ok(()) }
    }
}
