use super::*;
use bowline_arena::{Pages, Span};

struct Bench {
    device: SharedDevice,
    pages: Pages,
    kept: Vec<Span>,
}

fn bench(seed: u64) -> Bench {
    let pages = Pages::whole(Rc::new(Memory::private(64 * 4096)));
    let memory = pages.memory().clone();
    let device = Rc::new(RefCell::new(Device::new(64, memory.clone(), seed)));
    device.borrow_mut().succeed(memory);
    Bench { device, pages, kept: Vec::new() }
}

impl Bench {
    fn filled(&mut self, byte: u8) -> Span {
        let mut span = self.pages.take(1).unwrap();
        self.pages.memory().slice_mut(&mut span).fill(byte);
        span
    }

    fn write(&mut self, media: &mut SimMedia, id: u64, block: u64, byte: u8) {
        let span = self.filled(byte);
        media.submit(IoId(id), Io::Write { at: block * 4096, from: vec![span.part()] });
        self.kept.push(span);
    }

    fn byte(&self, block: u64) -> u8 {
        self.device.borrow_mut().platter().content(block).map_or(0, |page| page[4095])
    }
}

fn wait_one(media: &mut SimMedia) -> Completion {
    media.wait().unwrap();
    media.complete().unwrap()
}

#[test]
fn writes_come_back_once_and_reads_see_them() {
    let mut bench = bench(1);
    let mut media = SimMedia::new(&bench.device);
    bench.write(&mut media, 1, 5, 7);
    assert!(media.complete().is_none(), "no time has passed");
    let completion = wait_one(&mut media);
    assert_eq!((completion.id, completion.result), (IoId(1), Ok(())));
    assert!(media.complete().is_none());
    let other = bench.filled(0);
    media.submit(IoId(2), Io::Read { at: 5 * 4096, into: other.part() });
    assert_eq!(wait_one(&mut media).result, Ok(()));
    assert_eq!(bench.pages.memory().slice(&other), [7; 4096]);
    assert_eq!(media.wait(), Err(MediumError::Died), "nothing is under way");
}

#[test]
fn order_of_completion_is_the_seeds() {
    let mut orders = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut bench = bench(seed);
        let mut media = SimMedia::new(&bench.device);
        for id in 0..4 {
            bench.write(&mut media, id, id, 1);
        }
        orders.insert([0; 4].map(|_: u64| wait_one(&mut media).id));
    }
    assert!(orders.len() > 5);
}

#[test]
fn the_deads_writes_land_later_and_the_fence_waits_for_them() {
    let (mut before, mut after) = (0, 0);
    for seed in 0..40 {
        let mut bench = bench(seed);
        let mut media = SimMedia::new(&bench.device);
        bench.write(&mut media, 1, 0, 1);
        bench.device.borrow_mut().kill();
        assert_eq!(media.wait(), Err(MediumError::Died));
        assert!(media.complete().is_none());
        let memory = bench.pages.memory().clone();
        bench.device.borrow_mut().succeed(memory);
        if bench.device.borrow().pending_of_dead() == 0 {
            continue;
        }
        let mut media = SimMedia::new(&bench.device);
        bench.write(&mut media, 1, 0, 2);
        assert_eq!(wait_one(&mut media).result, Ok(()));
        let first = bench.byte(0);
        bench.device.borrow_mut().settle();
        assert_eq!(bench.device.borrow().pending_of_dead(), 0);
        match (first, bench.byte(0)) {
            (2, 1) => after += 1,
            (2, 2) => before += 1,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(after > 0, "some dead write undid newer data: {before} {after}");
}

#[test]
fn reads_of_the_dead_land_in_the_successors_memory() {
    let landed = (0..20).filter(|&seed| a_dead_read_lands(seed)).count();
    assert!((5..20).contains(&landed), "{landed} of 20");
}

fn a_dead_read_lands(seed: u64) -> bool {
    let mut bench = bench(seed);
    bench.device.borrow_mut().platter().spoil(9, |page| page.fill(0xaa));
    let mut media = SimMedia::new(&bench.device);
    let span = bench.filled(0);
    media.submit(IoId(1), Io::Read { at: 9 * 4096, into: span.part() });
    bench.device.borrow_mut().kill();
    let successor = Pages::whole(Rc::new(bench.pages.memory().successor()));
    bench.device.borrow_mut().succeed(successor.memory().clone());
    bench.device.borrow_mut().settle();
    let mut bytes = Vec::new();
    successor.memory().fetch(span.part(), &mut bytes);
    assert!(bytes == [0xaa; 4096] || bytes == [0; 4096]);
    bytes[0] == 0xaa
}

#[test]
fn a_process_dies_inside_a_call() {
    let mut bench = bench(4);
    let mut media = SimMedia::new(&bench.device);
    bench.device.borrow_mut().arm(Some(1));
    bench.write(&mut media, 1, 0, 1);
    let span = bench.filled(2);
    let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        media.submit(IoId(2), Io::Write { at: 4096, from: vec![span.part()] });
    }));
    assert!(died.unwrap_err().is::<Killed>());
    assert!(media.complete().is_none());
    assert_eq!(media.wait(), Err(MediumError::Died));
}

#[test]
fn bytes_that_change_under_a_write_are_reported() {
    let mut found = 0;
    for seed in 0..20 {
        let mut bench = bench(seed);
        let mut media = SimMedia::new(&bench.device);
        bench.write(&mut media, 1, 0, 1);
        let mut span = bench.kept.pop().unwrap();
        bench.pages.memory().slice_mut(&mut span).fill(9);
        wait_one(&mut media);
        found += bench.device.borrow_mut().take_broken_rules().len();
    }
    assert!(found > 0);
}

#[test]
fn errors_are_drawn_and_a_lying_flush_keeps_nothing() {
    let mut bench = bench(5);
    *bench.device.borrow_mut().faults() =
        Faults { errors: [0, 100_000, 0], left: 1, lies: 100_000, ..Faults::default() };
    let mut media = SimMedia::new(&bench.device);
    bench.write(&mut media, 1, 0, 1);
    assert!(matches!(wait_one(&mut media).result, Err(MediumError::System { code: 5, .. })));
    bench.write(&mut media, 2, 0, 1);
    assert_eq!(wait_one(&mut media).result, Ok(()));
    media.submit(IoId(3), Io::Flush);
    assert_eq!(wait_one(&mut media).result, Ok(()));
    assert_eq!(bench.device.borrow_mut().platter().volatile_count(), 1);
}
