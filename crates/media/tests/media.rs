//! Media on real files and devices, and every filter on top of them.

#![allow(clippy::expect_used, reason = "a test says so and ends")]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bowline_arena::{Memory, Pages, Ring, RingOptions, SharedPages, Span};
use bowline_media::filters::{Kind, log};
use bowline_media::{
    Clock, FlushPlace, MediaEvents, OpenOptions, Opened, TargetKind, Writers, conformance,
    create_file, open, writers, writers_gone,
};
use bowline_store::{Io, IoId, Media, MediumError, Micros};

const BYTES: u64 = 8 << 20;
const CLASS: u8 = 5;
const PATIENCE: Duration = Duration::from_secs(10);

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
    pages: SharedPages,
    ring: Option<Rc<RefCell<Ring>>>,
}

/// A file to be a medium, and memory; with a ring if asked for and the system gives one.
fn place(with_ring: bool) -> Option<Place> {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let path = directory.path().join("medium");
    create_file(&path, BYTES, true).expect("file");
    let pages = Pages::whole(Memory::private(4 << 20));
    let ring =
        with_ring.then(|| Ring::anonymous(Rc::clone(pages.memory()), RingOptions::default()));
    let ring = match ring.transpose() {
        Ok(ring) => ring.map(|ring| Rc::new(RefCell::new(ring))),
        Err(refused) => panic!("the ring cannot be tested here: {refused}"),
    };
    Some(Place { _directory: directory, path, pages: Rc::new(RefCell::new(pages)), ring })
}

impl Place {
    fn options(&self, filters: &[&str]) -> OpenOptions {
        let parsed = filters.iter().map(|spec| spec.parse().expect("specification"));
        OpenOptions {
            filters: parsed.collect(),
            ring: self.ring.clone().map(|ring| (ring, CLASS)),
            ..OpenOptions::new(self.memory())
        }
    }

    fn memory(&self) -> Rc<Memory> {
        Rc::clone(self.pages.borrow().memory())
    }

    fn open(&self, filters: &[&str]) -> Opened {
        open(&self.path, self.options(filters)).expect("opened")
    }

    fn page(&self, byte: u8) -> Span {
        let mut span = self.pages.borrow_mut().take(1).expect("a page");
        self.memory().slice_mut(&mut span).fill(byte);
        span
    }
}

/// A place with a ring and one without.
fn places() -> impl Iterator<Item = Place> {
    [true, false].into_iter().filter_map(place)
}

fn run(media: &mut dyn Media, io: Io) -> Result<(), MediumError> {
    media.submit(IoId(1), io);
    loop {
        if let Some(completion) = media.complete() {
            assert_eq!(completion.id, IoId(1));
            return completion.result;
        }
        media.wait().expect("waited");
    }
}

fn write(media: &mut dyn Media, at: u64, span: &Span) -> Result<(), MediumError> {
    run(media, Io::Write { at, from: vec![span.part()] })
}

#[test]
fn media_conform() {
    for place in places() {
        for flush in [FlushPlace::Auto, FlushPlace::DataThread, FlushPlace::Flusher] {
            for direct in [true, false] {
                let options = OpenOptions { flush, direct, ..place.options(&[]) };
                let mut opened = open(&place.path, options).expect("opened");
                assert_eq!(opened.kind, TargetKind::File);
                assert_eq!(opened.media.bytes_total(), BYTES);
                assert_eq!(opened.direct, direct);
                conformance::check(opened.media.as_mut(), &place.pages);
                for kind in Kind::ALL {
                    assert!(opened.statistics.of(kind).completed > 0, "{}", kind.name());
                }
            }
        }
    }
}

#[test]
fn filters_conform() {
    for place in places() {
        let log = format!("log={}", place.path.with_extension("log").display());
        let words = format!("data-less={}", place.path.with_extension("words").display());
        let stacks: [&[&str]; 11] = [
            &["delay=1ms"],
            &["flush-delay=50ms", "delay=read:10ms"],
            &["error=0"],
            &["error=write:#100000"],
            &["rate=100K"],
            &["statistics"],
            &["volatile"],
            &[&log],
            &[&words],
            &["volatile", &words, "delay=1ms"],
            &["delay=2ms", "rate=1M", &log, "volatile", "statistics", "delay=write:1s"],
        ];
        let staging = place.page(0);
        for stack in stacks {
            let clock = Clock::manual();
            let options =
                OpenOptions { clock, staging: Some(staging.part()), ..place.options(stack) };
            let mut opened = open(&place.path, options).expect("opened");
            conformance::check(opened.media.as_mut(), &place.pages);
        }
    }
}

