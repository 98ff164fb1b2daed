//! Nobody special: an ordinary user, 8 MiB of locked memory, and a kernel that refuses io_uring.

use std::os::unix::fs::PermissionsExt;

use bowline_testbed::server::{Crash, Server, Setup, Transport};

use crate::{client, setup};

/// The user nobody. A test that is not run by root is an ordinary user already.
const NOBODY: u32 = 65534;
const LOCKED_BYTES: u64 = 8 << 20;

/// Refuses io_uring with EPERM, as containers do, and runs the rest of its arguments.
const REFUSE_IO_URING: &str = r"
import ctypes, os, struct, sys
steps = [(0x20, 0, 0, 0), (0x15, 2, 0, 425), (0x15, 1, 0, 426), (0x15, 0, 1, 427),
         (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
program = struct.pack('HxxxxxxQ', len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program, 0, 0):
    sys.exit('seccomp: ' + os.strerror(ctypes.get_errno()))
os.execvp(sys.argv[1], sys.argv[1:])
";

fn ordinary(folder: &tempfile::TempDir, refuses_io_uring: bool) -> Setup {
    let mut setup = setup();
    let memlock = format!("--memlock={LOCKED_BYTES}:{LOCKED_BYTES}");
    setup.wrapper = vec!["prlimit".into(), memlock];
    if rustix::process::getuid().is_root() {
        setup.owner = Some(NOBODY);
        let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
        let dropped = ["--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
        setup.wrapper.extend(["setpriv".into(), user, group]);
        setup.wrapper.extend(dropped.map(Into::into));
    }
    if refuses_io_uring {
        setup.wrapper.extend(["python3".into(), "-c".into(), REFUSE_IO_URING.into()]);
    }
    // Where the program was built, another user may not look.
    let program = folder.path().join("bowline");
    std::fs::copy(&setup.program, &program).unwrap();
    let everybody = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), everybody).unwrap();
    setup.program = program;
    setup
}

/// That the server is what this test says it is.
fn is_ordinary(server: &Server) {
    let status = server.json(&["status"]).unwrap();
    let pid = status["processes"]["active"]["pid"].as_u64().unwrap();
    let of = |file: &str, line: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let found = text.lines().find_map(|found| found.strip_prefix(line).map(str::to_owned));
        found.unwrap().split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let locked = LOCKED_BYTES.to_string();
    assert_eq!(of("limits", "Max locked memory")[..2], [locked.clone(), locked]);
    assert!(of("status", "Uid:").iter().all(|user| user != "0"), "root is not ordinary");
    assert_eq!(of("status", "CapEff:"), ["0000000000000000"]);
}

fn serves(setup: Setup) -> (String, String, bool) {
    let mut server = Server::start(setup).unwrap();
    for round in 1..=2u8 {
        is_ordinary(&server);
        let mut writer = client(&server, Transport::Unix);
        writer.write(0, &vec![round; 4 << 20]).unwrap();
        writer.flush().unwrap();
        writer.write(8 << 20, &[round + 10; 8192]).unwrap();
        server.crash(Crash::Process).unwrap();
        server.serve().unwrap();
        let mut reader = client(&server, Transport::Tcp);
        assert_eq!(reader.read(0, 4 << 20).unwrap(), vec![round; 4 << 20]);
        assert_eq!(reader.read(8 << 20, 8192).unwrap(), vec![round + 10; 8192]);
    }
    let status = server.json(&["status"]).unwrap();
    let refused = status["conditions"].as_array().unwrap().iter();
    let says_so = refused.map(|one| &one["name"]).any(|name| name == "io-uring-refused");
    server.stop().unwrap();
    server.serve().unwrap();
    assert_eq!(client(&server, Transport::Unix).read(8 << 20, 4096).unwrap(), [12; 4096]);
    server.stop().unwrap();
    server.check().unwrap();
    let word = |name: &str| status[name].as_str().unwrap().to_owned();
    (word("medium"), word("sockets"), says_so)
}

#[test]
fn an_ordinary_user_with_little_locked_memory_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let (medium, sockets, says_so) = serves(ordinary(&folder, false));
    // Whatever of it this kernel gives an ordinary user, status tells.
    let by_ring = (medium == "io_uring", sockets == "io_uring");
    assert!(by_ring == (!says_so, !says_so), "{medium}, {sockets}, refusal shown: {says_so}");
}

#[test]
fn an_ordinary_user_is_served_where_io_uring_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let served = serves(ordinary(&folder, true));
    assert_eq!(served, ("threads".into(), "poll".into(), true));
}
