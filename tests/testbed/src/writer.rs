//! A client that writes until its server dies, and then judges the successor.

#![allow(clippy::expect_used)]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::history::{BLOCK_BYTES, Broken, History, mix};
use crate::nbd::{Address, Client, FUA, Request};
use crate::server::Crash;

use libc_numbers::{BROKEN_PIPE, CONNECTION_RESET, NO_ENTRY, REFUSED};

/// Blocks of a writer's own region of the disk.
const REGION_BLOCKS: u64 = 2048;
const READ_BLOCKS: u64 = 256;

/// Requests in flight on one connection that a server is to be killed with.
pub const DEEP: usize = 128;

/// How a writer behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Habit {
    /// Requests it keeps in flight.
    depth: usize,
    /// The longest write.
    blocks_max: u64,
    /// It flushes after so many writes; 0: never.
    flush_every: u64,
    /// Whether every fourth write is durable by itself.
    fua: bool,
}

impl Habit {
    /// Never.
    pub const NEVER_FLUSHES: Habit =
        Habit { depth: 16, blocks_max: 16, flush_every: 0, fua: false };
    /// As many requests in flight as a connection has to bear.
    pub const DEEP: Habit = Habit { depth: DEEP, blocks_max: 4, flush_every: 100, fua: false };
    /// Now and then.
    pub const FLUSHES: Habit = Habit { depth: 8, blocks_max: 4, flush_every: 32, fua: false };
    /// Some of its writes are durable by themselves.
    pub const FUA: Habit = Habit { depth: 4, blocks_max: 64, flush_every: 0, fua: true };
    /// The order of such writes is known, so that a prefix can be judged.
    pub const ONE_BY_ONE: Habit = Habit { depth: 1, blocks_max: 1, flush_every: 23, fua: false };
}

/// How far all writers are.
#[derive(Default)]
pub struct Progress {
    writes: AtomicU64,
    deepest: AtomicUsize,
    is_stopping: AtomicBool,
    is_leaving: AtomicBool,
    /// The longest time that a connection with requests in flight heard nothing, in microseconds.
    silence_max: AtomicU64,
}

impl Progress {
    /// Writes that were acknowledged.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes.load(Ordering::Relaxed)
    }

    /// The server is told to stop from now on: it takes its socket away, perhaps before a writer's
    /// thread has begun.
    pub fn stopping(&self) {
        self.is_stopping.store(true, Ordering::SeqCst);
    }

    /// Writers wait for their last answers, and end.
    pub fn leave(&self) {
        self.is_leaving.store(true, Ordering::SeqCst);
    }

    /// The longest time since the last call that a connection with requests in flight heard
    /// nothing.
    pub fn take_silence(&self) -> Duration {
        Duration::from_micros(self.silence_max.swap(0, Ordering::Relaxed))
    }

    fn is_end(&self, code: i32) -> bool {
        is_death(code) || (code == NO_ENTRY && self.is_stopping.load(Ordering::SeqCst))
    }

    /// The most requests that were in flight on one connection.
    #[must_use]
    pub fn deepest(&self) -> usize {
        self.deepest.load(Ordering::Relaxed)
    }
}

/// A writer and what it was told.
pub struct Writer {
    habit: Habit,
    address: Address,
    export: String,
    history: History,
    random: u64,
}

/// What a connection waits for.
#[derive(Default)]
struct InFlight {
    /// Number of the write, and its blocks.
    writes: BTreeMap<u64, (u64, u64)>,
    /// A flush, and what it covers.
    flush: Option<u64>,
}

const FLUSH_COOKIE: u64 = u64::MAX;

impl Writer {
    /// One of this number, from 1: it has a region of the disk to itself.
    #[must_use]
    pub fn new(writer: u32, habit: Habit, address: Address, export: &str, seed: u64) -> Writer {
        Writer {
            habit,
            address,
            export: export.into(),
            history: History::new(writer),
            random: seed,
        }
    }

    /// Whether it keeps [`DEEP`] requests in flight.
    #[must_use]
    pub fn is_deep(&self) -> bool {
        self.habit.depth >= DEEP
    }

    fn first_block(&self) -> u64 {
        (u64::from(self.history.writer()) - 1) * REGION_BLOCKS
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random = mix(self.random);
        self.random % below
    }

    /// Writes until it is told to leave, on one connection, whatever becomes of processes.
    ///
    /// # Errors
    /// If it notices anything.
    pub fn live(&mut self, progress: &Progress) -> io::Result<()> {
        let client = Client::connect(&self.address, &self.export)?;
        self.write(client, &mut InFlight::default(), progress)
    }

