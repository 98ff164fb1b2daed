//! The real store as the simulator's subject.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use bowline_arena::{Pages, SharedPages};
use bowline_store::{
    ArenaRegion, BlockState, Broken, CreateOptions, Disk, DiskId, Durability, Event, Lba, Micros,
    Payload, PoolId, PoolState, Provision, Refused, ScrubState, Store, StoreError, StoreOptions,
    Ticket, create, index_bytes,
};

use crate::media::SimMedia;
use crate::model::Value;
use crate::platter::PAGE;
use crate::subject::{Health, Host, OpenError, Run, Setup, Subject, Told};

/// The behaviours that can be broken on purpose, each to be found by the oracle.
pub const BROKEN: &[&str] = &[
    "no-chain",
    "no-epoch-record",
    "reuse-before-checkpoint",
    "no-flush-at-recovery",
    "flush-lies",
    "checkpoint-ahead-of-log",
    "stale-image",
    "ignore-arena",
    "skip-fence",
    "count-what-is-freed",
];

/// One more, which only damage shows.
pub const BROKEN_SCRUB: &str = "blind-scrub";

/// Those that only a failing medium shows.
pub const BROKEN_HEALING: &[&str] =
    &["heal-trusts-medium", "heal-without-root", "heal-answers-early"];

const CONTROL_PAGES: u32 = 64;
/// Bytes for changes of the map.
const DELTA_BYTES: usize = 128 << 10;
const EXTENTS_MAX: usize = 32;

/// An open pool on a simulated device.
pub struct Pool {
    store: Store<SimMedia>,
    pages: SharedPages,
    ids: BTreeMap<u32, DiskId>,
}

impl Pool {
    fn id(&self, disk: u32) -> DiskId {
        self.ids.get(&disk).copied().unwrap_or_default()
    }

    fn disk(&self, disk: u32) -> Result<Disk, Refused> {
        let found = self.store.disk(self.id(disk)).cloned();
        found.ok_or_else(|| Refused::Stopped(format!("disk {disk} is not there")))
    }
}

fn name(disk: u32) -> String {
    format!("disk-{disk}")
}

fn broken(setup: &Setup) -> Vec<Broken> {
    let mode = match setup.broken.as_deref() {
        Some("no-chain") => Broken::NoChain,
        Some("no-epoch-record") => Broken::NoEpochRecord,
        Some("reuse-before-checkpoint") => Broken::ReuseBeforeCheckpoint,
        Some("no-flush-at-recovery") => Broken::NoFlushAtRecovery,
        Some("flush-lies") => Broken::FlushLies,
        Some("checkpoint-ahead-of-log") => Broken::CheckpointAheadOfLog,
        Some("stale-image") => Broken::StaleImage,
        Some("publish-before-content") => Broken::PublishBeforeContent,
        Some("ignore-arena") => Broken::IgnoreArena,
        Some("blind-scrub") => Broken::BlindScrub,
        Some("open-bare-slots") => Broken::OpenBareSlots,
        Some("hide-space") => Broken::HideSpace,
        Some("count-what-is-freed") => Broken::CountWhatIsFreed,
        Some("heal-trusts-medium") => Broken::HealTrustsMedium,
        Some("heal-without-root") => Broken::HealWithoutRoot,
        Some("renumber-checkpoint") => Broken::RenumberCheckpoint,
        Some("rewrite-nothing") => Broken::RewriteNothing,
        Some("heal-answers-early") => Broken::HealAnswersEarly,
        Some("repeat-nothing") => Broken::RepeatNothing,
        Some("forget-frozen") => Broken::ForgetFrozen,
        _ => return Vec::new(),
    };
    vec![mode]
}

fn refusal(error: StoreError) -> Refused {
    match error {
        StoreError::Refused(why) => why,
        other => Refused::Stopped(other.to_string()),
    }
}

