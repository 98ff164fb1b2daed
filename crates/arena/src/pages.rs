//! The allocator of pages: which bytes of a memory are in use, and by whom nobody else may be.
//!
//! The book-keeping is volatile. After a process has died, its successor builds it anew from the
//! records that name spans ([`Pages::adopt`]). Who adopts late has its pages kept until then
//! ([`Pages::keep`]).
//!
//! Invariant: a page is free here, or kept for who adopts it, or inside exactly one [`Span`]
//! outside.

use std::rc::Rc;

use crate::{Memory, Part, Span};

/// Bytes in a page: the unit of allocation, and of I/O with O_DIRECT.
pub const PAGE_BYTES: u32 = 4096;

/// A set of pages of one memory.
pub struct Pages {
    memory: Rc<Memory>,
    first: u64,
    count: u32,
    free: u32,
    used: Vec<u64>,
    /// Of the pages in use, those that are kept for who adopts them; empty if none are.
    kept: Vec<u64>,
    cursor: usize,
}

impl Pages {
    /// Takes `region` as pages, all free.
    ///
    /// # Safety
    /// No span may overlap `region`, now or later, but those made here.
    ///
    /// # Panics
    /// If the region is not made of whole pages.
    pub unsafe fn new(memory: Rc<Memory>, region: std::ops::Range<u64>) -> Pages {
        let bytes = region.end - region.start;
        let page = u64::from(PAGE_BYTES);
        assert!(region.start.is_multiple_of(page) && bytes.is_multiple_of(page), "whole pages");
        assert!(region.end <= memory.bytes_total(), "pages out of range");
        let count = u32::try_from(bytes / page).unwrap_or(u32::MAX);
        let mut used = vec![0u64; (count as usize).div_ceil(64)];
        for index in count..used.len() as u32 * 64 {
            used[index as usize / 64] |= 1 << (index % 64);
        }
        Pages { memory, first: region.start, count, free: count, used, kept: Vec::new(), cursor: 0 }
    }

    /// All of a memory as pages, all free. Safe because it can be done once to a memory, and
    /// whoever claimed spans of it otherwise has promised not to let them overlap with anything.
    ///
    /// # Panics
    /// If it is done twice to a memory.
    #[must_use]
    pub fn whole(memory: impl Into<Rc<Memory>>) -> Pages {
        let memory = memory.into();
        assert!(memory.give_away(), "a memory is given away once");
        let region = 0..memory.bytes_total();
        // SAFETY: only once, so the spans made by these pages are the only ones.
        unsafe { Pages::new(memory, region) }
    }

    /// The memory the pages belong to.
    pub fn memory(&self) -> &Rc<Memory> {
        &self.memory
    }

    /// Number of pages in all.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Number of free pages.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// A span of `pages` neighbouring pages, or none if there is no such run.
    pub fn take(&mut self, pages: u32) -> Option<Span> {
        if pages == 0 || pages > self.free {
            return None;
        }
        let start = self.find(self.cursor * 64, pages).or_else(|| self.find(0, pages))?;
        for (word, mask) in masks(start..start + pages as usize) {
            self.used[word] |= mask;
        }
        self.free -= pages;
        self.cursor = (start + pages as usize) / 64 % self.used.len();
        let offset = self.first + start as u64 * u64::from(PAGE_BYTES);
        // SAFETY: these pages were free, so no span covers them, and are marked used now.
        Some(unsafe { self.memory.claim(Part { offset, bytes: pages * PAGE_BYTES }) })
    }

    /// Spans that together have `pages` pages, as few as can be had; none if there are not enough.
    pub fn take_scattered(&mut self, pages: u32, run_pages_max: u32) -> Option<Vec<Span>> {
        if pages > self.free {
            return None;
        }
        let (mut spans, mut left, mut run) = (Vec::new(), pages, run_pages_max.max(1));
        while left > 0 {
            run = run.min(left);
            match self.take(run) {
                Some(span) => {
                    spans.push(span);
                    left -= run;
                }
                None => run = run.div_ceil(2).min(run - 1),
            }
        }
        Some(spans)
    }

    /// Gives a span back.
    ///
    /// # Panics
    /// If the span is not made of whole pages of this set that are in use.
    pub fn give(&mut self, span: Span) {
        if span.bytes() == 0 {
            return;
        }
        let range = self.range(span.part());
        for (word, mask) in masks(range.clone()) {
            assert!(self.used[word] & mask == mask, "pages {range:?} are given back twice");
            self.used[word] &= !mask;
        }
        self.free += range.len() as u32;
    }

