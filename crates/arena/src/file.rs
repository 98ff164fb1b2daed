//! The arena: the memory that outlives every process of an instance.
//!
//! A file on tmpfs named by its pool. Starting a server is adopting its arena: [`Arena::open`]
//! takes the lock (so no code of a former owner runs), passes the I/O fence of the former owners'
//! rings (so nothing of theirs lands any more), and counts the epoch up. A kill at any point of
//! that leaves an arena that the next start adopts.

use std::cell::RefCell;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use crate::header::{HEADER_BYTES, Header, Identity, Owner, Unusable, sizes_fit};
use crate::lock::{Life, OwnerLock, life, own_start};
use crate::place::{
    Names, boot_id, check_directory, default_directory, fresh_file, remove_if_there, room, system,
};
use crate::{
    ARENA_LAYOUT, DeadRing, FenceError, Memory, Pages, Part, Passed, Ring, RingOptions,
    RingRefused, Span, patience,
};

/// The pages of a memory, shared by everybody in the data thread.
pub type SharedPages = Rc<RefCell<Pages>>;

/// What an arena is opened with.
#[derive(Debug, Clone)]
pub struct ArenaOptions {
    /// Where arenas lie; [`default_directory`](crate::default_directory) if none is given.
    pub directory: Option<PathBuf>,
    /// The pool the arena belongs to.
    pub pool: u128,
    /// The instance.
    pub instance: u64,
    /// Bytes for the store's records, whole pages. An adopted arena keeps the size it has.
    pub control_bytes: u64,
    /// Bytes for the records of sessions, whole pages or none. An adopted arena keeps what it has.
    pub session_bytes: u64,
    /// Bytes for buffers, whole pages. An adopted arena keeps the size it has.
    pub page_bytes: u64,
    /// Accept a directory that is not on tmpfs: slower, and worn by every write.
    pub any_file_system: bool,
    /// How long to wait for a killed owner to be gone, and again for its I/O to have ended.
    pub patience: Duration,
}

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArenaError {
    /// Another process owns it.
    #[error(
        "the pool is served by process {process}{}; stop that one first",
        if control_address.is_empty() { String::new() } else { format!(" ({control_address})") }
    )]
    Owned {
        /// The owner's process number, 0 if unknown.
        process: u32,
        /// Where the owner's control socket is, empty if unknown.
        control_address: String,
    },
    /// The directory is not for us.
    #[error("{path} cannot hold arenas: {reason}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file system or the free memory behind it is too small.
    #[error(
        "{path} has room for {free_bytes} bytes more (its file system, or the machine's free \
         memory), the arena needs {needed_bytes}; enlarge it, choose another directory with \
         --arena, or ask for a smaller arena"
    )]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// Bytes the arena needs.
        needed_bytes: u64,
        /// Bytes that can be had.
        free_bytes: u64,
    },
    /// The file is of another version.
    #[error(
        "the arena {path} has layout {found}, this program knows layout {ARENA_LAYOUT}; start the \
         version that wrote it and stop it cleanly"
    )]
    Layout {
        /// The file.
        path: PathBuf,
        /// Its layout version.
        found: u32,
    },
    /// The file is no arena of this pool.
    #[error(
        "the arena {path} is damaged; removing it gives up acknowledged writes that were not \
         flushed"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// I/O of a dead owner has not ended.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// The system refused something.
    #[error("cannot {what} {path}: {cause}")]
    System {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        cause: Error,
    },
}

/// What an adopted arena was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// The epoch of the owner before. This counts adoptions of the arena, not of the pool.
    pub epoch: u64,
    /// The process number of the owner before.
    pub process: u32,
    /// What passing the I/O fence of its rings has shown.
    pub fence: Passed,
}

/// The memory of an instance, owned by this process.
pub struct Arena {
    /// All of it.
    pub memory: Rc<Memory>,
    /// The region for the store's records; zeros in a fresh arena.
    pub control: Span,
    /// The region for the records of sessions; zeros in a fresh arena, perhaps of no bytes.
    pub sessions: Span,
    /// The region for buffers. Everything is free: the adopter claims what records name.
    pub pages: SharedPages,
    /// What was found; none if the arena is fresh.
    pub adopted: Option<Adopted>,
    /// Number of this adoption, from 1.
    pub epoch: u64,
    /// The file behind it; none if the memory is private.
    pub file: Option<ArenaFile>,
}

/// The file of an arena: what goes on living beside the memory.
pub struct ArenaFile {
    directory: PathBuf,
    identity: Identity,
    memory: Rc<Memory>,
    header: Header,
    owner: Owner,
    rings_made: u64,
    lock: Rc<OwnerLock>,
    /// Of former owners, the newest first; nothing is in flight there.
    dead_rings: Vec<DeadRing>,
}

