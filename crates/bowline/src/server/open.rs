//! Starting: lock, arena, ring, medium, store, listeners, in this order.
//!
//! Starting is adopting. When the arena is open, nothing of a former owner runs or lands any more;
//! only then is the medium written to. A server of a family has locks and listeners from its
//! keeper; what its own fences have shown takes the place of the locks.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bowline_arena::{
    Arena, ArenaError, ArenaFile, ArenaOptions, DeadRing, Life, Memory, OwnerLock, Ring,
    RingOptions, SharedPages, Span, boot_id, life, owner,
};
use bowline_export::{FoundSessions, IoStop, KernelOperation, Options, RecordsError};
use bowline_media::filters::FilterSpec;
use bowline_media::{Clock, MediaEvents, Opened as OpenedMedium};
use bowline_store::{ArenaRegion, Media, PoolHeader, Store, StoreOptions, index_bytes};

use super::config::{MEMORY_BYTES, ServeConfig};
use super::listen::Listener;
use super::pool;
use super::ring_sockets::{MEDIUM, socket_operation};
use super::sockets::outcome;
use super::tuning::Tuning;
use crate::control::api::{Condition, Kind, Problem};
use crate::family::Membership;
use crate::offline;

/// Bytes of the arena for the store's records, beside the changes of its map.
const CONTROL_BYTES: u64 = 2 << 20;
/// Bytes of the default memory that are buffers in the arena, frames of the map, and deltas.
const BUFFER_BYTES: u64 = 48 << 20;
const FRAME_BYTES: u64 = 64 << 20;
const DELTA_BYTES: u64 = 32 << 20;
/// The longest request a client can make.
const REQUEST_BYTES_MAX: u64 = 32 << 20;
/// The longest request and the store's own buffers need so much, however little is asked for.
const BUFFER_BYTES_MIN: u64 = 46 << 20;
/// The least memory a server can be given.
const MEMORY_BYTES_MIN: u64 = 96 << 20;
/// How long a dying owner may take, and again its I/O.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same if nothing is known about the owner.
const PATIENCE_UNKNOWN: Duration = Duration::from_secs(1);
const PAGE: u64 = 4096;

/// The store of a server.
pub type ServerStore = Store<Box<dyn Media>>;

/// Everything a server holds when it is ready to run.
pub struct Opened {
    pub store: ServerStore,
    pub header: PoolHeader,
    pub pages: SharedPages,
    /// Where sessions say what they do.
    pub sessions: Span,
    pub memory: Rc<Memory>,
    pub ring: Option<Rc<RefCell<Ring>>>,
    pub events: MediaEvents,
    pub clock: Clock,
    pub listeners: Vec<Listener>,
    /// What is not as it should be about this start.
    pub notes: Vec<Condition>,
    pub tuning: Tuning,
    /// Sessions to go on with, where their sockets are at hand.
    pub found: Option<FoundSessions>,
    /// What became of their last operations.
    pub results: Results,
    /// Last: the locks go when everything else has gone.
    pub arena: ArenaFile,
    pub lock: OwnerLock,
}

/// The locks of an instance.
pub struct Locks {
    pub pool: OwnerLock,
    pub arena: OwnerLock,
}

/// Whose operation: whether it is a send, the session's slot, and 24 bits of its generation.
type Whose = (bool, u32, u32);

/// The last receive and the last send of each session of a dead process, as the kernel told of
/// them: the operation's number, and what became of it.
#[derive(Default)]
pub struct Results(BTreeMap<Whose, (u8, Result<u32, IoStop>)>);

impl Results {
    /// Looks through dead rings, the newest first. The last completion of a kind that a session has
    /// is that of its last operation, or of the one before, which has another number.
    fn read(rings: &[DeadRing]) -> Results {
        let mut all = BTreeMap::new();
        for completed in rings.iter().flat_map(DeadRing::completions) {
            if let Some((is_send, session, number)) = socket_operation(completed.user_data) {
                let result = (number, outcome(completed.outcome()));
                all.entry((is_send, session.slot(), session.generation())).or_insert(result);
            }
        }
        Results(all)
    }

    /// What became of an operation; none if the kernel has not been asked.
    pub fn of(&self, operation: KernelOperation) -> Option<Result<u32, IoStop>> {
        let KernelOperation { session, is_send, number } = operation;
        // A tag has 24 bits of the generation.
        let generation = session.generation() & 0xff_ffff;
        let (last, result) = self.0.get(&(is_send, session.slot(), generation))?;
        (*last == number).then_some(*result)
    }
}

