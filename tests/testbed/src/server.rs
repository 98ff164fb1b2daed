//! A disk server in a folder of its own: Bowline, or a peer that the tests themselves are tested
//! against.
//!
//! `BOWLINE_TEST_SERVER` chooses: `bowline` (the default), `qemu-nbd` or `nbdkit`;
//! `BOWLINE_TEST_PROGRAM` is another `bowline` than the one that was built with the tests.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::Result;
use crate::tool::{self, until};

/// Which program serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bowline.
    Bowline,
    /// qemu-nbd over a raw file, through the page cache: it survives kill -9, not a power cut.
    QemuNbd,
    /// nbdkit's memory plugin: it survives nothing, so every judge must catch it.
    Nbdkit,
}

impl Kind {
    /// The one that `BOWLINE_TEST_SERVER` names.
    ///
    /// # Panics
    /// If it names none that is known.
    #[must_use]
    pub fn chosen() -> Kind {
        match std::env::var("BOWLINE_TEST_SERVER").as_deref() {
            Err(_) | Ok("bowline") => Kind::Bowline,
            Ok("qemu-nbd") => Kind::QemuNbd,
            Ok("nbdkit") => Kind::Nbdkit,
            Ok(other) => panic!("BOWLINE_TEST_SERVER={other} is not known"),
        }
    }
}

/// How clients reach the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A Unix socket.
    Unix,
    /// TCP on the loopback.
    Tcp,
}

/// What a server is started with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Which program serves.
    pub kind: Kind,
    /// The program `bowline`.
    pub program: PathBuf,
    /// The size of the pool.
    pub pool_bytes: u64,
    /// The disks: name and size. A peer has the first only.
    pub disks: Vec<(String, u64)>,
    /// More arguments for `bowline serve`.
    pub arguments: Vec<String>,
    /// More environment for `bowline serve`.
    pub environment: Vec<(String, String)>,
    /// A raw device to be the pool, instead of a file.
    pub device: Option<PathBuf>,
    /// A command that `bowline serve` is started through, as `prlimit`.
    pub wrapper: Vec<String>,
    /// The user the pool and the folders belong to, if it is another than the test's.
    pub owner: Option<u32>,
}

impl Setup {
    /// One disk called `disk` of 64 MiB in a pool of 1 GiB, served by the chosen program.
    #[must_use]
    pub fn new(program: &str) -> Setup {
        Setup {
            kind: Kind::chosen(),
            program: std::env::var_os("BOWLINE_TEST_PROGRAM").unwrap_or(program.into()).into(),
            pool_bytes: 1 << 30,
            disks: vec![("disk".into(), 64 << 20)],
            arguments: Vec::new(),
            environment: Vec::new(),
            device: None,
            wrapper: Vec::new(),
            owner: None,
        }
    }
}

/// A server, and everything it needs to be started again.
pub struct Server {
    setup: Setup,
    folder: TempDir,
    arena: TempDir,
    port: u16,
    processes: Vec<Child>,
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// kill -9 of every process; memory that outlives processes is kept.
    Process,
    /// kill -9 of every process, and nothing but the medium is kept.
    Host,
}

impl Server {
    /// Makes the pool and the disks, and serves them.
    ///
    /// # Errors
    /// If something cannot be started, or does not come up.
    pub fn start(setup: Setup) -> Result<Server> {
        let mut server = Server::idle(setup, &std::env::temp_dir())?;
        server.make()?;
        for path in [server.folder.path(), server.arena.path(), &server.pool()] {
            if server.setup.owner.is_some() {
                std::os::unix::fs::chown(path, server.setup.owner, server.setup.owner)?;
            }
        }
        server.serve()?;
        server.make_disks()?;
        Ok(server)
    }

