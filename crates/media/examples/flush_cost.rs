//! What a write and a flush cost, by where the flush runs and what the file's extents are like.
//!
//! `cargo run --release -p bowline-media --example flush_cost -- DIRECTORY`

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bowline_arena::{Memory, Pages, Ring, RingOptions};
use bowline_media::{FlushPlace, OpenOptions, create_file, open};
use bowline_store::{Io, IoId, Media, MediumError};

const ROUNDS: u64 = 3000;
const STEP: u64 = 8192;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: flush_cost DIRECTORY")?;
    let directory = tempfile::tempdir_in(directory)?;
    println!("8 KiB appended, then flushed, {ROUNDS} times; microseconds for both together");
    println!(
        "{:<11} {:<24} {:>8} {:>6} {:>6} {:>6}",
        "extents", "flush", "per s", "mean", "p50", "p99"
    );
    for extents in ["written", "unwritten"] {
        let us = Duration::from_micros;
        let places = [
            ("data thread", FlushPlace::DataThread, us(0)),
            ("data thread, spin 20 us", FlushPlace::DataThread, us(20)),
            ("data thread, spin 50 us", FlushPlace::DataThread, us(50)),
            ("flusher", FlushPlace::Flusher, us(0)),
            ("flusher, spin 20 us", FlushPlace::Flusher, us(20)),
            ("flusher, spin 50 us", FlushPlace::Flusher, us(50)),
            ("auto", FlushPlace::Auto, us(0)),
        ];
        for (name, place, spin) in places {
            let path = directory.path().join(format!("{extents} {name}"));
            let mut times = measure(&path, extents == "written", place, spin)?;
            std::fs::remove_file(&path)?;
            times.sort_unstable();
            let total: u64 = times.iter().sum();
            let (mean, p50) = (total / ROUNDS, times[times.len() / 2]);
            let (rate, p99) = (ROUNDS * 1_000_000 / total, times[times.len() * 99 / 100]);
            println!("{extents:<11} {name:<24} {rate:>8} {mean:>6} {p50:>6} {p99:>6}");
        }
    }
    Ok(())
}

fn measure(
    path: &Path,
    written: bool,
    flush: FlushPlace,
    spin: Duration,
) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    let bytes = ROUNDS * STEP;
    create_file(path, bytes, true)?;
    let mut pages = Pages::whole(Memory::private(1 << 20));
    let memory = Rc::clone(pages.memory());
    let ring = Rc::new(RefCell::new(Ring::anonymous(Rc::clone(&memory), RingOptions::default())?));
    let options =
        OpenOptions { ring: Some((ring, 1)), flush, spin, ..OpenOptions::new(Rc::clone(&memory)) };
    let mut media = open(path, options)?.media;
    let mut span = pages.take(2).ok_or("no pages")?;
    memory.slice_mut(&mut span).fill(7);
    if written {
        run(media.as_mut(), Io::Allocate { at: 0, bytes, zeroed: true })?;
        run(media.as_mut(), Io::Flush)?;
    }
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let start = Instant::now();
        run(media.as_mut(), Io::Write { at: round * STEP, from: vec![span.part()] })?;
        run(media.as_mut(), Io::Flush)?;
        times.push(start.elapsed().as_micros() as u64);
    }
    pages.give(span);
    Ok(times)
}

fn run(media: &mut dyn Media, io: Io) -> Result<(), MediumError> {
    media.submit(IoId(0), io);
    loop {
        if let Some(completion) = media.complete() {
            return completion.result;
        }
        media.wait()?;
    }
}