/// How the memory asked for is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Shares {
    page_bytes: u64,
    map_frames: usize,
    delta_bytes: usize,
}

impl Shares {
    fn of(memory_bytes: u64) -> Result<Shares, Problem> {
        if memory_bytes < MEMORY_BYTES_MIN {
            let least = crate::size::Size(MEMORY_BYTES_MIN);
            let what = format!("a server needs at least {least} of memory");
            return Err(Problem::new(Kind::Usage, what).next(format!("--memory {least}")));
        }
        let share = |bytes: u64| {
            let share = u128::from(bytes) * u128::from(memory_bytes) / u128::from(MEMORY_BYTES);
            u64::try_from(share).unwrap_or(u64::MAX) / PAGE * PAGE
        };
        let usize_of = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Shares {
            page_bytes: share(BUFFER_BYTES).clamp(BUFFER_BYTES_MIN, 1 << 30),
            map_frames: usize_of(share(FRAME_BYTES) / PAGE),
            delta_bytes: usize_of(share(DELTA_BYTES)),
        })
    }
}

/// Takes an instance for a family of processes, and makes the pool if it may be made.
///
/// # Errors
/// What is in the way; a pool that is served names its owner.
pub fn lock(config: &ServeConfig) -> Result<Locks, Problem> {
    let shares = Shares::of(config.memory_bytes)?;
    let header = header(config)?;
    let pool = lock_pool(config, &header)?;
    let arena = Arena::lock(&arena_options(config, &header, shares));
    let arena = arena.map_err(|error| arena_problem(&config.pool, &error))?;
    Ok(Locks { pool, arena })
}

/// Opens everything.
pub fn open(config: &ServeConfig, membership: Option<&Membership>) -> Result<Opened, Problem> {
    let tuning = Tuning::from_environment()?;
    let shares = Shares::of(config.memory_bytes)?;
    let filters = filters(&config.media_filters)?;
    let header = header(config)?;
    let options = arena_options(config, &header, shares);
    let failed = |error| pool::failed(&config.pool, "share the lock of", error);
    let (lock, arena) = match membership {
        Some(membership) => {
            let lock = membership.pool_lock().map_err(failed)?;
            (lock, Arena::open_locked(&options, membership.arena_lock().map_err(failed)?))
        }
        None => (lock_pool(config, &header)?, Arena::open(&options)),
    };
    let arena = arena.map_err(|error| arena_problem(&config.pool, &error))?;
    let ground = Ground { config, tuning, shares, filters, header, membership };
    opened(ground, lock, arena)
}

/// What is known before anything is open.
struct Ground<'a> {
    config: &'a ServeConfig,
    tuning: Tuning,
    shares: Shares,
    filters: Vec<FilterSpec>,
    header: PoolHeader,
    membership: Option<&'a Membership>,
}

/// The pool's header; the pool is made if it may be.
fn header(config: &ServeConfig) -> Result<PoolHeader, Problem> {
    if let Some(embedded) = config.embedded.as_ref().filter(|_| !config.pool.exists()) {
        pool::embed(&config.pool, embedded)?;
    }
    pool::header(&config.pool)
}

fn arena_options(config: &ServeConfig, header: &PoolHeader, shares: Shares) -> ArenaOptions {
    ArenaOptions {
        directory: Some(config.arena.clone()),
        pool: header.pool.0,
        instance: 1,
        control_bytes: control_bytes(shares),
        session_bytes: session_bytes(shares),
        page_bytes: shares.page_bytes,
        any_file_system: false,
        patience: PATIENCE,
    }
}