    /// A server that is not started and has no pool yet, in a folder of its own in `place`.
    ///
    /// # Errors
    /// If there is no room.
    pub fn idle(setup: Setup, place: &Path) -> Result<Server> {
        let folder = tempfile::Builder::new().prefix("bowline-test-").tempdir_in(place)?;
        // What outlives the processes must lie on tmpfs, as in real life.
        let arena = tempfile::Builder::new().prefix("bowline-test-").tempdir_in("/dev/shm")?;
        let port = free_port()?;
        Ok(Server { setup, folder, arena, port, processes: Vec::new() })
    }

    /// Makes the disks in the pool that is served.
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn make_disks(&self) -> Result<()> {
        if self.setup.kind == Kind::Bowline {
            for (name, bytes) in &self.setup.disks {
                self.bowline(&["disk", "create", name, "--size", &bytes.to_string()])?;
            }
        }
        Ok(())
    }

    /// Makes an empty pool, or what a peer serves.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn make(&self) -> Result<()> {
        let path = self.pool();
        match self.setup.kind {
            Kind::Bowline => {
                let bytes = self.setup.pool_bytes.to_string();
                let (program, pool) =
                    (self.setup.program.to_string_lossy(), path.to_string_lossy());
                let size: &[&str] = match self.setup.device {
                    Some(_) => &[],
                    None => &["--size", &bytes],
                };
                tool::run(&program, &[&["pool", "create", &pool], size].concat())?;
            }
            Kind::QemuNbd => {
                for (name, bytes) in &self.setup.disks {
                    File::create(self.folder.path().join(name))?.set_len(*bytes)?;
                }
            }
            Kind::Nbdkit => {}
        }
        Ok(())
    }

    /// Starts the processes and waits until clients are served and writes are taken.
    ///
    /// # Errors
    /// If they do not come up.
    pub fn serve(&mut self) -> Result<()> {
        if self.try_serve()? {
            return Ok(());
        }
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        Err(format!("the server ended instead of serving\n{log}").into())
    }

    /// Starts the processes.
    ///
    /// # Errors
    /// If they cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.log())?;
        for mut command in self.commands() {
            command.process_group(0).stdin(Stdio::null());
            command.stdout(log.try_clone()?).stderr(log.try_clone()?);
            self.processes.push(command.spawn()?);
        }
        Ok(())
    }

    /// Starts the processes and waits until clients are served, or until the server has died on
    /// the way, as a fail point may have told it. Whether it lives.
    ///
    /// # Errors
    /// If neither happens.
    pub fn try_serve(&mut self) -> Result<bool> {
        self.spawn()?;
        let mut lives = false;
        until("the server lives or dies", Duration::from_secs(60), || {
            lives = self.is_ready();
            lives || self.is_dead()
        })?;
        Ok(lives)
    }

    /// Whether the process that was started has ended.
    pub fn is_dead(&mut self) -> bool {
        self.processes.iter_mut().all(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for the end of a server that is about to end, or has. Whether it was killed.
    ///
    /// # Errors
    /// If it does not end.
    pub fn ended_by_kill(&mut self) -> Result<bool> {
        use std::os::unix::process::ExitStatusExt;
        until("the server ends", Duration::from_secs(60), || self.is_dead())?;
        let mut was_killed = false;
        for mut child in self.processes.drain(..) {
            was_killed |= child.wait()?.signal() == Some(Signal::KILL.as_raw());
        }
        Ok(was_killed)
    }

    fn is_ready(&self) -> bool {
        if self.setup.kind == Kind::Bowline {
            return self.bowline(&["wait", "--timeout", "0s"]).is_ok();
        }
        let transports = [Transport::Unix, Transport::Tcp];
        (0..self.setup.disks.len()).all(|at| {
            transports.iter().all(|&transport| {
                crate::nbd::Client::connect(&self.address(transport, at), "").is_ok()
            })
        })
    }

    fn commands(&self) -> Vec<Command> {
        if self.setup.kind == Kind::Bowline {
            return vec![self.bowline_serve()];
        }
        let mut commands = Vec::new();
        for (at, (name, bytes)) in self.setup.disks.iter().enumerate() {
            for transport in [Transport::Unix, Transport::Tcp] {
                // One file behind two servers is right only while one of them is used at a time.
                commands.push(self.peer(at, name, *bytes, transport));
            }
        }
        commands
    }

    fn bowline_serve(&self) -> Command {
        let program = self.setup.program.clone().into_os_string();
        let mut words = self.setup.wrapper.iter().map(Into::into).chain([program]);
        let mut command = tool::command(words.next().unwrap_or_default());
        command.args(words).arg("serve").arg("--pool").arg(self.pool());
        command.args(["--nbd", &format!("unix:{}", self.socket(0).display())]);
        command.args(["--nbd", &format!("tcp:127.0.0.1:{}", self.port)]);
        command.arg("--control").arg(self.control()).arg("--arena").arg(self.arena.path());
        command.args(&self.setup.arguments);
        command.envs(self.setup.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    fn peer(&self, at: usize, name: &str, bytes: u64, transport: Transport) -> Command {
        let (socket, port) = (self.socket(at), (self.port + at as u16).to_string());
        let _ = std::fs::remove_file(&socket);
        if self.setup.kind == Kind::QemuNbd {
            let mut command = tool::command("qemu-nbd");
            command.args(["-t", "-e", "64", "-f", "raw", "--cache=writeback", "--discard=unmap"]);
            match transport {
                Transport::Unix => command.arg("-k").arg(&socket),
                Transport::Tcp => command.args(["-b", "127.0.0.1", "-p", &port]),
            };
            command.arg("--shared=64").arg(self.folder.path().join(name));
            return command;
        }
        let mut command = tool::command("nbdkit");
        command.args(["-f", "--exit-with-parent"]);
        match transport {
            Transport::Unix => command.arg("-U").arg(&socket),
            Transport::Tcp => command.args(["-i", "127.0.0.1", "-p", &port]),
        };
        command.args(["memory", &bytes.to_string()]);
        command
    }

    /// Asks the process that serves to end, as `systemctl stop` does.
    ///
    /// # Errors
    /// If there is none.
    pub fn terminate(&self) -> Result<()> {
        for child in &self.processes {
            kill_process(Pid::from_child(child), Signal::TERM)?;
        }
        Ok(())
    }

    /// Ends every process at once, as a crash does, and waits until they are gone.
    ///
    /// # Errors
    /// If one does not go away.
    pub fn crash(&mut self, crash: Crash) -> Result<()> {
        for pid in self.pids() {
            let _ = kill_process(pid, Signal::KILL);
        }
        for child in &mut self.processes {
            // The group has whatever the first process started and did not move away.
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
            child.wait()?;
        }
        self.processes.clear();
        if crash == Crash::Host {
            for entry in std::fs::read_dir(self.arena.path())? {
                std::fs::remove_file(entry?.path())?;
            }
        }
        Ok(())
    }

    /// The processes that `status` names.
    fn pids(&self) -> Vec<Pid> {
        if self.setup.kind != Kind::Bowline {
            return Vec::new();
        }
        let status = self.json(&["status"]).unwrap_or_default();
        let roles = ["active", "passive", "keeper"];
        let pids = roles.map(|role| status["processes"][role]["pid"].as_i64());
        let pids = pids.into_iter().flatten();
        pids.filter_map(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).collect()
    }

    /// Ends the server cleanly.
    ///
    /// # Errors
    /// If it does not end, or ends with trouble.
    pub fn stop(&mut self) -> Result<()> {
        if self.setup.kind != Kind::Bowline {
            return self.crash(Crash::Process);
        }
        let pids = self.pids();
        self.forget_killed()?;
        self.bowline(&["stop"])?;
        for child in &mut self.processes {
            let status = child.wait()?;
            if !status.success() {
                return Err(format!("bowline serve ended with {status}").into());
            }
        }
        self.processes.clear();
        until("all processes end", Duration::from_secs(10), || !pids.iter().any(|&pid| runs(pid)))
    }

    /// Lets go of a process that was started here and that a test has killed since: others of its
    /// family serve.
    fn forget_killed(&mut self) -> Result<()> {
        use std::os::unix::process::ExitStatusExt;
        let mut living = Vec::new();
        for mut child in self.processes.drain(..) {
            match child.try_wait()? {
                None => living.push(child),
                Some(status) if status.signal() == Some(Signal::KILL.as_raw()) => {}
                Some(status) => return Err(format!("bowline serve ended with {status}").into()),
            }
        }
        self.processes = living;
        Ok(())
    }

    /// Reads the pool of a stopped server through to its last block; a peer has none.
    ///
    /// # Errors
    /// If it is not sound.
    pub fn check(&self) -> Result<()> {
        if self.setup.kind != Kind::Bowline {
            return Ok(());
        }
        let (program, pool) = (self.setup.program.to_string_lossy(), self.pool());
        tool::run(&program, &["pool", "check", &pool.to_string_lossy()]).map(|_| ())
    }

    /// Runs a verb against this server.
    ///
    /// # Errors
    /// If it fails.
    pub fn bowline(&self, arguments: &[&str]) -> Result<String> {
        let (program, control) = (self.setup.program.to_string_lossy(), self.control());
        let control = control.to_string_lossy();
        tool::run(&program, &[&["--control", &control], arguments].concat())
    }

    /// Runs a verb and reads its document, whatever its exit code.
    ///
    /// # Errors
    /// If it does not print one.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let (program, control) = (self.setup.program.to_string_lossy(), self.control());
        let control = control.to_string_lossy();
        let all = [&["--json", "--control", &control], arguments].concat();
        Ok(serde_json::from_slice(&tool::output(&program, &all)?.stdout)?)
    }

    /// Changes what the next [`serve`](Server::serve) is started with.
    pub fn setup(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// Where clients of a disk connect.
    #[must_use]
    pub fn address(&self, transport: Transport, disk: usize) -> crate::nbd::Address {
        let own = if self.setup.kind == Kind::Bowline { 0 } else { disk };
        match transport {
            Transport::Unix => crate::nbd::Address::Unix(self.socket(own)),
            Transport::Tcp => crate::nbd::Address::Tcp(self.port + own as u16),
        }
    }

    /// The name under which a disk is exported.
    #[must_use]
    pub fn export(&self, disk: usize) -> &str {
        match self.setup.kind {
            Kind::Bowline => &self.setup.disks[disk].0,
            _ => "",
        }
    }

    /// The URI of a disk.
    #[must_use]
    pub fn uri(&self, transport: Transport, disk: usize) -> String {
        let export = self.export(disk);
        match self.address(transport, disk) {
            crate::nbd::Address::Unix(path) => {
                format!("nbd+unix:///{export}?socket={}", path.display())
            }
            crate::nbd::Address::Tcp(port) => format!("nbd://127.0.0.1:{port}/{export}"),
        }
    }

    /// Which program serves.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.setup.kind
    }

    /// The folder that everything of the server lies in, and that tests may use.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the arena.
    #[must_use]
    pub fn arena(&self) -> &Path {
        self.arena.path()
    }

    /// The file of the pool, or its device.
    #[must_use]
    pub fn pool(&self) -> PathBuf {
        self.setup.device.clone().unwrap_or_else(|| self.folder.path().join("pool"))
    }

    /// What the server said.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn control(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    fn socket(&self, disk: usize) -> PathBuf {
        self.folder.path().join(format!("nbd{disk}.sock"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.crash(Crash::Process);
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            eprintln!("--- the server said:\n{log}---");
        }
    }
}

/// Whether a process is there and has not ended; nobody may ask how one has ended that belonged to
/// a process that is dead, too.
fn runs(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero()));
    // The state follows the name, which stands in brackets and may hold anything.
    stat.is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}

/// A port that was free a moment ago. Two tests in two processes rarely get the same.
fn free_port() -> Result<u16> {
    // Several in a row are free with the first: peers use one for each disk.
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}
