//! The memory of a table: the process's own, or a part of the arena that outlives it.

use std::rc::Rc;

use bowline_arena::{Memory, Span};

/// Bytes zeroed by one store.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// So many words of 64 bits.
pub enum Words {
    /// Of this process.
    Own(Vec<u64>),
    /// In the arena: each store is one that a successor sees whole or not at all.
    Arena(Rc<Memory>, Span),
}

impl Words {
    /// Zeroed words of our own.
    #[must_use]
    pub fn own(count: usize) -> Words {
        Words::Own(vec![0; count])
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        match self {
            Words::Own(words) => words.len(),
            Words::Arena(_, span) => span.bytes() as usize / 8,
        }
    }

    /// A word.
    #[inline]
    #[must_use]
    pub fn get(&self, at: usize) -> u64 {
        match self {
            Words::Own(words) => words[at],
            Words::Arena(memory, span) => memory.read(span, at as u32 * 8),
        }
    }

    /// Stores a word.
    #[inline]
    pub fn set(&mut self, at: usize, value: u64) {
        match self {
            Words::Own(words) => words[at] = value,
            Words::Arena(memory, span) => memory.publish(span, at as u32 * 8, value),
        }
    }

    /// Stores zeros in a range.
    pub fn zero(&mut self, range: std::ops::Range<usize>) {
        match self {
            Words::Own(words) => words[range].fill(0),
            Words::Arena(memory, span) => {
                let (mut at, end) = (range.start * 8, range.end * 8);
                while at < end {
                    let bytes = ZEROS.len().min(end - at);
                    memory.write(span, at as u32, &ZEROS[..bytes]);
                    at += bytes;
                }
            }
        }
    }
}
