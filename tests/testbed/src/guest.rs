//! A Linux guest in QEMU, and a way to run commands in it.
//!
//! The guest is built by `guest/build.sh`. Its disks are NBD exports; QEMU is told to wait for a
//! server that goes away, so the guest sees a slow disk where a server dies.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::nbd::Address;
use crate::{Result, root, tool};

/// A disk of a guest.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Its name in the guest: /dev/disk/by-serial/NAME.
    pub serial: String,
    /// The server.
    pub address: Address,
    /// The export.
    pub export: String,
}

/// What a line is stamped with when it is heard.
pub type Stamp = Arc<dyn Fn() -> u64 + Send + Sync>;

#[derive(Default)]
struct Heard {
    ready: bool,
    gone: bool,
    said: BTreeMap<u64, Vec<(u64, String)>>,
    ended: BTreeMap<u64, String>,
}

/// What the guest has said, and who waits for more of it.
struct Ear {
    heard: Mutex<Heard>,
    more: Condvar,
    stamp: Stamp,
}

/// A running guest.
pub struct Guest {
    child: Child,
    input: ChildStdin,
    ear: Arc<Ear>,
    folder: tempfile::TempDir,
    next: u64,
}

/// A command that runs in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Job(u64);

/// How long something may take in a guest before the run counts as broken.
const LIMIT: Duration = Duration::from_secs(300);

/// Builds what guests boot from, if it is not there yet.
///
/// # Errors
/// What the script says.
pub fn build() -> Result<()> {
    // Fetching the root takes minutes the first time, so there is no limit.
    let output = tool::command(root().join("guest/build.sh")).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).into())
}

impl Guest {
    /// Boots a guest with these disks and waits until it takes commands.
    ///
    /// # Errors
    /// If it does not come up; with what it said on its serial line.
    pub fn boot(disks: &[Disk]) -> Result<Guest> {
        Guest::boot_stamped(disks, Arc::new(|| 0))
    }

    /// As [`boot`](Guest::boot); every line that is heard gets a stamp, see
    /// [`numbers`](Guest::numbers).
    ///
    /// # Errors
    /// As [`boot`](Guest::boot).
    pub fn boot_stamped(disks: &[Disk], stamp: Stamp) -> Result<Guest> {
        build()?;
        let folder = tempfile::Builder::new().prefix("bowline-guest-").tempdir()?;
        let mut command = tool::command("qemu-system-x86_64");
        command.args(machine(&root().join("build/guest"), folder.path()));
        for (at, disk) in disks.iter().enumerate() {
            command.args(disk_arguments(at, disk));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(File::create(folder.path().join("qemu.log"))?);
        let mut child = command.spawn()?;
        let input = child.stdin.take().ok_or("no standard input")?;
        let output = child.stdout.take().ok_or("no standard output")?;
        let ear = Arc::new(Ear { heard: Mutex::default(), more: Condvar::new(), stamp });
        let listening = ear.clone();
        std::thread::spawn(move || listening.listen(BufReader::new(output)));
        let guest = Guest { child, input, ear, folder, next: 1 };
        guest.wait("the guest boots", |heard| heard.ready.then_some(()))?;
        Ok(guest)
    }

    /// Starts a command and does not wait for it.
    ///
    /// # Errors
    /// If the guest is gone.
    pub fn start(&mut self, command: &str) -> Result<Job> {
        let id = self.next;
        self.next += 1;
        writeln!(self.input, "{id} {}", command.replace('\n', "; "))?;
        self.input.flush()?;
        Ok(Job(id))
    }

    /// Runs a command to its end: its exit code and what it said.
    ///
    /// # Errors
    /// If the guest is gone, or the command does not end.
    pub fn output(&mut self, command: &str) -> Result<(i32, String)> {
        let job = self.start(command)?;
        self.end(job)
    }

    /// Runs a command that must end with 0, and gives what it said.
    ///
    /// # Errors
    /// If it ends with something else.
    pub fn run(&mut self, command: &str) -> Result<String> {
        match self.output(command)? {
            (0, said) => Ok(said),
            (code, said) => {
                Err(format!("in the guest: `{command}` ended with {code}\n{said}").into())
            }
        }
    }

    /// Waits for the end of a command: its exit code and what it said.
    ///
    /// # Errors
    /// If the guest is gone, or the command does not end.
    pub fn end(&self, job: Job) -> Result<(i32, String)> {
        let status = self.wait("a command ends", |heard| heard.ended.get(&job.0).cloned())?;
        let said = self.lines(job).join("\n");
        let code = status.parse().map_err(|_| format!("a command was {status}\n{said}"))?;
        Ok((code, said))
    }

    /// The last number that a job has said: what it knows to be acknowledged.
    #[must_use]
    pub fn acknowledged(&self, job: Job) -> u64 {
        let lines = self.lines(job);
        lines.iter().rev().find_map(|line| line.parse().ok()).unwrap_or(0)
    }

    /// Every number that a job has said, each with the stamp it got when it was heard.
    #[must_use]
    pub fn numbers(&self, job: Job) -> Vec<(u64, u64)> {
        let heard = self.ear.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let said = heard.said.get(&job.0).map(Vec::as_slice).unwrap_or_default();
        said.iter().filter_map(|(stamp, line)| Some((*stamp, line.parse().ok()?))).collect()
    }

    /// Waits until a job has acknowledged at least this number.
    ///
    /// # Errors
    /// If the guest is gone, the job has ended, or it does not get on.
    pub fn reach(&self, job: Job, number: u64) -> Result<()> {
        let reached = self.wait("a job gets on", |heard| {
            let said = heard.said.get(&job.0).map(Vec::as_slice).unwrap_or_default();
            let last = said.iter().rev().find_map(|(_, line)| line.parse::<u64>().ok());
            let reached = last.is_some_and(|last| last >= number);
            (reached || heard.ended.contains_key(&job.0)).then_some(reached)
        })?;
        if reached { Ok(()) } else { Err(format!("a job has ended: {:?}", self.lines(job)).into()) }
    }

    fn lines(&self, job: Job) -> Vec<String> {
        let heard = self.ear.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let said = heard.said.get(&job.0).map(Vec::as_slice).unwrap_or_default();
        said.iter().map(|(_, line)| line.clone()).collect()
    }

    fn wait<T>(&self, what: &str, is_so: impl Fn(&Heard) -> Option<T>) -> Result<T> {
        let started = Instant::now();
        let mut heard = self.ear.heard.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(value) = is_so(&heard) {
                return Ok(value);
            }
            if heard.gone || started.elapsed() > LIMIT {
                let how = if heard.gone { "the guest is gone" } else { "it takes too long" };
                return Err(format!("{what}: {how}\n{}", self.logs()).into());
            }
            let wait = self.ear.more.wait_timeout(heard, Duration::from_secs(1));
            heard = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What QEMU and the guest's kernel said.
    #[must_use]
    pub fn logs(&self) -> String {
        let read = |name| std::fs::read_to_string(self.folder.path().join(name));
        let logs = ["qemu.log", "serial.log"].map(|name| read(name).unwrap_or_default());
        logs.join("\n")
    }

    /// The number of the QEMU process: as long as it is the same, the guest was never restarted.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the guest said:\n{}---", self.logs());
        }
    }
}