#[test]
fn conformance_notices_what_is_wrong() {
    let Some(place) = place(false) else { return };
    for broken in ["error=read:#30", "error=write:1", "error=flush:#2", "error=discard:#1"] {
        let mut opened = place.open(&[broken]);
        let pages = Rc::clone(&place.pages);
        let check = std::panic::AssertUnwindSafe(|| {
            conformance::check(opened.media.as_mut(), &pages);
        });
        assert!(std::panic::catch_unwind(check).is_err(), "{broken} passed");
        place.pages.replace(Pages::whole(place.memory().successor()));
    }
}

#[test]
fn an_event_loop_drives_the_ring_and_its_wake_ups() {
    let Some(place) = place(true) else { return };
    let options = OpenOptions { flush: FlushPlace::Flusher, ..place.options(&[]) };
    let Opened { mut media, events, .. } = open(&place.path, options).expect("opened");
    let ring = place.ring.clone().expect("ring");
    let span = place.page(3);
    let mut back = Vec::new();
    for round in 0..50 {
        media.submit(IoId(round * 3), Io::Write { at: 0, from: vec![span.part()] });
        media.submit(IoId(round * 3 + 1), Io::Flush);
        media.submit(IoId(round * 3 + 2), Io::Discard { at: 4096, bytes: 4096 });
        let due = (round as usize + 1) * 3;
        while back.len() < due {
            events.begin_round();
            while let Some(completion) = media.complete() {
                assert_eq!(completion.result, Ok(()));
                back.push(completion.id.0);
            }
            if back.len() < due {
                ring.borrow_mut().wait(None, Duration::ZERO).expect("waited");
            }
            loop {
                let Some(completed) = ring.borrow_mut().completion() else { break };
                assert_eq!(completed.user_data.class(), CLASS);
                events.on_completion(completed);
            }
        }
    }
    back.sort_unstable();
    assert!(back.into_iter().eq(0..150));
}

#[test]
fn a_round_of_the_event_loop_is_told_of_a_few_operations() {
    let Some(place) = place(true) else { return };
    let Opened { mut media, events, .. } = open(&place.path, place.options(&[])).expect("opened");
    let ring = place.ring.clone().expect("ring");
    let span = place.page(3);
    let all = 20;
    for number in 0..all {
        media.submit(IoId(number), Io::Write { at: 0, from: vec![span.part()] });
    }
    for _ in 0..all {
        while !ring.borrow().ready() {
            ring.borrow_mut().wait(None, Duration::ZERO).expect("waited");
        }
        events.on_completion(ring.borrow_mut().completion().expect("ready"));
    }
    let rounds = [(); 4].map(|()| {
        events.begin_round();
        std::iter::from_fn(|| media.complete()).count()
    });
    assert_eq!(rounds, [8, 8, 4, 0]);
}

#[test]
fn an_event_loop_polls_the_threads() {
    use rustix::event::{PollFd, PollFlags, poll};
    let Some(place) = place(false) else { return };
    let Opened { mut media, events, .. } = place.open(&[]);
    assert_eq!(events.name(), "threads");
    let descriptor = events.wake_descriptor().expect("descriptor");
    // SAFETY: the events keep the descriptor open.
    let descriptor = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
    let span = place.page(3);
    for round in 0..50 {
        media.submit(IoId(round), Io::Write { at: 0, from: vec![span.part()] });
        poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], None).expect("polled");
        let completion = media.complete().expect("a completion");
        assert_eq!((completion.id, completion.result), (IoId(round), Ok(())));
        assert!(media.complete().is_none());
        let quiet = rustix::event::Timespec::default();
        let ready = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&quiet));
        assert_eq!(ready, Ok(0), "nothing waits any more");
    }
}

#[test]
fn a_mounted_device_is_in_use() {
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mounts") else { return };
    let devices = mounts.lines().filter_map(|line| line.split(' ').next());
    let looked: Vec<Writers> = devices
        .filter(|name| name.starts_with("/dev/"))
        .filter_map(|name| writers(Path::new(name)).ok())
        .collect();
    // An ordinary user may not look; then there is nothing to be asserted.
    assert!(looked.iter().all(|found| *found == Writers::Some), "{looked:?}");
}

