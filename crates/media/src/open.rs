//! From a path and some options to a medium with its filters.

use std::cell::RefCell;
use std::os::fd::RawFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use bowline_arena::{Completed, Memory, Part, Ring, Threads};
use bowline_store::Media;

use crate::filters::{
    DataLess, Errors, FilterSpec, Log, SpecError, Statistics, StatisticsFilter, Volatile, delay,
    rate,
};
use crate::target::{Target, TargetKind};
use crate::threads::{ThreadEvents, ThreadMedia};
use crate::uring::{UringEvents, UringMedia};
use crate::{Clock, FlushPlace, OpenError};

/// What a medium is opened with.
#[derive(Clone)]
pub struct OpenOptions {
    /// The memory that parts name bytes of.
    pub memory: Rc<Memory>,
    /// The data thread's ring, and the class of the medium's operations on it. Without one,
    /// threads make plain calls.
    pub ring: Option<(Rc<RefCell<Ring>>, u8)>,
    /// Filters, the first outermost.
    pub filters: Vec<FilterSpec>,
    /// The filters' time.
    pub clock: Clock,
    /// Where flushes run.
    pub flush: FlushPlace,
    /// Open for reading only.
    pub read_only: bool,
    /// Pass the page cache by, where the file system can do that.
    pub direct: bool,
    /// How long waits and the flusher spin before they sleep.
    pub spin: Duration,
    /// How many threads make plain calls if there is no ring.
    pub threads: usize,
    /// A page that nobody else uses; only the filter `volatile` needs one.
    pub staging: Option<Part>,
    /// Where the medium's threads are begun.
    pub roster: Threads,
}

impl OpenOptions {
    /// Direct, read-write, without a ring and filters.
    #[must_use]
    pub fn new(memory: Rc<Memory>) -> OpenOptions {
        OpenOptions {
            memory,
            ring: None,
            filters: Vec::new(),
            clock: Clock::system(),
            flush: FlushPlace::Auto,
            read_only: false,
            direct: true,
            spin: Duration::from_micros(20),
            threads: 4,
            staging: None,
            roster: Threads::default(),
        }
    }
}

/// A medium, opened.
pub struct Opened {
    /// The stack, topmost filter first.
    pub media: Box<dyn Media>,
    /// What the event loop needs of it.
    pub events: MediaEvents,
    /// The numbers at the medium itself, below all filters.
    pub statistics: Rc<Statistics>,
    /// The numbers of each filter `statistics`, the outermost first.
    pub filter_statistics: Vec<Rc<Statistics>>,
    /// File or device.
    pub kind: TargetKind,
    /// Whether the page cache is passed by; status tells if not.
    pub direct: bool,
}

/// The medium's end of the event loop.
#[derive(Clone)]
pub enum MediaEvents {
    /// The medium is on the loop's ring: hand it the completions of its class.
    Uring(UringEvents),
    /// The medium has threads: ask it for completions when its descriptor is readable.
    Threads(ThreadEvents),
}

impl MediaEvents {
    /// Takes a completion of the medium's class.
    ///
    /// # Panics
    /// If the medium is not on a ring.
    pub fn on_completion(&self, completed: Completed) {
        match self {
            MediaEvents::Uring(events) => events.on_completion(completed),
            MediaEvents::Threads(_) => panic!("a completion for a medium without a ring"),
        }
    }

    /// The loop begins another round: see [`UringEvents::begin_round`].
    pub fn begin_round(&self) {
        if let MediaEvents::Uring(events) = self {
            events.begin_round();
        }
    }

    /// Starts reads that were pushed, before the loop pushes what takes time of its own: see
    /// [`UringEvents::start_reads`]. Threads have started theirs.
    pub fn start_reads(&self) {
        if let MediaEvents::Uring(events) = self {
            events.start_reads();
        }
    }

    /// A descriptor to be polled for reading, if the medium is not on the loop's ring.
    #[must_use]
    pub fn wake_descriptor(&self) -> Option<RawFd> {
        match self {
            MediaEvents::Uring(_) => None,
            MediaEvents::Threads(events) => Some(events.wake_descriptor()),
        }
    }