impl Arena {
    /// Creates or adopts the arena of a pool. When it returns, nothing of a former owner runs or
    /// lands any more.
    ///
    /// # Errors
    /// [`ArenaError`]. The arena is as it was, and a later attempt can succeed.
    ///
    /// # Panics
    /// If the sizes asked for are not whole pages, or the control region is not below 4 GiB.
    pub fn open(options: &ArenaOptions) -> Result<Arena, ArenaError> {
        let lock = Arena::lock(options)?;
        Arena::open_locked(options, lock)
    }

    /// Takes the lock of a pool's arena. When it returns, no code of a former owner runs.
    ///
    /// # Errors
    /// As [`Arena::open`].
    pub fn lock(options: &ArenaOptions) -> Result<OwnerLock, ArenaError> {
        let directory = options.directory.clone().unwrap_or_else(default_directory);
        check_directory(&directory, options.any_file_system)?;
        take_lock(&Names { directory: &directory, pool: options.pool }, options.patience)
    }

    /// As [`Arena::open`], with the lock, or a part in it, at hand. No code of a former owner may
    /// run any more: of a lock that is shared, that has to be known otherwise.
    ///
    /// # Errors
    /// As [`Arena::open`].
    ///
    /// # Panics
    /// As [`Arena::open`].
    pub fn open_locked(options: &ArenaOptions, lock: OwnerLock) -> Result<Arena, ArenaError> {
        let ArenaOptions { control_bytes, session_bytes, page_bytes, .. } = *options;
        assert!(sizes_fit(control_bytes, session_bytes, page_bytes), "sizes of an arena");
        let directory = options.directory.clone().unwrap_or_else(default_directory);
        let names = Names { directory: &directory, pool: options.pool };
        let (dead_rings, fence) = fence_rings(&names, options.patience)?;
        let path = names.arena();
        let boot = boot_id().map_err(system("read", "/proc/sys/kernel/random/boot_id"))?;
        let identity = Identity {
            pool: options.pool,
            boot,
            instance: options.instance,
            control_bytes,
            session_bytes,
            page_bytes,
        };
        let memory = match find(&path, options.pool, boot)? {
            Some((file, found)) => map(&file, &path, &found)?,
            None => create(&names, &identity)?,
        };
        crate::fail_point!("arena.found");
        let (mut arena, header) = take_over(memory, fence).ok_or(ArenaError::Damaged { path })?;
        let mut file = ArenaFile {
            directory,
            identity,
            memory: Rc::clone(&arena.memory),
            header,
            owner: own(arena.epoch),
            rings_made: 0,
            lock: Rc::new(lock),
            dead_rings,
        };
        file.header.set_owner(&file.memory, &file.owner);
        crate::fail_point!("arena.adopted");
        arena.file = Some(file);
        Ok(arena)
    }

    /// An arena in private memory, for tests, the simulator and offline tools.
    ///
    /// # Panics
    /// As [`Arena::open`].
    #[must_use]
    pub fn private(control_bytes: u64, page_bytes: u64) -> Arena {
        assert!(sizes_fit(control_bytes, 0, page_bytes), "sizes of an arena");
        let session_bytes = 0;
        let identity =
            Identity { pool: 0, boot: 0, instance: 0, control_bytes, session_bytes, page_bytes };
        let memory = Memory::private(identity.bytes_total());
        format(&memory, &identity);
        Arena::adopt_private(memory).unwrap_or_else(|| panic!("a fresh arena is valid"))
    }

    /// Adopts the bytes of an arena after a simulated death: a copy by [`Memory::successor`], or a
    /// prefix of its stores. None if they are no arena.
    #[must_use]
    pub fn adopt_private(memory: Memory) -> Option<Arena> {
        let (arena, mut header) = take_over(memory, Passed::default())?;
        let owner = Owner { epoch: arena.epoch, ..Owner::default() };
        header.set_owner(&arena.memory, &owner);
        Some(arena)
    }
}

impl ArenaFile {
    /// Makes a ring whose queues lie in a file beside the arena, so that a successor can tell when
    /// the ring's I/O has ended.
    ///
    /// # Errors
    /// [`RingRefused`] if there can be none; the server goes on without.
    pub fn ring(&mut self, options: RingOptions) -> Result<Ring, RingRefused> {
        self.rings_made += 1;
        let number = self.owner.epoch << 16 | self.rings_made;
        let path = self.names().ring(number);
        if !self.header.add_ring(&self.memory, number) {
            let reason = "too many rings of this server are in quarantine".to_owned();
            return Err(RingRefused { code: 0, reason });
        }
        crate::fail_point!("arena.ring.recorded");
        let made = fresh_file(&path)
            .map_err(|error| RingRefused {
                code: error.raw_os_error().unwrap_or(0),
                reason: format!("cannot make {}: {error}", path.display()),
            })
            .and_then(|file| Ring::create(file, Rc::clone(&self.memory), options))
            .map(|ring| ring.keeping(Rc::clone(&self.lock)));
        if made.is_err() {
            // Nothing can have been submitted.
            self.forget_ring(number);
        }
        made
    }

