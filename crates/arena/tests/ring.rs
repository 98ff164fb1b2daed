//! The ring against the kernel: every operation, its limits, and the wait policy.

#![allow(clippy::expect_used, reason = "a test says so and ends")]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use bowline_arena::{
    Completed, Memory, Operation, Pages, Part, Ring, RingOptions, SharedPages, Span, UserData,
};

const SPIN: Duration = Duration::from_micros(20);

/// A ring with pages. A system that gives none fails the test: nothing passes untested.
fn ring(options: RingOptions) -> Option<(Ring, SharedPages)> {
    let pages = Pages::whole(Memory::private(1 << 20));
    match Ring::anonymous(Rc::clone(pages.memory()), options) {
        Ok(ring) => Some((ring, Rc::new(RefCell::new(pages)))),
        Err(refused) => panic!("the ring cannot be tested here: {refused}"),
    }
}

fn filled(pages: &SharedPages, byte: u8) -> Span {
    let mut span = pages.borrow_mut().take(1).expect("a page");
    let memory = Rc::clone(pages.borrow().memory());
    memory.slice_mut(&mut span).fill(byte);
    span
}

fn content(pages: &SharedPages, part: Part) -> Vec<u8> {
    let mut bytes = Vec::new();
    pages.borrow().memory().fetch(part, &mut bytes);
    bytes
}

fn run(ring: &mut Ring, operation: Operation) -> i32 {
    let user_data = UserData::new(3, 77, 5);
    ring.push(user_data, operation);
    loop {
        ring.wait(None, SPIN).expect("waited");
        if let Some(completed) = ring.completion() {
            assert_eq!(completed.user_data, user_data);
            return completed.result;
        }
    }
}

#[test]
fn user_data_is_packed_and_unpacked() {
    let user_data = UserData::new(0xab, 0x00cd_ef01, 0x2345_6789);
    assert_eq!(user_data.class(), 0xab);
    assert_eq!(user_data.slot(), 0x00cd_ef01);
    assert_eq!(user_data.generation(), 0x2345_6789);
    let completed = Completed { user_data, result: -5 };
    assert_eq!(completed.outcome(), Err(5));
    assert_eq!(Completed { result: 7, ..completed }.outcome(), Ok(7));
}

#[test]
fn files_are_written_and_read_whole_and_vectored() {
    let Some((mut ring, pages)) = ring(RingOptions::default()) else { return };
    let file = tempfile::tempfile().expect("file");
    let descriptor = file.as_raw_fd();
    let (one, two) = (filled(&pages, 1), filled(&pages, 2));
    let parts = vec![two.part(), one.part(), two.part().sub(0, 512)];
    let allocate = Operation::Allocate { descriptor, mode: 0, at: 0, bytes: 1 << 16 };
    assert_eq!(run(&mut ring, allocate), 0);
    assert_eq!(file.metadata().expect("metadata").len(), 1 << 16);
    let write = Operation::Write { descriptor, at: 4096, from: one.part() };
    assert_eq!(run(&mut ring, write), 4096);
    let write = Operation::WriteVectored { descriptor, at: 8192, from: parts };
    assert_eq!(run(&mut ring, write), 8704);
    assert_eq!(run(&mut ring, Operation::DataSync { descriptor }), 0);
    let (three, four) = (filled(&pages, 0), filled(&pages, 0));
    let into = vec![three.part(), four.part()];
    let read = Operation::ReadVectored { descriptor, at: 4096, into };
    assert_eq!(run(&mut ring, read), 8192);
    assert_eq!(content(&pages, three.part()), [1; 4096]);
    assert_eq!(content(&pages, four.part()), [2; 4096]);
    let read = Operation::Read { descriptor, at: 12288, into: three.part() };
    assert_eq!(run(&mut ring, read), 4096);
    assert_eq!(content(&pages, three.part()), [1; 4096]);
    let wrong = Operation::Read { descriptor: -1, at: 0, into: three.part() };
    assert_eq!(run(&mut ring, wrong), -libc::EBADF);
}

#[test]
fn sockets_accept_send_receive_poll_and_cancel() {
    let Some((mut ring, pages)) = ring(RingOptions::default()) else { return };
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut client =
        std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connected");
    let accept = Operation::Accept { descriptor: listener.as_raw_fd() };
    let accepted = run(&mut ring, accept);
    assert!(accepted >= 0, "{accepted}");
    // SAFETY: the kernel has just made this descriptor for us.
    let accepted = unsafe { OwnedFd::from_raw_fd(accepted) };
    let descriptor = accepted.as_raw_fd();
    let (one, two) = (filled(&pages, 1), filled(&pages, 2));
    let small = one.part().sub(0, 100);
    assert_eq!(run(&mut ring, Operation::Send { descriptor, from: small, flags: 0 }), 100);
    let from = vec![two.part().sub(0, 10), one.part().sub(0, 5)];
    assert_eq!(run(&mut ring, Operation::SendVectored { descriptor, from, flags: 0 }), 15);
    let mut received = [0; 115];
    client.read_exact(&mut received).expect("received");
    assert_eq!(received[100..], [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1]);
    client.write_all(&[9; 60]).expect("sent");
    let events = libc::POLLIN as u16;
    let polled = run(&mut ring, Operation::Poll { descriptor, events });
    assert!(polled & libc::POLLIN as i32 != 0);
    let into = one.part().sub(0, 20);
    let receive = Operation::Receive { descriptor, into, flags: libc::MSG_WAITALL };
    assert_eq!(run(&mut ring, receive), 20);
    let into = vec![one.part().sub(1000, 15), two.part().sub(0, 25)];
    let receive = Operation::ReceiveVectored { descriptor, into, flags: libc::MSG_WAITALL };
    assert_eq!(run(&mut ring, receive), 40);
    assert_eq!(content(&pages, two.part().sub(0, 26))[24..], [9, 2]);
    // Nothing more comes: a receive waits until it is cancelled.
    let target = UserData::new(1, 1, 1);
    ring.push(target, Operation::Receive { descriptor, into: one.part(), flags: 0 });
    ring.push(UserData::new(1, 2, 1), Operation::Cancel { target });
    let mut results = Vec::new();
    while results.len() < 2 {
        ring.wait(None, SPIN).expect("waited");
        results.extend(std::iter::from_fn(|| ring.completion()));
    }
    let result = |slot| results.iter().find(|c| c.user_data.slot() == slot).map(|c| c.result);
    assert_eq!(result(1), Some(-libc::ECANCELED));
    assert_eq!(result(2), Some(0));
}