fn opened(ground: Ground<'_>, lock: OwnerLock, arena: Arena) -> Result<Opened, Problem> {
    let Ground { config, tuning, shares, filters, header, membership } = ground;
    // The fence of the rings beside the arena has been passed; a server that died may have had
    // another directory, or somebody has removed its rings. One whose roster was watched had these.
    let is_takeover = membership.is_some_and(|one| one.takes_over_since.is_some());
    let is_quiet = is_takeover || offline::nobody_writes(&config.pool, PATIENCE)?;
    let Arena { memory, mut control, sessions, pages, adopted, file, .. } = arena;
    let mut file = file.unwrap_or_else(|| unreachable!("an arena that was opened has a file"));
    let (mut found, mut results) = (None, Results::default());
    if let Some(adopted) = &adopted {
        let (process, in_flight) = (adopted.process, adopted.fence.in_flight);
        tracing::info!(process, in_flight, "adopting what a server left that did not stop cleanly");
        found = find_sessions(&memory, &sessions, &pages, membership);
        results = Results::read(file.dead_rings());
    }
    let address = std::path::absolute(&config.control).unwrap_or_else(|_| config.control.clone());
    file.set_control_address(&address.display().to_string());
    let mut notes = Vec::new();
    let ring = ring(&mut file, tuning, &mut notes);
    // A page that the store does not get: what was acknowledged may lie in any other.
    let staging = control.split_off(control.bytes() - PAGE as u32);
    let index = control.split_off(control.bytes().min((CONTROL_BYTES - PAGE) as u32));
    let mut options = bowline_media::OpenOptions::new(memory.clone());
    options.ring = ring.clone().map(|ring| (ring, MEDIUM));
    options.filters = filters;
    options.staging = Some(staging.part());
    options.flush = tuning.flush;
    options.roster = membership.map(Membership::threads).unwrap_or_default();
    let clock = options.clock.clone();
    let medium = bowline_media::open(&config.pool, options);
    let medium = medium.map_err(|error| pool::failed(&config.pool, "open", error))?;
    let OpenedMedium { media, events, direct, .. } = medium;
    if !direct {
        notes.push(buffered());
    }
    let boot = boot_id().map_err(|error| pool::failed(&config.pool, "find this boot of", error))?;
    let options = StoreOptions {
        delta_bytes: shares.delta_bytes,
        map_frames: shares.map_frames,
        boot,
        instance: 1,
        accept_loss: config.accept_loss,
        write_bytes_max: REQUEST_BYTES_MAX + 2 * PAGE,
        is_quiet,
        ..StoreOptions::default()
    };
    let (index, is_fresh) = (Some(index), adopted.is_none());
    let region = ArenaRegion { control, index, pages: pages.clone(), is_fresh };
    let store = Store::open(media, region, options)
        .map_err(|error| pool::failed(&config.pool, "open", error))?;
    bowline_arena::fail_point!("server.store.opened");
    let listeners = listeners(config, membership)?;
    Ok(Opened {
        store,
        header,
        pages,
        sessions,
        memory,
        ring,
        events,
        clock,
        listeners,
        notes,
        tuning,
        found,
        results,
        arena: file,
        lock,
    })
}

/// Where clients connect: handed over, or bound here.
fn listeners(
    config: &ServeConfig,
    membership: Option<&Membership>,
) -> Result<Vec<Listener>, Problem> {
    let Some(membership) = membership else {
        return config.nbd.iter().map(Listener::bind).collect();
    };
    let handed = membership.listeners();
    let handed =
        handed.map_err(|error| pool::failed(&config.pool, "listen for the clients of", error))?;
    Ok(handed.into_iter().map(|(place, socket)| Listener::handed(place, socket)).collect())
}

/// Bytes of the arena for the store: its records, and the changes of its map.
fn control_bytes(shares: Shares) -> u64 {
    CONTROL_BYTES + index_bytes(shares.delta_bytes)
}

/// Bytes of the arena for the records of sessions.
fn session_bytes(shares: Shares) -> u64 {
    // The records' own pages and the header count, too, and are less than the last of these.
    let memory_bytes = control_bytes(shares) + shares.page_bytes + (8 << 20);
    u64::from(Options::default().record_bytes(memory_bytes))
}

/// The sessions of a dead server, their pages kept, if somebody has their sockets. Where nobody has
/// they are over, and their pages are free; what they were told is in the log.
fn find_sessions(
    memory: &Memory,
    sessions: &Span,
    pages: &SharedPages,
    membership: Option<&Membership>,
) -> Option<FoundSessions> {
    let wanted = membership.is_some_and(|membership| !membership.forgets_sessions);
    let found = FoundSessions::read(memory, sessions).and_then(|found| {
        if wanted {
            found.keep(&mut pages.borrow_mut())?;
        }
        Ok(found)
    });
    match found {
        Ok(found) if wanted => return Some(found),
        Ok(found) if found.is_empty() => {}
        Ok(found) => tracing::info!(count = found.len(), "connections were cut off"),
        Err(RecordsError::None) => {}
        Err(error) => {
            pages.borrow_mut().release_kept();
            tracing::warn!(%error, "what connections there were is not known");
        }
    }
    None
}

