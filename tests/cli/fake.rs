//! A data thread that only pretends: it answers the control plane's commands from a status it
//! keeps, so that the command line can be tested in every state a server can be in.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Output};
use std::thread::JoinHandle;

use bowline::control::api::{
    Condition, DiskStatus, Kind, PoolState, Problem, RepairReport, Scrub, ScrubAction, ScrubState,
    ServerStatus,
};
use bowline::control::service::{self, Service, no_disk};
use bowline::server::command::{Command, Commands, channel};
use rustix::event::{PollFd, PollFlags, poll};

/// A pretended server, its control socket, and the program that talks to it.
pub struct Fake {
    folder: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
    service: Option<Service>,
}

/// A server that is well, with one disk.
pub fn well() -> ServerStatus {
    let mut status = ServerStatus { version: "0.1.0".into(), ..ServerStatus::default() };
    status.medium = "threads".into();
    status.pool.path = "pool".into();
    status.pool.size_bytes = 10 << 30;
    status.pool.space.physical_bytes = 1 << 30;
    status.takeover.reason = "no partner is running".into();
    let uris = vec!["nbd://127.0.0.1:10809/disk0".into()];
    status.disks.push(DiskStatus {
        name: "disk0".into(),
        size_bytes: 8 << 30,
        uris,
        ..DiskStatus::default()
    });
    status
}

impl Fake {
    pub fn start(status: ServerStatus) -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let (asker, commands) = channel().unwrap();
        let thread = std::thread::spawn(move || answer(&commands, status));
        let listener = service::listen(&folder.path().join("control.sock")).unwrap();
        let service = service::start(listener, asker, |_| ()).unwrap();
        Fake { folder, thread: Some(thread), service: Some(service) }
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("control.sock")
    }

    /// Runs the program against this server.
    pub fn bowline(&self, arguments: &[&str]) -> Said {
        let mut process = program();
        process.arg("--control").arg(self.socket()).args(arguments);
        said(&process.output().unwrap())
    }

    /// Runs it with `--json` and gives the document.
    pub fn json(&self, arguments: &[&str]) -> (i32, serde_json::Value) {
        let said = self.bowline(&[arguments, &["--json"]].concat());
        let document: serde_json::Value = serde_json::from_str(&said.out).unwrap();
        assert_eq!(document["output_version"], 1);
        assert_eq!(said.err, "", "with --json everything is in the document");
        (said.code, document)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = self.bowline(&["stop"]);
        drop(self.service.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a run of the program came to.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

pub fn program() -> Process {
    let mut process = Process::new(env!("CARGO_BIN_EXE_bowline"));
    process.env_remove("BOWLINE_CONTROL").stdin(std::process::Stdio::null());
    process
}

pub fn said(output: &Output) -> Said {
    Said {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout.clone()).unwrap(),
        err: String::from_utf8(output.stderr.clone()).unwrap(),
    }
}

/// As a data thread does it: sleep until the bell rings, then take everything.
fn answer(commands: &Commands, mut status: ServerStatus) {
    loop {
        poll(&mut [PollFd::new(&commands.as_fd(), PollFlags::IN)], None).unwrap();
        while let Some(command) = commands.next() {
            if let Command::Stop(reply) = command {
                reply.send(Ok(()));
                return;
            }
            one(command, &mut status);
        }
    }
}

fn one(command: Command, status: &mut ServerStatus) {
    match command {
        Command::Status(reply) => reply.send(Ok(status.clone())),
        Command::Scrub(Scrub { action, .. }, reply) => {
            status.pool.scrub.state = match action {
                ScrubAction::Start => ScrubState::Running,
                ScrubAction::Pause => ScrubState::Paused,
                ScrubAction::Stop => ScrubState::Cancelled,
            };
            reply.send(Ok(status.pool.clone()));
        }
        Command::Grow(order, reply) => {
            status.pool.size_bytes = order.size_bytes.unwrap_or(20 << 30);
            reply.send(Ok(status.pool.clone()));
        }
        Command::Resume(order, reply) if status.pool.state == PoolState::LostWrites => {
            let problem = Problem::new(Kind::Degraded, "acknowledged writes were lost");
            reply.send(if order.accept_loss {
                status.pool.state = PoolState::Well;
                status.pool.conditions.clear();
                Ok(status.pool.clone())
            } else {
                Err(problem.next("bowline pool resume --accept-loss"))
            });
        }
        Command::Resume(_, reply) => reply.send(Ok(status.pool.clone())),
        Command::Repair(_, reply) => reply.send(Ok(RepairReport::default())),
        Command::CreateDisk(order, reply) => {
            if status.disks.iter().any(|disk| disk.name == order.name) {
                let what = format!("there is a disk {:?} already", order.name);
                return reply.send(Err(Problem::new(Kind::Exists, what)));
            }
            let disk = DiskStatus {
                name: order.name,
                size_bytes: order.size_bytes,
                durability: order.durability,
                ..DiskStatus::default()
            };
            status.disks.push(disk.clone());
            reply.send(Ok(disk));
        }
        Command::ChangeDisk(name, order, reply) => {
            let Some(disk) = status.disks.iter_mut().find(|disk| disk.name == name) else {
                return reply.send(Err(no_disk(&name)));
            };
            disk.size_bytes = order.size_bytes.unwrap_or(disk.size_bytes);
            disk.durability = order.durability.unwrap_or(disk.durability);
            disk.read_only = order.read_only.unwrap_or(disk.read_only);
            reply.send(Ok(disk.clone()));
        }
        Command::DestroyDisk(name, reply) => {
            let Some(at) = status.disks.iter().position(|disk| disk.name == name) else {
                return reply.send(Err(no_disk(&name)));
            };
            reply.send(Ok(status.disks.remove(at)));
        }
        other => panic!("{other:?} is not pretended"),
    }
}

/// A server whose host lost its arena.
pub fn lost_writes() -> ServerStatus {
    let mut status = well();
    status.state = PoolState::LostWrites;
    status.pool.state = PoolState::LostWrites;
    status.pool.conditions.push(Condition {
        name: "lost-writes".into(),
        meaning: "writes that guests were told of may be missing; none are taken".into(),
        doing: "reads are answered".into(),
        remedy: "check the guests, then bowline pool resume --accept-loss".into(),
    });
    status
}