impl Subject for Pool {
    const COVERED: &'static [&'static str] = &[
        "batches",
        "segments",
        "checkpoints",
        "slots compacted",
        "slots freed",
        "batches adopted",
        "went on in place",
        "batches replayed",
        "blocks read from the arena",
    ];

    fn format(host: &Host, setup: &Setup) -> Result<(), String> {
        let pages = Rc::new(RefCell::new(Pages::whole(host.memory.clone())));
        let mut media = SimMedia::new(&host.device);
        let options = CreateOptions {
            pool: PoolId(u128::from(setup.seed) << 64 | 0x626f_776c),
            salt: setup.seed,
            slot_bytes: setup.slot_blocks * PAGE as u64,
            now_seconds: 0,
        };
        create(&mut media, &pages, &options).map_err(|error| error.to_string())
    }

    fn open(host: &Host, setup: &Setup, accept_loss: bool) -> Result<Self, OpenError> {
        let mut pages = Pages::whole(host.memory.clone());
        let no_page = || OpenError::Other("no page".into());
        let control = pages.take(CONTROL_PAGES).ok_or_else(no_page)?;
        let index_pages = (index_bytes(DELTA_BYTES) / PAGE as u64) as u32;
        let index = setup.in_place.then(|| pages.take(index_pages).ok_or_else(no_page));
        let index = index.transpose()?;
        let pages = Rc::new(RefCell::new(pages));
        let is_fresh = host.is_fresh;
        let region = ArenaRegion { control, index, pages: pages.clone(), is_fresh };
        let options = StoreOptions {
            delta_bytes: DELTA_BYTES,
            map_frames: 24,
            checkpoint_log_bytes: Some(setup.checkpoint_bytes),
            boot: u128::from(host.boot),
            accept_loss,
            // A pool as small as these would have all its space taken at the start.
            ahead_bytes: if setup.seed.is_multiple_of(2) { 0 } else { 64 << 20 },
            broken: broken(setup),
            ..StoreOptions::default()
        };
        let store = Store::open(SimMedia::new(&host.device), region, options);
        let store = store.map_err(|error| match error {
            StoreError::Medium(error) => OpenError::Medium(error.to_string()),
            StoreError::Damaged(what) => OpenError::Damaged(what),
            other => OpenError::Other(other.to_string()),
        })?;
        if let PoolState::LostWrites(_) = store.status().state {
            return Err(OpenError::LostWrites);
        }
        let number = |disk: &Disk| Some((disk.name.strip_prefix("disk-")?.parse().ok()?, disk.id));
        let ids = store.disks().filter_map(number).collect();
        Ok(Pool { store, pages, ids })
    }

    fn create_disk(&mut self, disk: u32, blocks: u64) -> Result<(), Refused> {
        let bytes = blocks * PAGE as u64;
        let made = self.store.create_disk(&name(disk), bytes, Durability::Strict, Provision::Thin);
        self.ids.insert(disk, made.map_err(refusal)?);
        Ok(())
    }

    fn resize_disk(&mut self, disk: u32, blocks: u64) -> Result<(), Refused> {
        let changed = Disk { bytes: blocks * PAGE as u64, ..self.disk(disk)? };
        self.store.change_disk(changed).map_err(refusal)
    }

    fn destroy_disk(&mut self, disk: u32) -> Result<(), Refused> {
        self.store.destroy_disk(self.id(disk)).map_err(refusal)
    }

    fn disks(&self) -> Vec<(u32, u64)> {
        let size =
            |(&disk, &id): (&u32, &DiskId)| Some((disk, self.store.disk(id)?.bytes / PAGE as u64));
        self.ids.iter().filter_map(size).collect()
    }

    fn data_blocks(&self, disk: u32) -> Option<(u64, bool)> {
        let mapped = self.store.mapped(self.store.disk(self.id(disk))?);
        let most = mapped.bytes? + mapped.changed_bytes;
        Some((most / PAGE as u64, mapped.is_all))
    }

    fn write(&mut self, disk: u32, lba: u64, bytes: &[u8], owned: bool) -> Result<u64, Refused> {
        let id = self.id(disk);
        if owned {
            let pages = (bytes.len() / PAGE) as u32;
            let Some(mut spans) = self.pages.borrow_mut().take_scattered(pages, 8) else {
                return self.store.write(id, Lba(lba), &mut Payload::Copied(&[bytes])).map(|s| s.0);
            };
            let (memory, mut rest) = (self.pages.borrow().memory().clone(), bytes);
            for span in &mut spans {
                let (first, others) = rest.split_at(span.bytes() as usize);
                memory.write(span, 0, first);
                rest = others;
            }
            let mut payload = Payload::Owned(spans);
            let result = self.store.write(id, Lba(lba), &mut payload);
            if let Payload::Owned(left) = payload {
                left.into_iter().for_each(|span| self.pages.borrow_mut().give(span));
            }
            return result.map(|sequence| sequence.0);
        }
        let (first, rest) = bytes.split_at(bytes.len() / 3);
        let slices = [first, rest];
        self.store.write(id, Lba(lba), &mut Payload::Copied(&slices)).map(|sequence| sequence.0)
    }

    fn zero(&mut self, disk: u32, lba: u64, blocks: u64) -> Result<u64, Refused> {
        self.store.zero(self.id(disk), Lba(lba), blocks).map(|sequence| sequence.0)
    }

    fn discard(&mut self, disk: u32, lba: u64, blocks: u64) -> Result<u64, Refused> {
        self.store.discard(self.id(disk), Lba(lba), blocks).map(|sequence| sequence.0)
    }

    fn read(&mut self, ticket: Ticket, disk: u32, lba: u64, blocks: u64) -> bool {
        let Some(span) = self.pages.borrow_mut().take(blocks as u32) else { return false };
        self.store.read(ticket, self.id(disk), Lba(lba), span);
        true
    }

    fn block_status(&mut self, ticket: Ticket, disk: u32, lba: u64, blocks: u64) {
        self.store.block_status(ticket, self.id(disk), Lba(lba), blocks, EXTENTS_MAX);
    }

    fn flush(&mut self, ticket: Ticket) {
        self.store.flush(ticket);
    }

    fn durable_through(&self) -> u64 {
        self.store.durable_through().0
    }

    fn poll(&mut self, now: u64) -> bool {
        self.store.poll(Micros(now))
    }

    fn next_told(&mut self) -> Option<Told> {
        Some(match self.store.next_event()? {
            Event::Read { ticket, span, result } => {
                let mut pages = self.pages.borrow_mut();
                let result = match result {
                    Ok(()) => Ok(pages.memory().slice(&span).to_vec()),
                    Err(error) => Err(error.to_string()),
                };
                pages.give(span);
                Told::Read { ticket, result }
            }
            Event::Status { ticket, result } => {
                let runs = result.map_err(|error| error.to_string()).map(|extents| {
                    let run = |extent: bowline_store::Extent| Run {
                        blocks: extent.blocks,
                        value: match extent.state {
                            BlockState::Hole => Value::Hole,
                            BlockState::Zero => Value::Zero,
                            BlockState::Data => Value::Data,
                        },
                    };
                    extents.into_iter().map(run).collect()
                });
                Told::Status { ticket, result: runs }
            }
            Event::Flushed { ticket, result } => Told::Flushed { ticket, result },
            Event::Room => Told::Room,
        })
    }

    fn health(&self) -> Health {
        match self.store.status().state {
            PoolState::Healthy => Health::Good,
            PoolState::Stopped(cause) | PoolState::LostWrites(cause) => Health::Stopped(cause),
            PoolState::Damaged(what) => Health::Damaged(what),
        }
    }

    fn resume(&mut self) -> Result<(), String> {
        self.store.resume().map_err(|error| error.to_string())
    }

    fn resumed(&mut self) -> Option<Result<(), String>> {
        Some(self.store.resumed()?.map_err(|error| error.to_string()))
    }

    fn healing(&self) -> Option<&'static str> {
        self.store.status().healing
    }

    fn start_scrub(&mut self) {
        if self.store.scrub_news().0 != ScrubState::Running {
            self.store.start_scrub(u64::MAX);
        }
    }

    fn scrub_news(&self) -> (bool, u64) {
        let (state, findings) = self.store.scrub_news();
        (state == ScrubState::Running, findings)
    }

    fn scrub_findings(&self) -> Vec<(bool, String)> {
        let found = self.store.scrub().findings.into_iter();
        found.map(|one| (one.is_unreadable, format!("{one:?}"))).collect()
    }

    fn close(mut self) -> Result<(), String> {
        self.store.close().map_err(|error| error.to_string())
    }

    fn live_blocks_max(&self) -> u64 {
        self.store.status().space.limit_bytes / PAGE as u64
    }

    fn live_blocks_max_of(&self, slots: u64) -> u64 {
        self.store.live_limit_of(slots as u32)
    }

    fn describe(&self) -> String {
        let status = self.store.status();
        format!("{:?}, free pages {}", status, self.pages.borrow().free())
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let counters = self.store.status().counters;
        vec![
            ("batches", counters.batches),
            ("segments", counters.segments),
            ("checkpoints", counters.checkpoints),
            ("slots compacted", counters.slots_compacted),
            ("slots freed", counters.slots_freed),
            ("batches adopted", counters.batches_adopted),
            ("went on in place", counters.went_on_in_place),
            ("batches replayed", counters.batches_replayed),
            ("blocks read from the arena", counters.reads_from_arena),
            ("heals", counters.heals),
            ("checksum errors", counters.checksum_errors),
            ("log bytes", counters.log_bytes),
            ("map bytes", counters.map_bytes),
            ("image bytes", counters.image_bytes),
        ]
    }
}