    /// The rings of former owners, the newest first. All their I/O has ended.
    #[must_use]
    pub fn dead_rings(&self) -> &[DeadRing] {
        &self.dead_rings
    }

    /// Removes the rings of former owners: what their completions tell is known.
    ///
    /// # Errors
    /// If a file cannot be removed; a later start finds it again.
    pub fn forget_dead_rings(&mut self) -> std::io::Result<()> {
        for ring in std::mem::take(&mut self.dead_rings) {
            remove_if_there(ring.path())?;
        }
        let own = self.owner.epoch;
        for number in self.header.rings(&self.memory).into_iter().filter(|one| one >> 16 != own) {
            self.header.remove_ring(&self.memory, number);
        }
        Ok(())
    }

    /// Says where the owner's control socket is, for whoever tries to open a second time.
    pub fn set_control_address(&mut self, address: &str) {
        // A longer one than the header holds is only left out: it is a help for people.
        let fits = address.len() <= 512;
        self.owner.control_address = if fits { address.to_owned() } else { String::new() };
        self.header.set_owner(&self.memory, &self.owner);
    }

    /// The file's path.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.names().arena()
    }

    /// Removes the arena after a clean shutdown: nothing in it is needed any more, and the ring
    /// has been dropped.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(mut self) -> std::io::Result<()> {
        std::fs::remove_file(self.path())?;
        for number in self.header.rings(&self.memory) {
            self.forget_ring(number);
        }
        Ok(())
    }

    fn forget_ring(&mut self, number: u64) {
        // If the file stays, the next start finds and fences it.
        if remove_if_there(&self.names().ring(number)).is_ok() {
            self.header.remove_ring(&self.memory, number);
        }
    }

    fn names(&self) -> Names<'_> {
        Names { directory: &self.directory, pool: self.identity.pool }
    }
}

fn take_lock(names: &Names<'_>, patience: Duration) -> Result<OwnerLock, ArenaError> {
    let path = names.named("lock");
    let owner = || read_owner(&names.arena()).unwrap_or_default();
    let mut attempt = || OwnerLock::file(&path);
    let mut holder = || {
        let owner = owner();
        life(owner.process, owner.started)
    };
    let lock = OwnerLock::wait(patience, &mut attempt, &mut holder);
    lock.map_err(system("lock", &path))?.ok_or_else(|| {
        let Owner { process, started, control_address, .. } = owner();
        let known = life(process, started) != Life::Unknown;
        ArenaError::Owned { process: if known { process } else { 0 }, control_address }
    })
}

/// Passes the fence of every ring file of the pool. Returns the rings, the newest first.
fn fence_rings(names: &Names<'_>, limit: Duration) -> Result<(Vec<DeadRing>, Passed), ArenaError> {
    let (mut rings, mut all) = (Vec::new(), Passed::default());
    let mut pause = patience(limit);
    for path in names.rings().map_err(system("list", names.directory))? {
        let ring = DeadRing::open(&path)?;
        let passed = ring.wait(&mut pause)?;
        all.in_flight += passed.in_flight;
        all.waits += passed.waits;
        crate::fail_point!("arena.fenced");
        rings.push(ring);
    }
    Ok((rings, all))
}

/// The arena file, if there is one of this boot. One of an earlier boot means nothing.
fn find(
    path: &Path,
    pool: u128,
    boot: u128,
) -> Result<Option<(std::fs::File, Identity)>, ArenaError> {
    let mut options = std::fs::File::options();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(system("open", path)(error)),
    };
    let mut bytes = [0; HEADER_BYTES as usize];
    let damaged = || ArenaError::Damaged { path: path.to_owned() };
    file.read_exact_at(&mut bytes, 0).map_err(|_| damaged())?;
    let identity = match Identity::parse(&bytes) {
        Ok(identity) => identity,
        Err(Unusable::Layout(found)) => {
            return Err(ArenaError::Layout { path: path.to_owned(), found });
        }
        Err(Unusable::Damaged) => return Err(damaged()),
    };
    if identity.boot != boot {
        return Ok(None);
    }
    let length = file.metadata().map_err(system("look at", path))?.len();
    if identity.pool != pool || length < identity.bytes_total() {
        return Err(damaged());
    }
    Ok(Some((file, identity)))
}

