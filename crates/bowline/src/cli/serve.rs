//! `bowline serve`: every default decided, then the data thread.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use super::{EMBEDDED, Outcome};
use crate::control::api::{Condition, Kind, Problem, ServerStatus};
use crate::control::service;
use crate::family;
use crate::logging;
use crate::server::config::{Embedded, Listen, MEMORY_BYTES, ServeConfig};
use crate::server::{Server, command};
use crate::size::Size;

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

#[derive(Debug, Args)]
pub struct Serve {
    /// A pool: a file, a raw device, or a folder with a file `pool`
    #[arg(long, value_name = "PATH")]
    pool: Option<PathBuf>,
    /// Where NBD clients connect: tcp:HOST:PORT or unix:PATH; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    nbd: Vec<Listen>,
    /// A folder for vhost-user sockets, one per disk (not known to this version: refused)
    #[arg(long, value_name = "DIR")]
    vhost_user: Option<PathBuf>,
    /// A folder on tmpfs for what must outlive the process
    #[arg(long, value_name = "DIR")]
    arena: Option<PathBuf>,
    /// Whether a second process stands by to take over
    #[arg(long, value_name = "on|off", default_value = "off", hide_possible_values = true)]
    partner: Switch,
    /// Memory of all processes together
    #[arg(long, value_name = "SIZE", default_value_t = Size(MEMORY_BYTES))]
    memory: Size,
    /// A filter between store and medium, as delay=2ms; may be repeated, the first one outermost
    #[arg(long, value_name = "SPEC")]
    media_filter: Vec<String>,
    /// Go on although acknowledged writes were lost
    #[arg(long)]
    accept_loss: bool,
}

impl Serve {
    pub fn run(self, control: Option<PathBuf>) -> Result<Outcome, Problem> {
        logging::start();
        bowline_arena::fail::arm_from_environment()
            .map_err(|error| super::usage("a fail point cannot be armed").why(error.to_string()))?;
        self.refuse_what_is_not_there()?;
        allow_descriptors();
        let partner = self.partner;
        let config = self.config(control)?;
        for folder in [config.control.parent(), Some(config.arena.as_path())].into_iter().flatten()
        {
            folder_of_our_own(folder)?;
        }
        if partner == Switch::On {
            return family::keep(config).map(|()| Outcome::Well);
        }
        let control = config.control.clone();
        let server = Server::open(config)?;
        let (asker, commands) = command::channel()?;
        let listener = service::listen(&control)?;
        let service = service::start(listener, asker, greet)?;
        let result = server.run(commands);
        drop(service);
        let _ = std::fs::remove_file(&control);
        result.map(|()| Outcome::Well)
    }

    /// What is asked for and cannot be done is not passed over in silence.
    fn refuse_what_is_not_there(&self) -> Result<(), Problem> {
        if self.vhost_user.is_some() {
            return Err(super::usage("--vhost-user is not known to this version")
                .next("leave it out: guests reach their disks by NBD"));
        }
        Ok(())
    }

    fn config(self, control: Option<PathBuf>) -> Result<ServeConfig, Problem> {
        let (pool, sockets, embedded) = place(self.pool)?;
        let mut nbd = self.nbd;
        if nbd.is_empty() {
            nbd.push(Listen::Tcp("127.0.0.1".into(), 10809));
            nbd.push(Listen::Unix(sockets.join("nbd.sock")));
        }
        Ok(ServeConfig {
            pool,
            embedded,
            nbd,
            control: control.unwrap_or_else(|| sockets.join("control.sock")),
            arena: self.arena.unwrap_or_else(arena),
            memory_bytes: self.memory.0,
            media_filters: self.media_filter,
            accept_loss: self.accept_loss,
        })
    }
}

/// `bowline server`: what a keeper starts.
pub fn server() -> Result<Outcome, Problem> {
    logging::start();
    bowline_arena::fail::arm_from_environment()
        .map_err(|error| super::usage("a fail point cannot be armed").why(error.to_string()))?;
    family::serve().map(|()| Outcome::Well)
}

/// `bowline keeper`: what an active starts whose keeper has died.
pub fn keeper() -> Result<Outcome, Problem> {
    logging::start();
    allow_descriptors();
    family::succeed().map(|()| Outcome::Well)
}

/// Where the pool is, where its sockets go, and how to make it if it may be made.
fn place(named: Option<PathBuf>) -> Result<(PathBuf, PathBuf, Option<Embedded>), Problem> {
    let Some(path) = named else {
        let folder = PathBuf::from(EMBEDDED);
        return Ok((folder.join("pool"), folder, Some(Embedded::default())));
    };
    let kind = std::fs::metadata(&path).map_err(|error| {
        Problem::new(Kind::Failed, format!("cannot use {}", path.display()))
            .why(error.to_string())
            .next(format!("bowline pool create {} --size 10G", path.display()))
    })?;
    if kind.is_dir() {
        return Ok((path.join("pool"), path, None));
    }
    if kind.file_type().is_block_device() {
        let name = path.file_name().unwrap_or(path.as_os_str());
        let sockets = Path::new("/run/bowline").join(name);
        return Ok((path, sockets, None));
    }
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let sockets = folder.unwrap_or(Path::new(".")).to_path_buf();
    Ok((path, sockets, None))
}

/// The default folder of the arena: the user's own, and on tmpfs.
fn arena() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) if Path::new(&folder).is_dir() => Path::new(&folder).join("bowline"),
        _ => format!("/dev/shm/bowline-{}", rustix::process::getuid().as_raw()).into(),
    }
}

/// Takes as many descriptors as the system gives: each connection needs one. What it refuses shows
/// when they run out, and in the log.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn folder_of_our_own(folder: &Path) -> Result<(), Problem> {
    use std::os::unix::fs::DirBuilderExt;
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
        Problem::new(Kind::Failed, format!("cannot make the folder {}", folder.display()))
            .why(error.to_string())
    })
}

/// What a person sees when the server is up.
pub(crate) fn greet(status: &ServerStatus) {
    let pool = &status.pool;
    let size = Size(pool.size_bytes);
    tracing::info!(
        pool = pool.path,
        size = %size,
        state = pool.state.word(),
        medium = status.medium,
        "serving"
    );
    for disk in &status.disks {
        let uri = disk.uris.first().map_or("", String::as_str);
        tracing::info!(disk = disk.name, size = %Size(disk.size_bytes), uri, "ready");
    }
    for condition in status.conditions.iter().chain(&pool.conditions) {
        let Condition { name, meaning, remedy, .. } = condition;
        tracing::warn!(name, meaning, remedy, "not well");
    }
}
