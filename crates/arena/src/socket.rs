//! Sockets by plain calls, for systems that give no ring. Bytes go straight to and from parts of a
//! memory; the rule of parts holds for the time of the call.

use std::io::Error;
use std::os::fd::{AsFd, AsRawFd};

use crate::{Memory, Part};

/// More parts than this are not taken by one call.
const VECTORS_MAX: usize = 64;

/// Receives into parts, one after the other; 0 at the end of the stream. Never waits.
///
/// # Errors
/// Those of `recvmsg`; `WouldBlock` if there is nothing now.
///
/// # Panics
/// If a part reaches past the end of the memory.
pub fn receive_parts(memory: &Memory, socket: impl AsFd, into: &[Part]) -> std::io::Result<u32> {
    let mut vectors = vectors(memory, into);
    let mut message = message(&mut vectors);
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: the message and its vectors live until the call returns; the bytes lie in the memory
    // (address), and by the rule of parts nobody looks at them meanwhile.
    let moved = unsafe { libc::recvmsg(descriptor, &raw mut message, libc::MSG_DONTWAIT) };
    u32::try_from(moved).map_err(|_| Error::last_os_error())
}

/// Sends parts, one after the other, as far as the socket takes them. Never waits, never raises
/// SIGPIPE.
///
/// # Errors
/// Those of `sendmsg`; `WouldBlock` if the socket takes nothing now.
///
/// # Panics
/// If a part reaches past the end of the memory.
pub fn send_parts(memory: &Memory, socket: impl AsFd, from: &[Part]) -> std::io::Result<u32> {
    let mut vectors = vectors(memory, from);
    let message = message(&mut vectors);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let descriptor = socket.as_fd().as_raw_fd();
    // SAFETY: as in `receive_parts`; the bytes are only read.
    let moved = unsafe { libc::sendmsg(descriptor, &raw const message, flags) };
    u32::try_from(moved).map_err(|_| Error::last_os_error())
}

fn vectors(memory: &Memory, parts: &[Part]) -> Vec<libc::iovec> {
    let vector = |part: &Part| libc::iovec {
        iov_base: memory.address(*part).cast(),
        iov_len: part.bytes as usize,
    };
    parts.iter().take(VECTORS_MAX).map(vector).collect()
}

fn message(vectors: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: a message header of zeros is a valid one: null pointers with zero lengths.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    message.msg_iovlen = vectors.len() as _;
    message
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_go_from_parts_to_parts_in_order() {
        let memory = Memory::private(8192);
        memory.land(Part { offset: 0, bytes: 3 }, b"abc");
        memory.land(Part { offset: 100, bytes: 2 }, b"de");
        let (one, other) = UnixStream::pair().expect("a pair");
        let parts = [Part { offset: 0, bytes: 3 }, Part { offset: 100, bytes: 2 }];
        assert_eq!(send_parts(&memory, &one, &parts).expect("sent"), 5);
        let into = [Part { offset: 4096, bytes: 1 }, Part { offset: 5000, bytes: 9 }];
        assert_eq!(receive_parts(&memory, &other, &into).expect("received"), 5);
        let mut found = Vec::new();
        memory.fetch(Part { offset: 4096, bytes: 1 }, &mut found);
        memory.fetch(Part { offset: 5000, bytes: 4 }, &mut found);
        assert_eq!(found, b"abcde");
        let nothing = receive_parts(&memory, &other, &into).expect_err("nothing there");
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
        drop(one);
        assert_eq!(receive_parts(&memory, &other, &into).expect("the end"), 0);
    }
}