    /// A span for pages that a record of the dead owner names. None if the part is not made of
    /// whole free pages of this set: the record is damaged.
    pub fn adopt(&mut self, part: Part) -> Option<Span> {
        let range = self.checked(part)?;
        let kept = |word: usize| self.kept.get(word).copied().unwrap_or(0);
        if masks(range.clone()).any(|(word, mask)| self.used[word] & !kept(word) & mask != 0) {
            return None;
        }
        for (word, mask) in masks(range) {
            self.free -= (mask & !self.used[word]).count_ones();
            self.used[word] |= mask;
            if let Some(kept) = self.kept.get_mut(word) {
                *kept &= !mask;
            }
        }
        // SAFETY: these pages were free or kept, so no span covers them, and are marked used now.
        Some(unsafe { self.memory.claim(part) })
    }

    /// Keeps pages that a record of the dead owner names from being taken: [`Pages::adopt`] still
    /// gives them out, once. Pages in use stay as they are. False if the part is not made of whole
    /// pages of this set: the record is damaged.
    pub fn keep(&mut self, part: Part) -> bool {
        let Some(range) = self.checked(part) else { return false };
        self.kept.resize(self.used.len(), 0);
        for (word, mask) in masks(range) {
            let news = mask & !self.used[word];
            self.free -= news.count_ones();
            self.used[word] |= news;
            self.kept[word] |= news;
        }
        true
    }

    /// Frees what was kept and not adopted.
    pub fn release_kept(&mut self) {
        for (word, kept) in std::mem::take(&mut self.kept).into_iter().enumerate() {
            self.used[word] &= !kept;
            self.free += kept.count_ones();
        }
    }

    /// The pages of a part that somebody else has named.
    fn checked(&self, part: Part) -> Option<std::ops::Range<usize>> {
        let page = u64::from(PAGE_BYTES);
        let end = part.offset.checked_add(u64::from(part.bytes))?;
        let limit = self.first + u64::from(self.count) * page;
        if part.bytes == 0 || part.offset < self.first || end > limit {
            return None;
        }
        if !(part.offset - self.first).is_multiple_of(page) || !end.is_multiple_of(page) {
            return None;
        }
        Some(self.range(part))
    }

    fn range(&self, part: Part) -> std::ops::Range<usize> {
        let page = u64::from(PAGE_BYTES);
        assert!(part.offset >= self.first, "a span of other pages");
        let start = (part.offset - self.first) / page;
        let end = start + u64::from(part.bytes) / page;
        assert!(u64::from(part.bytes).is_multiple_of(page), "whole pages");
        assert!(end <= u64::from(self.count), "a span of other pages");
        start as usize..end as usize
    }

    /// First index at or after `from` where `pages` free pages lie side by side.
    fn find(&self, from: usize, pages: u32) -> Option<usize> {
        let mut start = self.next(from, false)?;
        loop {
            // The bits past the last page are set, so a free run ends inside the words or at
            // their end.
            let end = self.next(start, true).unwrap_or(self.used.len() * 64);
            if end - start >= pages as usize {
                return Some(start);
            }
            start = self.next(end, false)?;
        }
    }

    /// First index at or after `from` of a page that is in use, or free.
    fn next(&self, from: usize, used: bool) -> Option<usize> {
        let flip = if used { 0 } else { u64::MAX };
        let mut skip = from % 64;
        for index in from / 64..self.used.len() {
            let wanted = (self.used[index] ^ flip) >> skip << skip;
            if wanted != 0 {
                return Some(index * 64 + wanted.trailing_zeros() as usize);
            }
            skip = 0;
        }
        None
    }
}