    /// Writes until the connection ends, which is how the death of a server looks.
    ///
    /// # Panics
    /// If a request fails while the server lives.
    pub fn work(&mut self, progress: &Progress) {
        let mut flying = InFlight::default();
        let ended = Client::connect(&self.address, &self.export)
            .and_then(|client| self.write(client, &mut flying, progress));
        if let Err(error) = ended {
            // An answer with an error number is not a death: no write here may fail.
            let is_end = error.raw_os_error().is_none_or(|code| progress.is_end(code));
            assert!(is_end, "a request failed: {error}");
        }
    }

    fn write(
        &mut self,
        mut client: Client,
        flying: &mut InFlight,
        progress: &Progress,
    ) -> io::Result<()> {
        let mut since_flush = 0;
        loop {
            let is_leaving = progress.is_leaving.load(Ordering::Relaxed);
            if is_leaving && flying.writes.is_empty() && flying.flush.is_none() {
                client.disconnect();
                return Ok(());
            }
            while !is_leaving && flying.writes.len() < self.habit.depth {
                let flush_every = self.habit.flush_every;
                if flush_every > 0 && since_flush >= flush_every && flying.flush.is_none() {
                    flying.flush = Some(self.history.covered());
                    since_flush = 0;
                    client.send((Request::Flush, 0), FLUSH_COOKIE, 0, 0, &[])?;
                    if self.habit.depth == 1 {
                        break;
                    }
                }
                self.send(&mut client, flying)?;
                since_flush += 1;
            }
            progress.deepest.fetch_max(flying.writes.len(), Ordering::Relaxed);
            let asked = Instant::now();
            let reply = client.receive()?;
            let silence = asked.elapsed().as_micros() as u64;
            progress.silence_max.fetch_max(silence, Ordering::Relaxed);
            assert_eq!(reply.error, 0, "a request was answered with error {}", reply.error);
            if reply.cookie == FLUSH_COOKIE {
                let covered = flying.flush.take().expect("a flush is in flight");
                self.history.flushed(covered);
            } else {
                let known = flying.writes.remove(&reply.cookie);
                assert!(known.is_some(), "write {} is answered twice, or never sent", reply.cookie);
                self.history.acknowledge(reply.cookie);
                progress.writes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn send(&mut self, client: &mut Client, flying: &mut InFlight) -> io::Result<()> {
        // Writes in flight never overlap: which of two such wins is not promised to a client.
        let (block, blocks) = loop {
            let blocks = 1 + self.draw(self.habit.blocks_max);
            let block = self.first_block() + self.draw(REGION_BLOCKS - blocks + 1);
            let is_apart =
                |&(other, count): &(u64, u64)| other + count <= block || block + blocks <= other;
            if flying.writes.values().all(is_apart) {
                break (block, blocks);
            }
        };
        let number = self.history.send(block, blocks);
        flying.writes.insert(number, (block, blocks));
        let flags = if self.habit.fua && number.is_multiple_of(4) { FUA } else { 0 };
        let payload = self.history.payload(number);
        let offset = block * BLOCK_BYTES as u64;
        client.send((Request::Write, flags), number, offset, payload.len() as u32, &payload)
    }

    /// Reads everything back and holds it against what was promised; then goes on from there.
    ///
    /// # Errors
    /// The first promise that was broken.
    ///
    /// # Panics
    /// If the server is not there, or cannot read.
    pub fn judge(&mut self, crash: Crash) -> Result<(), Broken> {
        let mut client = Client::connect(&self.address, &self.export).expect("the server is back");
        let mut found = BTreeMap::new();
        let first = self.first_block();
        for start in (first..first + REGION_BLOCKS).step_by(READ_BLOCKS as usize) {
            let offset = start * BLOCK_BYTES as u64;
            let bytes = READ_BLOCKS as usize * BLOCK_BYTES;
            let data = client.read(offset, bytes as u32).expect("what was written can be read");
            for (at, block) in data.chunks(BLOCK_BYTES).enumerate() {
                found.insert(start + at as u64, block.to_vec());
            }
        }
        client.disconnect();
        match crash {
            Crash::Process => self.history.judge_process(&found)?,
            Crash::Host => self.history.judge_host(&found)?,
        }
        self.history.settle(&found);
        Ok(())
    }
}

fn is_death(code: i32) -> bool {
    [CONNECTION_RESET, BROKEN_PIPE, REFUSED].contains(&code)
}

/// Linux's numbers for a connection that is no more.
mod libc_numbers {
    pub const NO_ENTRY: i32 = 2;
    pub const BROKEN_PIPE: i32 = 32;
    pub const CONNECTION_RESET: i32 = 104;
    pub const REFUSED: i32 = 111;
}