/// Makes a fresh arena file. It gets its name only when it is complete.
fn create(names: &Names<'_>, identity: &Identity) -> Result<Memory, ArenaError> {
    let (path, unnamed) = (names.arena(), names.named("arena.new"));
    remove_if_there(&unnamed).map_err(system("remove", &unnamed))?;
    let needed_bytes = identity.bytes_total();
    let no_room = |free_bytes| {
        let path = names.directory.to_owned();
        ArenaError::NoRoom { path, needed_bytes, free_bytes }
    };
    // Asked first: pages are allocated one after the other, and a tmpfs may promise more than the
    // machine has. Finding the end of its memory by trying would cost somebody else his life.
    let free_bytes = room(names.directory).map_err(system("look at", names.directory))?;
    if needed_bytes > free_bytes {
        return Err(no_room(free_bytes));
    }
    let file = fresh_file(&unnamed).map_err(system("make", &unnamed))?;
    file.set_len(needed_bytes).map_err(system("size", &unnamed))?;
    let memory = map(&file, &unnamed, identity)?;
    if let Err(error) = memory.allocate(&file) {
        remove_if_there(&unnamed).map_err(system("remove", &unnamed))?;
        if error.kind() == ErrorKind::StorageFull {
            return Err(no_room(room(names.directory).unwrap_or(0)));
        }
        return Err(system("allocate", &unnamed)(error));
    }
    format(&memory, identity);
    crate::fail_point!("arena.formatted");
    std::fs::rename(&unnamed, &path).map_err(system("name", &path))?;
    Ok(memory)
}

fn map(file: &std::fs::File, path: &Path, identity: &Identity) -> Result<Memory, ArenaError> {
    Memory::shared(file, identity.bytes_total()).map_err(system("map", path))
}

/// Writes the header of a fresh arena: epoch 0, owned by nobody yet.
fn format(memory: &Memory, identity: &Identity) {
    // SAFETY: the memory is fresh and has no other span; this one ends here.
    let span = unsafe { memory.claim(Part { offset: 0, bytes: HEADER_BYTES }) };
    Header::create(memory, span, identity).set_owner(memory, &Owner::default());
}

/// Makes an arena of the memory: spans for its regions, and the next epoch, not yet published.
fn take_over(memory: Memory, fence: Passed) -> Option<(Arena, Header)> {
    if memory.bytes_total() < u64::from(HEADER_BYTES) {
        return None;
    }
    assert!(memory.give_away(), "a memory is given away once");
    let memory = Rc::new(memory);
    // SAFETY: the caller has given the memory away, so no other span of it is in use.
    let span = unsafe { memory.claim(Part { offset: 0, bytes: HEADER_BYTES }) };
    let identity = Identity::parse(memory.slice(&span)).ok()?;
    if memory.bytes_total() < identity.bytes_total() {
        return None;
    }
    let header = Header::adopt(span);
    let before = header.owner(&memory)?;
    // SAFETY: header, control region, session region and pages lie one after the other.
    let (control, sessions, pages) = unsafe {
        let pages = Pages::new(Rc::clone(&memory), identity.pages());
        (memory.claim(identity.control()), memory.claim(identity.sessions()), pages)
    };
    let adopted = (before.epoch > 0).then_some(Adopted {
        epoch: before.epoch,
        process: before.process,
        fence,
    });
    let pages = Rc::new(RefCell::new(pages));
    let epoch = before.epoch + 1;
    Some((Arena { memory, control, sessions, pages, adopted, epoch, file: None }, header))
}

fn own(epoch: u64) -> Owner {
    let process = std::process::id();
    Owner { epoch, process, started: own_start(), control_address: String::new() }
}

/// Who owns the arena of a pool, or did last: process number, its start time, and the address of
/// its control socket. Read without any lock, for people and for [`OwnerLock::wait`].
#[must_use]
pub fn owner(directory: &Path, pool: u128) -> Option<(u32, u64, String)> {
    let owner = read_owner(&Names { directory, pool }.arena())?;
    Some((owner.process, owner.started, owner.control_address))
}

/// The owner that an arena file names, read without any lock.
fn read_owner(path: &Path) -> Option<Owner> {
    let file = std::fs::File::open(path).ok()?;
    // The owner may be writing its record just now.
    (0..3).find_map(|_| {
        let mut bytes = [0; HEADER_BYTES as usize];
        file.read_exact_at(&mut bytes, 0).ok()?;
        Owner::parse(&bytes).map(|(_, owner)| owner)
    })
}