/// The words that hold the bits of a range, and which of their bits.
fn masks(range: std::ops::Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    let (first, last) = (range.start / 64, (range.end - 1) / 64);
    (first..=last).map(move |word| {
        let low = if word == first { u64::MAX << (range.start % 64) } else { u64::MAX };
        let high = if word == last { u64::MAX >> (63 - (range.end - 1) % 64) } else { u64::MAX };
        (word, low & high)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(count: u64) -> Pages {
        let bytes = count * u64::from(PAGE_BYTES);
        // SAFETY: a fresh memory without spans.
        unsafe { Pages::new(Rc::new(Memory::private(bytes)), 0..bytes) }
    }

    #[test]
    fn takes_every_page_once_and_takes_them_back() {
        let mut set = pages(130);
        let spans: Vec<Span> = std::iter::from_fn(|| set.take(1)).collect();
        assert_eq!(spans.len(), 130);
        assert_eq!(set.free(), 0);
        let mut offsets: Vec<u64> = spans.iter().map(|span| span.part().offset).collect();
        offsets.sort_unstable();
        offsets.dedup();
        assert_eq!(offsets.len(), 130);
        for span in spans {
            set.give(span);
        }
        assert_eq!(set.take(130).map(|span| span.bytes()), Some(130 * PAGE_BYTES));
    }

    #[test]
    fn scattered_pages_fill_the_gaps() {
        let mut set = pages(64);
        let spans: Vec<Span> = std::iter::from_fn(|| set.take(4)).collect();
        for (index, span) in spans.into_iter().enumerate() {
            if index % 2 == 0 {
                set.give(span);
            }
        }
        assert!(set.take(5).is_none());
        let found = set
            .take_scattered(30, 8)
            .map(|spans| spans.iter().map(Span::bytes).sum::<u32>() / PAGE_BYTES);
        assert_eq!(found, Some(30));
        assert_eq!(set.free(), 2);
    }

    #[test]
    fn an_empty_span_is_nothing_to_give() {
        let mut set = pages(3);
        let empty = set.take(1).map(|mut span| (span.split_off(4096), span));
        let Some((empty, page)) = empty else { panic!("no page") };
        set.give(empty);
        assert_eq!(set.free(), 2);
        set.give(page);
        assert_eq!(set.free(), 3);
    }

    #[test]
    fn adoption_refuses_what_is_not_free() {
        let mut set = pages(8);
        let part = Part { offset: 4096, bytes: 8192 };
        assert!(set.adopt(part).is_some());
        assert!(set.adopt(part).is_none());
        assert!(set.adopt(Part { offset: 100, bytes: 4096 }).is_none());
        assert!(set.adopt(Part { offset: u64::MAX - 4, bytes: 4096 }).is_none());
        assert!(set.adopt(Part { offset: 7 * 4096, bytes: 8192 }).is_none());
    }

    #[test]
    fn kept_pages_are_adopted_and_never_taken() {
        let mut set = pages(100);
        let part = |page: u64, pages: u32| Part { offset: page * 4096, bytes: pages * PAGE_BYTES };
        let taken = set.take(3).unwrap_or_else(|| panic!("no pages"));
        assert!(set.keep(part(2, 4)) && set.keep(part(4, 70)));
        assert!(!set.keep(part(99, 2)) && !set.keep(Part { offset: 7, bytes: 4096 }));
        assert_eq!(set.free(), 100 - 3 - 71);
        assert!(set.adopt(part(2, 2)).is_none(), "in use already");
        let first = set.adopt(part(3, 2)).unwrap_or_else(|| panic!("kept"));
        assert!(set.adopt(part(3, 2)).is_none(), "adopted twice");
        assert!(set.take(27).is_none() && set.take(26).is_some());
        set.give(first);
        assert_eq!(set.free(), 2);
        set.release_kept();
        assert_eq!(set.free(), 71);
        set.give(taken);
        assert_eq!(set.take(74).map(|span| span.bytes()), Some(74 * PAGE_BYTES));
    }

    #[test]
    fn a_thousand_changes_agree_with_a_list_of_pages() {
        const COUNT: u64 = 200;
        let mut set = pages(COUNT);
        let mut model = [false; COUNT as usize];
        let mut held: Vec<Span> = Vec::new();
        let mut state = 1u64;
        for _ in 0..if cfg!(miri) { 50 } else { 5000 } {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let draw = (state >> 33) as usize;
            if draw.is_multiple_of(2) && !held.is_empty() {
                let span = held.swap_remove(draw / 2 % held.len());
                let part = span.part();
                let first = part.offset as usize / 4096;
                model[first..first + part.bytes as usize / 4096].fill(false);
                set.give(span);
            } else {
                let wanted = draw / 2 % 70 + 1;
                let fits = model.windows(wanted).any(|run| run.iter().all(|used| !used));
                let span = set.take(wanted as u32);
                assert_eq!(span.is_some(), fits, "{wanted} pages");
                if let Some(span) = span {
                    let first = span.part().offset as usize / 4096;
                    let places = &mut model[first..first + wanted];
                    assert!(places.iter().all(|used| !used));
                    places.fill(true);
                    held.push(span);
                }
            }
            assert_eq!(set.free() as usize, model.iter().filter(|used| !**used).count());
        }
    }
}