#[test]
fn errors_say_what_was_tried() {
    for place in places() {
        let span = place.page(1);
        let options = OpenOptions { read_only: true, ..place.options(&[]) };
        let mut opened = open(&place.path, options).expect("opened");
        let error = write(opened.media.as_mut(), 8192, &span).expect_err("read only");
        let expected = "write of 4096 bytes at 8192: Bad file descriptor";
        assert!(error.to_string().starts_with(expected), "{error}");
        // The file is cut short behind the medium's back.
        let file = std::fs::File::options().write(true).open(&place.path).expect("file");
        file.set_len(4096).expect("cut");
        let read = Io::Read { at: 8192, into: span.part() };
        let error = run(opened.media.as_mut(), read).expect_err("short");
        assert_eq!(error.to_string(), "read of 4096 bytes at 8192: only 0 bytes");
        assert_eq!(opened.media.bytes_total(), 4096);
        file.set_len(BYTES).expect("grown");
        assert_eq!(opened.media.bytes_total(), BYTES, "growth is seen");
    }
    assert!(
        open(Path::new("/dev/null"), OpenOptions::new(Rc::new(Memory::private(4096)))).is_err()
    );
}

#[test]
fn delays_follow_the_clock() {
    let Some(place) = place(false) else { return };
    let clock = Clock::manual();
    let options = OpenOptions { clock: clock.clone(), ..place.options(&["flush-delay=2ms"]) };
    let Opened { mut media, statistics, .. } = open(&place.path, options).expect("opened");
    let span = place.page(1);
    assert_eq!(write(media.as_mut(), 0, &span), Ok(()));
    assert_eq!(clock.now(), Micros(0), "writes are not delayed");
    media.submit(IoId(9), Io::Flush);
    while clock.take_alarm().is_none() {
        assert!(media.complete().is_none());
    }
    assert_eq!(statistics.of(Kind::Flush).completed, 1, "the medium is done");
    clock.advance(Duration::from_micros(1999));
    assert!(media.complete().is_none());
    assert_eq!(clock.take_alarm(), Some(Micros(2000)));
    clock.advance(Duration::from_micros(1));
    assert_eq!(media.complete().map(|completion| completion.id), Some(IoId(9)));
    assert_eq!(clock.take_alarm(), None);
    assert_eq!(run(media.as_mut(), Io::Flush), Ok(()));
    assert_eq!(clock.now(), Micros(4000), "waiting lets the time pass");
}

#[test]
fn a_rate_is_kept() {
    let Some(place) = place(false) else { return };
    let clock = Clock::manual();
    let options = OpenOptions { clock: clock.clone(), ..place.options(&["rate=4M"]) };
    let mut media = open(&place.path, options).expect("opened").media;
    let span = place.page(1);
    for _ in 0..1024 {
        assert_eq!(write(media.as_mut(), 0, &span), Ok(()));
    }
    // 4 MiB at 4 MiB a second, less what division to whole microseconds drops.
    assert!((990_000..=1_000_000).contains(&clock.now().0), "{:?}", clock.now());
}

#[test]
fn errors_come_where_they_are_asked_for() {
    let Some(place) = place(false) else { return };
    let span = place.page(1);
    let mut media = place.open(&["error=write:#3"]).media;
    let results: Vec<bool> = (0..5).map(|_| write(media.as_mut(), 0, &span).is_ok()).collect();
    assert_eq!(results, [true, true, false, true, true]);
    let failures = |spec: &str| {
        let mut media = place.open(&[spec]).media;
        (0..1000).filter(|_| write(media.as_mut(), 0, &span).is_err()).collect::<Vec<u32>>()
    };
    let some = failures("error=0.1@7");
    assert!((50..200).contains(&some.len()), "{} of 1000", some.len());
    assert_eq!(some, failures("error=0.1@7"), "a seed repeats");
    assert_ne!(some, failures("error=0.1@8"));
    assert_eq!(failures("error=read:1").len(), 0);
}