#[test]
fn more_than_the_queues_hold_waits_its_turn_and_none_is_lost() {
    let options = RingOptions { sq_entries: 4, cq_entries: 8 };
    let Some((mut ring, _pages)) = ring(options) else { return };
    for slot in 0..1000 {
        ring.push(UserData::new(1, slot, 0), Operation::Nop);
    }
    assert_eq!(ring.in_flight(), 1000);
    // As many as the completion queue holds, however often we submit without reaping.
    ring.submit().expect("submitted");
    ring.submit().expect("submitted");
    let mut seen = Vec::new();
    while seen.len() < 1000 {
        let mut reaped = 0;
        while let Some(completed) = ring.completion() {
            seen.push(completed.user_data.slot());
            reaped += 1;
        }
        assert!(reaped <= 8, "the completion queue holds 8, reaped {reaped}");
        if ring.in_flight() > 0 {
            ring.wait(None, Duration::ZERO).expect("waited");
        }
    }
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..1000));
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn a_wait_ends_with_its_timeout_and_a_timeout_operation_completes() {
    let Some((mut ring, _pages)) = ring(RingOptions::default()) else { return };
    let start = std::time::Instant::now();
    ring.wait(Some(Duration::from_millis(30)), SPIN).expect("waited");
    assert!(ring.completion().is_none());
    assert!(start.elapsed() >= Duration::from_millis(29));
    let after = Duration::from_millis(1);
    assert_eq!(run(&mut ring, Operation::Timeout { after }), -libc::ETIME);
}

#[test]
fn classes_are_told_apart_and_kept() {
    let Some((mut ring, _pages)) = ring(RingOptions::default()) else { return };
    for (class, slot) in [(1, 10), (2, 20), (1, 11), (2, 21)] {
        ring.push(UserData::new(class, slot, 0), Operation::Nop);
    }
    while ring.in_flight() > 0 && !ring.ready() {
        ring.wait(None, SPIN).expect("waited");
    }
    let second: Vec<u32> =
        std::iter::from_fn(|| ring.completion_of(2)).map(|c| c.user_data.slot()).collect();
    assert_eq!(second, [20, 21]);
    assert!(ring.ready());
    let rest: Vec<u32> =
        std::iter::from_fn(|| ring.completion()).map(|c| c.user_data.slot()).collect();
    assert_eq!(rest, [10, 11]);
    assert_eq!(ring.in_flight(), 0);
}

/// What is kept for others neither ends the wait nor keeps the kernel from posting.
#[test]
fn a_wait_for_more_is_for_what_is_not_kept() {
    let Some((mut ring, _pages)) = ring(RingOptions::default()) else { return };
    ring.push(UserData::new(1, 10, 0), Operation::Nop);
    ring.push(UserData::new(2, 20, 0), Operation::Timeout { after: Duration::from_millis(20) });
    ring.wait(None, SPIN).expect("waited");
    assert!(ring.completion_of(2).is_none(), "it takes 20 ms");
    assert!(ring.ready(), "the other is kept");
    // A wait that ended at once would be over before its time, however often it is tried here.
    let found = (0..100).find_map(|_| {
        ring.wait_for_more(None, SPIN).expect("waited");
        ring.completion_of(2)
    });
    assert_eq!(found.expect("it has come back").user_data.slot(), 20);
    assert_eq!(ring.completion().expect("kept").user_data.slot(), 10);
}

#[test]
fn dropping_a_ring_ends_what_is_in_flight() {
    let Some((mut ring, pages)) = ring(RingOptions::default()) else { return };
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let span = filled(&pages, 7);
    let read = Operation::Read { descriptor: reader.as_raw_fd(), at: 0, into: span.part() };
    ring.push(UserData::new(1, 1, 1), read);
    ring.submit().expect("submitted");
    drop(ring);
    writer.write_all(&[1; 100]).expect("written");
    assert_eq!(content(&pages, span.part()), [7; 4096], "nothing lands after the drop");
}

/// Forbids this thread `io_uring_setup`, as a container's seccomp profile does.
fn forbid_io_uring(code: i32) {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let mut filter = [
        // Load the number of the system call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
            jt: 0,
            jf: 1,
            k: libc::SYS_io_uring_setup as u32,
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | code as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program lives until the calls return; the filter holds for this thread only.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program), 0);
    }
}

#[test]
fn a_refusal_is_explained() {
    for (code, word) in [(libc::EPERM, "sandbox"), (libc::ENOSYS, "none"), (libc::EINVAL, "6.10")] {
        let refused = std::thread::spawn(move || {
            forbid_io_uring(code);
            let memory = Rc::new(Memory::private(4096));
            Ring::anonymous(memory, RingOptions::default()).err()
        });
        let refused = refused.join().expect("joined").expect("refused");
        assert_eq!(refused.code, code);
        assert!(refused.to_string().contains(word), "{refused}");
    }
}
