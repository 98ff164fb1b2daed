//! What every medium and filter must do, as a test to be run against any of them.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use bowline_arena::{SharedPages, Span};
use bowline_store::{BLOCK_BYTES, Completion, Io, IoId, Media, MediumError};

/// Bytes the medium under test must have at least.
pub const BYTES_MIN: u64 = 8 << 20;

struct Bench<'a> {
    media: &'a mut dyn Media,
    pages: &'a SharedPages,
    next: u64,
    back: HashMap<IoId, Result<(), MediumError>>,
    out: VecDeque<IoId>,
}

/// Checks a medium of at least [`BYTES_MIN`] bytes, whose content is lost, with at least 300 free
/// pages of the memory its parts name bytes of.
///
/// # Panics
/// If the medium does not do what it must.
pub fn check(media: &mut dyn Media, pages: &SharedPages) {
    assert!(media.bytes_total() >= BYTES_MIN, "a medium of {} bytes", media.bytes_total());
    let free = pages.borrow().free();
    let (back, out) = (HashMap::new(), VecDeque::new());
    let mut bench = Bench { media, pages, next: 1, back, out };
    bench.writes_are_read_back_in_the_order_of_their_parts();
    bench.everything_comes_back_once();
    bench.later_writes_win();
    bench.what_lies_past_the_end_is_an_error();
    bench.space_is_given_and_taken();
    assert!(bench.media.complete().is_none(), "something came back that nobody submitted");
    assert_eq!(pages.borrow().free(), free, "pages were lost by the test itself");
}