#[test]
fn statistics_count_what_passes() {
    let Some(place) = place(false) else { return };
    let span = place.page(1);
    let Opened { mut media, statistics, filter_statistics, .. } =
        place.open(&["statistics", "error=write:#2"]);
    for _ in 0..4 {
        let _ = write(media.as_mut(), 0, &span);
    }
    assert_eq!(run(media.as_mut(), Io::Flush), Ok(()));
    let (below, above) = (statistics.of(Kind::Write), filter_statistics[0].of(Kind::Write));
    assert_eq!((below.submitted, below.completed, below.bytes), (3, 3, 3 * 4096));
    assert_eq!((above.submitted, above.completed, above.failed), (4, 3, 1));
    assert_eq!(statistics.of(Kind::Flush).completed, 1);
    assert_eq!(filter_statistics[0].in_flight_max(), 1);
}

#[test]
fn a_log_tells_everything_and_survives_being_cut() {
    let Some(place) = place(false) else { return };
    let path = place.path.with_extension("log");
    let spec = format!("log={}", path.display());
    let (one, two) = (place.page(1), place.page(2));
    {
        let mut media = place.open(&[&spec]).media;
        let from = vec![two.part(), one.part()];
        assert_eq!(run(media.as_mut(), Io::Write { at: 4096, from }), Ok(()));
        assert_eq!(run(media.as_mut(), Io::Flush), Ok(()));
        assert!(run(media.as_mut(), Io::Read { at: BYTES, into: one.part() }).is_err());
    }
    let entries = |path: &Path| -> Vec<log::Entry> {
        log::read(path).expect("log").map(|entry| entry.expect("entry")).collect()
    };
    let submitted =
        |kind, at, bytes, data| log::Entry::Submitted { id: IoId(1), kind, at, bytes, data };
    let completed = |well| log::Entry::Completed { id: IoId(1), well };
    let expected = [
        submitted(Kind::Write, 4096, 8192, [[2; 4096], [1; 4096]].concat()),
        completed(true),
        submitted(Kind::Flush, 0, 0, Vec::new()),
        completed(true),
        submitted(Kind::Read, BYTES, 4096, Vec::new()),
        completed(false),
    ];
    assert_eq!(entries(&path), expected);
    let whole = std::fs::read(&path).expect("log");
    for cut in [8192 + 32, 8192 + 31, 5000, 31, 0] {
        std::fs::write(&path, &whole[..cut]).expect("cut");
        let count = usize::from(cut >= 8192 + 32);
        assert_eq!(entries(&path), expected[..count], "cut to {cut} bytes");
    }
    let mut damaged = whole;
    damaged[0] = 99;
    std::fs::write(&path, damaged).expect("damaged");
    assert!(log::read(&path).expect("log").next().is_some_and(|entry| entry.is_err()));
}

#[test]
fn volatile_writes_are_lost_without_a_flush() {
    for place in places() {
        let (span, staging) = (place.page(1), place.page(0));
        let options = OpenOptions { staging: Some(staging.part()), ..place.options(&["volatile"]) };
        {
            let mut media = open(&place.path, options).expect("opened").media;
            assert_eq!(write(media.as_mut(), 0, &span), Ok(()));
            assert_eq!(run(media.as_mut(), Io::Flush), Ok(()));
            assert_eq!(write(media.as_mut(), 4096, &span), Ok(()));
            let into = place.page(0);
            assert_eq!(run(media.as_mut(), Io::Read { at: 4096, into: into.part() }), Ok(()));
            assert_eq!(place.memory().slice(&into), [1; 4096], "read from the cache");
        }
        let bytes = std::fs::read(&place.path).expect("medium");
        assert_eq!(bytes[..4096], [1; 4096], "flushed");
        assert_eq!(bytes[4096..8192], [0; 4096], "lost");
    }
}