impl Ear {
    fn listen(&self, mut from: impl BufRead) {
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_string();
            self.hear(&text);
            line.clear();
        }
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).gone = true;
        self.more.notify_all();
    }

    fn hear(&self, line: &str) {
        let stamp = (self.stamp)();
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let digits = line.find(|c: char| !c.is_ascii_digit()).unwrap_or(line.len());
        let (id, rest) = line.split_at(digits);
        match (id.parse(), rest) {
            (Err(_), "ready") => heard.ready = true,
            (Ok(id), rest) if rest.starts_with("> ") => {
                heard.said.entry(id).or_default().push((stamp, rest[2..].to_string()));
            }
            (Ok(id), rest) if rest.starts_with("= ") => {
                heard.ended.insert(id, rest[2..].to_string());
            }
            _ => return,
        }
        self.more.notify_all();
    }
}

fn machine(built: &Path, folder: &Path) -> Vec<String> {
    let file = |name: &str| built.join(name).display().to_string();
    let serial: PathBuf = folder.join("serial.log");
    let words = [
        "-cpu max -m 768 -smp 1 -nodefaults -display none -no-reboot",
        "-device virtio-serial-pci -chardev stdio,id=console,signal=off",
        "-device virtconsole,chardev=console -device virtio-rng-pci",
    ];
    let mut arguments: Vec<String> = words.join(" ").split(' ').map(ToString::to_string).collect();
    let append = "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on";
    let root = format!(
        "driver=raw,node-name=root,read-only=on,file.driver=file,file.filename={},file.locking=off",
        file("root.squashfs")
    );
    // Emulation runs everywhere and gives the same answers; KVM inside a virtual machine may not.
    let accelerator = std::env::var("BOWLINE_TEST_ACCEL").unwrap_or_else(|_| "tcg".into());
    for argument in [
        ["-accel", &accelerator],
        ["-kernel", &file("vmlinuz")],
        ["-initrd", &file("initramfs")],
        ["-append", append],
        ["-serial", &format!("file:{}", serial.display())],
        ["-blockdev", &root],
        ["-device", "virtio-blk-pci,drive=root,serial=root"],
    ] {
        arguments.extend(argument.map(ToString::to_string));
    }
    arguments
}

fn disk_arguments(at: usize, disk: &Disk) -> Vec<String> {
    let server = match &disk.address {
        Address::Unix(path) => format!("server.type=unix,server.path={}", path.display()),
        Address::Tcp(port) => format!("server.type=inet,server.host=127.0.0.1,server.port={port}"),
    };
    let export =
        if disk.export.is_empty() { String::new() } else { format!(",export={}", disk.export) };
    let node = format!(
        "driver=nbd,node-name=disk{at},reconnect-delay=600,cache.direct=on,discard=unmap,\
         {server}{export}"
    );
    let device = format!("virtio-blk-pci,drive=disk{at},serial={}", disk.serial);
    ["-blockdev", &node, "-device", &device].map(ToString::to_string).to_vec()
}