impl Bench<'_> {
    fn submit(&mut self, io: Io) -> IoId {
        let id = IoId(self.next);
        self.next += 7;
        self.out.push_back(id);
        self.media.submit(id, io);
        id
    }

    fn result(&mut self, id: IoId) -> Result<(), MediumError> {
        loop {
            while let Some(Completion { id, result }) = self.media.complete() {
                let at = self.out.iter().position(|out| *out == id);
                let Some(at) = at else { panic!("{id:?} came back and was not out") };
                self.out.remove(at);
                self.back.insert(id, result);
            }
            if let Some(result) = self.back.remove(&id) {
                return result;
            }
            assert!(self.out.contains(&id), "{id:?} was lost");
            assert_eq!(self.media.wait(), Ok(()));
        }
    }

    fn run(&mut self, io: Io) -> Result<(), MediumError> {
        let id = self.submit(io);
        self.result(id)
    }

    fn page(&self, byte: u8) -> Span {
        self.block(1, byte)
    }

    fn block(&self, pages: u32, byte: u8) -> Span {
        let mut set = self.pages.borrow_mut();
        let Some(mut span) = set.take(pages) else { panic!("the test needs more pages") };
        let memory = Rc::clone(set.memory());
        memory.slice_mut(&mut span).fill(byte);
        span
    }

    fn give(&self, spans: impl IntoIterator<Item = Span>) {
        spans.into_iter().for_each(|span| self.pages.borrow_mut().give(span));
    }

    /// The first byte of each block of a range, if all bytes of each block are the same.
    fn blocks(&mut self, at: u64, count: u32) -> Vec<Option<u8>> {
        let span = self.block(count, 0xee);
        assert_eq!(self.run(Io::Read { at, into: span.part() }), Ok(()));
        let memory = Rc::clone(self.pages.borrow().memory());
        let same = |block: &[u8]| block.iter().all(|b| *b == block[0]).then_some(block[0]);
        let found = memory.slice(&span).chunks(BLOCK_BYTES as usize).map(same).collect();
        self.give([span]);
        found
    }

    fn writes_are_read_back_in_the_order_of_their_parts(&mut self) {
        let spans: Vec<Span> = [3, 1, 2].into_iter().map(|byte| self.page(byte)).collect();
        let from = [1, 0, 2, 1].map(|index: usize| spans[index].part()).to_vec();
        assert_eq!(self.run(Io::Write { at: 8192, from }), Ok(()));
        assert_eq!(self.blocks(8192, 4), [Some(1), Some(3), Some(2), Some(1)]);
        assert_eq!(self.run(Io::Flush), Ok(()));
        assert_eq!(self.blocks(12288, 2), [Some(3), Some(2)]);
        self.give(spans);
        // More parts than one system call takes, none beside the next in memory.
        let two: Vec<Span> = [5, 6, 7].into_iter().map(|byte| self.page(byte)).collect();
        let from: Vec<_> = (0..1500).map(|index| two[index % 2 * 2].part()).collect();
        assert_eq!(self.run(Io::Write { at: 0, from }), Ok(()));
        let last = self.blocks(1496 * BLOCK_BYTES, 4);
        assert_eq!(last, [Some(5), Some(7), Some(5), Some(7)]);
        self.give(two);
    }

    fn everything_comes_back_once(&mut self) {
        let spans: Vec<Span> = (0..64).map(|index| self.page(index as u8 + 1)).collect();
        let mut ids = Vec::new();
        for (index, span) in spans.iter().enumerate() {
            let at = index as u64 * 2 * BLOCK_BYTES;
            ids.push(self.submit(Io::Write { at, from: vec![span.part()] }));
            if index % 16 == 0 {
                ids.push(self.submit(Io::Flush));
            }
        }
        for id in ids.into_iter().rev() {
            assert_eq!(self.result(id), Ok(()));
        }
        assert!(self.out.is_empty());
        let reads: Vec<IoId> = spans
            .iter()
            .enumerate()
            .map(|(index, span)| {
                let at = (63 - index as u64) * 2 * BLOCK_BYTES;
                self.submit(Io::Read { at, into: span.part() })
            })
            .collect();
        for id in reads {
            assert_eq!(self.result(id), Ok(()));
        }
        let memory = Rc::clone(self.pages.borrow().memory());
        for (index, span) in spans.iter().enumerate() {
            assert!(memory.slice(span).iter().all(|byte| *byte == 64 - index as u8));
        }
        self.give(spans);
    }

    fn later_writes_win(&mut self) {
        for byte in 1..20 {
            let span = self.block(2, byte);
            let at = BLOCK_BYTES * 100 + u64::from(byte % 2) * BLOCK_BYTES;
            assert_eq!(self.run(Io::Write { at, from: vec![span.part()] }), Ok(()));
            let flush = (byte % 5 == 0).then(|| self.submit(Io::Flush));
            assert_eq!(self.blocks(at, 2), [Some(byte); 2]);
            if let Some(flush) = flush {
                assert_eq!(self.result(flush), Ok(()));
            }
            self.give([span]);
        }
        assert_eq!(self.blocks(BLOCK_BYTES * 100, 3), [Some(18), Some(19), Some(19)]);
    }

    fn what_lies_past_the_end_is_an_error(&mut self) {
        let total = self.media.bytes_total();
        let span = self.block(2, 9);
        for at in [total, total - BLOCK_BYTES, u64::MAX - BLOCK_BYTES + 1] {
            assert!(self.run(Io::Read { at, into: span.part() }).is_err(), "read at {at}");
            let from = vec![span.part()];
            assert!(self.run(Io::Write { at, from }).is_err(), "write at {at}");
        }
        assert_eq!(self.media.bytes_total(), total, "the medium has grown");
        let last = total - 2 * BLOCK_BYTES;
        assert_eq!(self.run(Io::Write { at: last, from: vec![span.part()] }), Ok(()));
        assert_eq!(self.blocks(last, 2), [Some(9); 2]);
        self.give([span]);
    }

    fn space_is_given_and_taken(&mut self) {
        let (at, bytes) = (1 << 20, 1 << 20);
        let span = self.page(8);
        assert_eq!(self.run(Io::Discard { at, bytes }), Ok(()));
        assert_eq!(self.run(Io::Allocate { at, bytes, zeroed: true }), Ok(()));
        assert_eq!(self.run(Io::Write { at, from: vec![span.part()] }), Ok(()));
        assert_eq!(self.run(Io::Allocate { at, bytes, zeroed: false }), Ok(()));
        assert_eq!(self.run(Io::Flush), Ok(()));
        assert_eq!(self.blocks(at, 1), [Some(8)]);
        assert_eq!(self.run(Io::Discard { at, bytes }), Ok(()));
        self.give([span]);
    }
}