/// Blocks of all sorts, written and read in all lengths, through a medium that keeps words.
#[test]
fn what_a_data_less_medium_gives_is_what_was_written() {
    for place in places() {
        std::fs::remove_file(&place.path).expect("removed");
        create_file(&place.path, BYTES, false).expect("made");
        let spec = format!("data-less={}", place.path.with_extension("words").display());
        let mut media = place.open(&[&spec]).media;
        let mut model = vec![[0u8; 4096]; 256];
        let mut random = 1u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (random >> 33) % below
        };
        for round in 0..2000u64 {
            let (first, count) = (draw(248), 1 + draw(8));
            let mut span = place.pages.borrow_mut().take(count as u32).expect("pages");
            let blocks = first as usize..(first + count) as usize;
            if draw(2) == 0 {
                for (at, block) in blocks.clone().enumerate() {
                    let word = [draw(3), round << 8 | draw(256)][draw(2) as usize].to_le_bytes();
                    let mut bytes = [0; 4096];
                    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&word));
                    if draw(4) == 0 {
                        bytes[draw(4096) as usize] ^= 1;
                    }
                    model[block] = bytes;
                    let bytes_of_span = place.memory();
                    bytes_of_span.slice_mut(&mut span)[at * 4096..][..4096].copy_from_slice(&bytes);
                }
                let io = Io::Write { at: first * 4096, from: vec![span.part()] };
                assert_eq!(run(media.as_mut(), io), Ok(()));
            } else {
                let io = Io::Read { at: first * 4096, into: span.part() };
                assert_eq!(run(media.as_mut(), io), Ok(()));
                let found = place.memory().slice(&span).to_vec();
                assert!(found == model[blocks].concat(), "round {round}, {count} at {first}");
            }
            place.pages.borrow_mut().give(span);
            if round % 500 == 499 {
                drop(media);
                media = place.open(&[&spec]).media;
            }
        }
    }
}

#[test]
fn a_data_less_medium_takes_no_space_for_regular_blocks() {
    use std::os::unix::fs::MetadataExt;
    let Some(place) = place(false) else { return };
    let path = place.path.with_extension("large");
    create_file(&path, 1 << 40, false).expect("made");
    let spec = format!("data-less={}", path.with_extension("words").display());
    let mut media = open(&path, place.options(&[&spec])).expect("opened").media;
    let span = place.page(7);
    for at in [0, 1 << 30, (1 << 40) - 4096] {
        assert_eq!(write(media.as_mut(), at, &span), Ok(()));
    }
    assert_eq!(run(media.as_mut(), Io::Allocate { at: 0, bytes: 1 << 40, zeroed: true }), Ok(()));
    let taken = |path: &Path| std::fs::metadata(path).expect("metadata").blocks() * 512;
    assert_eq!(taken(&path), 0, "nothing went below");
    let mut odd = place.page(7);
    place.memory().slice_mut(&mut odd)[4095] = 8;
    assert_eq!(write(media.as_mut(), 1 << 30, &odd), Ok(()));
    assert!(taken(&path) > 0 && taken(&path.with_extension("words")) < 1 << 20);
    let into = place.page(0);
    let last = Io::Read { at: (1 << 40) - 4096, into: into.part() };
    assert_eq!(run(media.as_mut(), last), Ok(()));
    assert_eq!(place.memory().slice(&into), [7; 4096]);
}

#[test]
fn filters_are_passed_in_the_order_in_which_they_are_named() {
    let Some(place) = place(false) else { return };
    let span = place.page(1);
    for (stack, seen_above) in
        [(["statistics", "error=write:#1"], 1), (["error=write:#1", "statistics"], 0)]
    {
        let Opened { mut media, filter_statistics, .. } = place.open(&stack);
        assert!(write(media.as_mut(), 0, &span).is_err());
        assert_eq!(filter_statistics[0].of(Kind::Write).submitted, seen_above, "{stack:?}");
    }
    let Opened { mut media, filter_statistics, .. } =
        place.open(&["statistics", "error=write:#1", "statistics"]);
    assert!(write(media.as_mut(), 0, &span).is_err());
    let seen = filter_statistics.iter().map(|one| one.of(Kind::Write).submitted);
    assert_eq!(seen.collect::<Vec<_>>(), [1, 0], "the outermost first");
}

/// Zeros are written where nothing was, and nowhere else.
#[test]
fn an_allocation_with_zeros_leaves_what_was_written() {
    for place in places() {
        std::fs::remove_file(&place.path).expect("removed");
        create_file(&place.path, BYTES, false).expect("made");
        let mut media = place.open(&[]).media;
        let span = place.page(9);
        let (at, bytes) = (1 << 20, 1 << 20);
        assert_eq!(write(media.as_mut(), at + 65536, &span), Ok(()));
        assert_eq!(run(media.as_mut(), Io::Flush), Ok(()));
        assert_eq!(run(media.as_mut(), Io::Allocate { at, bytes, zeroed: true }), Ok(()));
        let into = place.page(1);
        for (at, expected) in [(at, 0), (at + 65536, 9), (at + bytes - 4096, 0)] {
            assert_eq!(run(media.as_mut(), Io::Read { at, into: into.part() }), Ok(()));
            assert_eq!(place.memory().slice(&into), [expected; 4096], "at {at}");
        }
        let file = std::fs::File::open(&place.path).expect("file");
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(at)).expect("hole");
        assert!(hole >= at + bytes, "all of it is written");
    }
}

