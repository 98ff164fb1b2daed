//! Lists of spans: a word for each page of the arena says where a list goes on.
//!
//! ```text
//! bits 0..28   first page of the next span + 1, or 0 at the end
//! bits 28..36  pages of this span
//! bits 36..64  owner
//! ```
//!
//! A list is named by its first page. Its words are stored while nobody else has these pages, and
//! before the record that names it; the owner in each word tells a list that has been taken apart,
//! whose pages went on to somebody else.

use std::rc::Rc;

use bowline_arena::{Memory, PAGE_BYTES, Part, Span};

const PAGE_MASK: u64 = (1 << 28) - 1;

/// Who holds a list of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A request's payload: its slot and generation.
    Request(u32, u32),
    /// A reply's data: the session and the number of the reply record.
    Reply(u32, u32),
}

impl Owner {
    fn mark(self) -> u64 {
        let (kind, slot, number) = match self {
            Owner::Request(slot, generation) => (0u64, slot, generation),
            Owner::Reply(slot, number) => (1, slot, number),
        };
        kind << 27 | u64::from(slot & 0xffff) << 11 | u64::from(number & 0x7ff)
    }
}

pub(crate) struct Links {
    memory: Rc<Memory>,
    span: Span,
}

impl Links {
    pub(super) fn new(memory: Rc<Memory>, span: Span) -> Links {
        Links { memory, span }
    }

    /// Stores a list. Returns its first page + 1.
    ///
    /// # Panics
    /// If a part is not whole pages, or more than 255.
    pub fn store(&mut self, owner: Owner, parts: impl DoubleEndedIterator<Item = Part>) -> u32 {
        let mut next = 0;
        for part in parts.rev() {
            let page = part.offset / u64::from(PAGE_BYTES);
            let pages = part.bytes / PAGE_BYTES;
            assert!(pages > 0 && pages < 256, "a span of {pages} pages");
            let word = next | u64::from(pages) << 28 | owner.mark() << 36;
            self.memory.publish(&mut self.span, page as u32 * 8, word);
            next = page + 1;
        }
        next as u32
    }
}

/// The parts of a list that holds `bytes` bytes, as a dead process left it. None if it is no list
/// of this owner's.
pub(super) fn walk(
    links: impl Fn(u32) -> Option<u64>,
    first: u32,
    owner: Owner,
    bytes: u32,
) -> Option<Vec<Part>> {
    let (mut parts, mut left, mut next) = (Vec::new(), u64::from(bytes), u64::from(first));
    while left > 0 {
        let page = next.checked_sub(1)?;
        let word = links(u32::try_from(page).ok()?)?;
        let pages = word >> 28 & 0xff;
        if word >> 36 != owner.mark() || pages == 0 {
            return None;
        }
        let bytes = pages as u32 * PAGE_BYTES;
        parts.push(Part { offset: page * u64::from(PAGE_BYTES), bytes });
        left = left.saturating_sub(u64::from(bytes));
        next = word & PAGE_MASK;
    }
    (next == 0).then_some(parts)
}