/// The filters as they were given, outermost first.
fn filters(given: &[String]) -> Result<Vec<FilterSpec>, Problem> {
    let parse = |text: &String| {
        text.parse().map_err(|error: bowline_media::filters::SpecError| {
            Problem::new(Kind::Usage, error.to_string())
        })
    };
    given.iter().map(parse).collect()
}

/// Takes the pool for this process alone.
fn lock_pool(config: &ServeConfig, header: &PoolHeader) -> Result<OwnerLock, Problem> {
    let known = || owner(&config.arena, header.pool.0);
    let patience = if known().is_some() { PATIENCE } else { PATIENCE_UNKNOWN };
    let mut attempt = || OwnerLock::pool(&config.pool);
    let mut holder =
        || known().map_or(Life::Unknown, |(process, started, _)| life(process, started));
    let lock = OwnerLock::wait(patience, &mut attempt, &mut holder)
        .map_err(|error| pool::failed(&config.pool, "lock", error))?;
    lock.ok_or_else(|| {
        let owner =
            known().filter(|(process, started, _)| life(*process, *started) != Life::Unknown);
        let (process, control) = owner.map_or((0, String::new()), |(p, _, control)| (p, control));
        owned(&config.pool, process, &control)
    })
}

/// The refusal of a pool that somebody else serves.
fn owned(path: &Path, process: u32, control: &str) -> Problem {
    let what = format!("{} is served already", path.display());
    let by = if process > 0 { format!("process {process}") } else { "another process".into() };
    let at = if control.is_empty() { String::new() } else { format!(", control socket {control}") };
    let problem = Problem::new(Kind::Busy, what).why(format!("{by} has it{at}"));
    if control.is_empty() {
        return problem.next("stop that server first");
    }
    problem.next(format!("bowline stop --control {control}"))
}

fn arena_problem(path: &Path, error: &ArenaError) -> Problem {
    match error {
        ArenaError::Owned { process, control_address } => owned(path, *process, control_address),
        other => Problem::new(Kind::Failed, format!("cannot serve {}", path.display()))
            .why(other.to_string()),
    }
}

/// The data thread's ring, or a note why there is none.
fn ring(
    file: &mut ArenaFile,
    tuning: Tuning,
    notes: &mut Vec<Condition>,
) -> Option<Rc<RefCell<Ring>>> {
    let why = if tuning.without_ring {
        "BOWLINE_WITHOUT_IO_URING is set".to_owned()
    } else {
        match file.ring(RingOptions::default()) {
            Ok(ring) => return Some(Rc::new(RefCell::new(ring))),
            Err(refused) => refused.reason,
        }
    };
    notes.push(Condition {
        name: "io-uring-refused".into(),
        meaning: format!("every request costs more time: {why}"),
        doing: "the medium is driven by threads, sockets by poll".into(),
        remedy: "allow io_uring, on Linux 6.10 or newer".into(),
    });
    None
}

fn buffered() -> Condition {
    Condition {
        name: "medium-buffered".into(),
        meaning: "the file system cannot pass its cache by: flushes take longer".into(),
        doing: "the pool is used through the page cache".into(),
        remedy: "put the pool on a file system that knows O_DIRECT".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_memory_is_divided_as_designed() {
        let shares = Shares::of(MEMORY_BYTES).unwrap();
        let expected = Shares { page_bytes: 48 << 20, map_frames: 16384, delta_bytes: 32 << 20 };
        assert_eq!(shares, expected);
        let least = Shares::of(MEMORY_BYTES_MIN).unwrap();
        assert_eq!(least.page_bytes, BUFFER_BYTES_MIN);
        assert!(least.map_frames < expected.map_frames);
        assert!(Shares::of(MEMORY_BYTES_MIN - 1).is_err());
    }

    #[test]
    fn filters_are_stacked_as_they_are_given() {
        let given = ["flush-delay=2ms".to_owned(), "statistics".to_owned()];
        assert_eq!(filters(&given).unwrap().last(), Some(&FilterSpec::Statistics));
        assert!(filters(&["nonsense".to_owned()]).is_err());
    }
}