#[test]
fn an_allocation_takes_space_and_a_discard_gives_it_back() {
    use std::os::unix::fs::MetadataExt;
    for place in places() {
        std::fs::remove_file(&place.path).expect("removed");
        create_file(&place.path, BYTES, false).expect("made");
        let blocks = || std::fs::metadata(&place.path).expect("metadata").blocks() * 512;
        assert_eq!(blocks(), 0);
        let mut media = place.open(&[]).media;
        let (at, bytes) = (1 << 20, 3 << 20);
        assert_eq!(run(media.as_mut(), Io::Allocate { at, bytes, zeroed: false }), Ok(()));
        assert!(blocks() >= bytes);
        assert_eq!(run(media.as_mut(), Io::Discard { at, bytes }), Ok(()));
        assert!(blocks() < bytes);
        assert_eq!(media.bytes_total(), BYTES);
        assert!(create_file(&place.path, BYTES, false).is_err(), "never over a file that is there");
    }
}

/// A device has its space: nothing is written ahead to it, and what lies there stays.
#[test]
fn an_allocation_on_a_device_writes_nothing() {
    use std::os::unix::fs::MetadataExt;
    for place in places() {
        std::fs::remove_file(&place.path).expect("removed");
        create_file(&place.path, BYTES, false).expect("made");
        let device = Loop::over(&place.path).expect("a loop device: root and losetup are needed");
        let path = PathBuf::from(&device.0);
        let mut media = open(&path, place.options(&[])).expect("opened").media;
        let span = place.page(9);
        let (at, bytes) = (1 << 20, 1 << 20);
        assert_eq!(write(media.as_mut(), at + 65536, &span), Ok(()));
        assert_eq!(run(media.as_mut(), Io::Flush), Ok(()));
        let blocks = || std::fs::metadata(&place.path).expect("metadata").blocks();
        let before = blocks();
        assert_eq!(run(media.as_mut(), Io::Allocate { at, bytes, zeroed: true }), Ok(()));
        assert_eq!(run(media.as_mut(), Io::Flush), Ok(()));
        assert_eq!(blocks(), before, "the file behind the device has grown");
        let into = place.page(1);
        assert_eq!(run(media.as_mut(), Io::Read { at: at + 65536, into: into.part() }), Ok(()));
        assert_eq!(place.memory().slice(&into), [9; 4096]);
    }
}

/// A loop device over a file, if this machine lets us have one.
struct Loop(String);

impl Loop {
    fn over(path: &Path) -> Option<Loop> {
        let output = std::process::Command::new("losetup")
            .args(["--find", "--show"])
            .arg(path)
            .output()
            .ok()?;
        let name = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !name.is_empty()).then_some(Loop(name))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
        assert!(detached.is_ok_and(|status| status.success()), "{} stays", self.0);
    }
}

#[test]
fn a_block_device_conforms() {
    for place in places() {
        let Some(device) = Loop::over(&place.path) else {
            panic!("no loop device to be had: this test needs root and losetup");
        };
        let path = PathBuf::from(&device.0);
        let mut opened = open(&path, place.options(&[])).expect("opened");
        assert_eq!(opened.kind, TargetKind::Device);
        assert_eq!(writers(&path).expect("looked"), Writers::Some, "it is claimed");
        let options = OpenOptions { read_only: true, ..place.options(&[]) };
        drop(open(&path, options).expect("readers claim nothing"));
        assert!(opened.direct);
        assert_eq!(opened.media.bytes_total(), BYTES);
        conformance::check(opened.media.as_mut(), &place.pages);
        let events = matches!(opened.events, MediaEvents::Uring(_));
        assert_eq!(events, place.ring.is_some());
        drop(opened);
        assert_eq!(writers_gone(&path, PATIENCE).expect("looked"), Writers::None);
    }
}