    /// The same as a descriptor of the caller's own.
    ///
    /// # Errors
    /// If the system has none left.
    pub fn wake_clone(&self) -> std::io::Result<Option<std::os::fd::OwnedFd>> {
        match self {
            MediaEvents::Uring(_) => Ok(None),
            MediaEvents::Threads(events) => events.wake_clone().map(Some),
        }
    }

    /// What the medium is, for status.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            MediaEvents::Uring(_) => "io_uring",
            MediaEvents::Threads(_) => "threads",
        }
    }
}

/// Opens a file or block device as a medium.
///
/// # Errors
/// [`OpenError`].
pub fn open(path: &Path, options: OpenOptions) -> Result<Opened, OpenError> {
    let OpenOptions { memory, clock, spin, .. } = &options;
    let target = Target::open(path, options.read_only, options.direct)?;
    let (kind, direct) = (target.kind, target.direct);
    let system = |cause| OpenError::System { what: "set up", path: path.to_owned(), cause };
    let (medium, events): (Box<dyn Media>, MediaEvents) = match &options.ring {
        Some((ring, class)) => {
            let ring = Rc::clone(ring);
            let medium =
                UringMedia::new(target, ring, *class, *spin, options.flush, &options.roster);
            let medium = medium.map_err(system)?;
            let events = MediaEvents::Uring(medium.events());
            (Box::new(medium), events)
        }
        None => {
            let (memory, count) = (Rc::clone(memory), options.threads);
            let medium = ThreadMedia::new(target, memory, count, *spin, &options.roster);
            let medium = medium.map_err(system)?;
            let events = MediaEvents::Threads(medium.events());
            (Box::new(medium), events)
        }
    };
    let counted = StatisticsFilter::new(medium, clock.clone());
    let statistics = counted.statistics();
    let mut filter_statistics = Vec::new();
    let mut media: Box<dyn Media> = Box::new(counted);
    for spec in options.filters.iter().rev() {
        media = filter(media, spec, &options, &mut filter_statistics)?;
    }
    filter_statistics.reverse();
    Ok(Opened { media, events, statistics, filter_statistics, kind, direct })
}

/// Puts one filter on a medium.
fn filter(
    inner: Box<dyn Media>,
    spec: &FilterSpec,
    options: &OpenOptions,
    statistics: &mut Vec<Rc<Statistics>>,
) -> Result<Box<dyn Media>, SpecError> {
    let (memory, clock) = (Rc::clone(&options.memory), options.clock.clone());
    Ok(match spec {
        FilterSpec::Delay { kind, delay: by } => delay(inner, *kind, *by, clock),
        FilterSpec::Error { kind, which } => Box::new(Errors::new(inner, *kind, *which)),
        FilterSpec::Rate { bytes_per_second } => rate(inner, *bytes_per_second, clock),
        FilterSpec::Log { path } => {
            let failed = |cause| SpecError::Log { path: path.clone(), cause };
            Box::new(Log::new(inner, memory, path).map_err(failed)?)
        }
        FilterSpec::Statistics => {
            let filter = StatisticsFilter::new(inner, clock);
            statistics.push(filter.statistics());
            Box::new(filter)
        }
        FilterSpec::DataLess { path } => {
            let failed = |cause| SpecError::DataLess { path: path.clone(), cause };
            Box::new(DataLess::new(inner, memory, path).map_err(failed)?)
        }
        FilterSpec::Volatile => {
            let staging = options.staging.ok_or(SpecError::NoPage)?;
            Box::new(Volatile::new(inner, memory, staging))
        }
    })
}

/// Makes a file for a pool: of this size, empty, and with its space taken if asked for.
///
/// # Errors
/// If the file is there already, or cannot be made that large.
pub fn create_file(path: &Path, bytes: u64, preallocate: bool) -> Result<(), OpenError> {
    use std::os::unix::fs::OpenOptionsExt;
    let failed = |what| {
        move |cause: std::io::Error| OpenError::System { what, path: path.to_owned(), cause }
    };
    let mut options = std::fs::File::options();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(failed("make"))?;
    let sized = if preallocate {
        let none = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, none, 0, bytes).map_err(std::io::Error::from)
    } else {
        file.set_len(bytes)
    };
    sized.and_then(|()| file.sync_all()).map_err(failed("enlarge"))
}
