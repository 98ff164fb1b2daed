//! The operations a ring can be asked for, and how the kernel is told of each.

use std::os::fd::RawFd;
use std::time::Duration;

use crate::abi;
use crate::ring::UserData;
use crate::{Memory, Part};

/// One operation for the kernel.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the fields are those of the system call of the same name")]
pub enum Operation {
    /// Nothing: completes at once with 0.
    Nop,
    /// Reads at an offset into one part.
    Read { descriptor: RawFd, at: u64, into: Part },
    /// Writes one part at an offset.
    Write { descriptor: RawFd, at: u64, from: Part },
    /// Reads at an offset into parts, one after the other.
    ReadVectored { descriptor: RawFd, at: u64, into: Vec<Part> },
    /// Writes parts at an offset, one after the other.
    WriteVectored { descriptor: RawFd, at: u64, from: Vec<Part> },
    /// Receives from a socket into one part; `flags` as for `recv`.
    Receive { descriptor: RawFd, into: Part, flags: i32 },
    /// Receives from a socket into parts, one after the other.
    ReceiveVectored { descriptor: RawFd, into: Vec<Part>, flags: i32 },
    /// Sends one part on a socket. Never raises SIGPIPE.
    Send { descriptor: RawFd, from: Part, flags: i32 },
    /// Sends parts on a socket, one after the other. Never raises SIGPIPE.
    SendVectored { descriptor: RawFd, from: Vec<Part>, flags: i32 },
    /// Accepts a connection; the result is its descriptor, closed on exec.
    Accept { descriptor: RawFd },
    /// Waits for events (`POLLIN`, ..) once; the result is the events.
    Poll { descriptor: RawFd, events: u16 },
    /// `fdatasync`. Runs in a worker of the kernel: slower than the call itself on a fast medium.
    DataSync { descriptor: RawFd },
    /// `fallocate`; `mode` as there.
    Allocate { descriptor: RawFd, mode: i32, at: u64, bytes: u64 },
    /// Completes with `-ETIME` after this long.
    Timeout { after: Duration },
    /// Cancels the operation with this user data.
    Cancel { target: UserData },
}

/// What the kernel reads beside an entry.
pub(crate) struct Scratch {
    vectors: Vec<libc::iovec>,
    message: libc::msghdr,
    time: abi::Timespec,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        // SAFETY: a message header of zeros is a valid one: null pointers with zero lengths.
        let message = unsafe { std::mem::zeroed() };
        Scratch { vectors: Vec::new(), message, time: abi::Timespec::default() }
    }

    /// The entry for an operation; what it points to beside buffers is kept here.
    pub(crate) fn entry(&mut self, memory: &Memory, operation: &Operation) -> abi::SubmissionEntry {
        let base = abi::SubmissionEntry::default();
        let plain = |opcode, descriptor: RawFd, offset, part: Part| abi::SubmissionEntry {
            opcode,
            descriptor,
            offset,
            address: memory.address(part) as u64,
            length: part.bytes,
            ..base
        };
        match operation {
            Operation::Nop => abi::SubmissionEntry { opcode: abi::OP_NOP, descriptor: -1, ..base },
            Operation::Read { descriptor, at, into } => {
                plain(abi::OP_READ, *descriptor, *at, *into)
            }
            Operation::Write { descriptor, at, from } => {
                plain(abi::OP_WRITE, *descriptor, *at, *from)
            }
            Operation::ReadVectored { descriptor, at, into } => {
                self.vectored(memory, abi::OP_READV, *descriptor, *at, into)
            }
            Operation::WriteVectored { descriptor, at, from } => {
                self.vectored(memory, abi::OP_WRITEV, *descriptor, *at, from)
            }
            Operation::Receive { descriptor, into, flags } => abi::SubmissionEntry {
                operation_flags: *flags as u32,
                ..plain(abi::OP_RECV, *descriptor, 0, *into)
            },
            Operation::Send { descriptor, from, flags } => abi::SubmissionEntry {
                operation_flags: (*flags | libc::MSG_NOSIGNAL) as u32,
                ..plain(abi::OP_SEND, *descriptor, 0, *from)
            },
            Operation::ReceiveVectored { descriptor, into, flags } => {
                self.message(memory, abi::OP_RECVMSG, *descriptor, into, *flags)
            }
            Operation::SendVectored { descriptor, from, flags } => {
                let flags = *flags | libc::MSG_NOSIGNAL;
                self.message(memory, abi::OP_SENDMSG, *descriptor, from, flags)
            }
            other => self.control(other),
        }
    }

    /// The entry for an operation that moves no bytes.
    fn control(&mut self, operation: &Operation) -> abi::SubmissionEntry {
        let base = abi::SubmissionEntry::default();
        match *operation {
            Operation::Accept { descriptor } => abi::SubmissionEntry {
                opcode: abi::OP_ACCEPT,
                descriptor,
                operation_flags: libc::SOCK_CLOEXEC as u32,
                ..base
            },
            Operation::Poll { descriptor, events } => abi::SubmissionEntry {
                opcode: abi::OP_POLL_ADD,
                descriptor,
                // The kernel wants the two halves of the word swapped on big-endian machines.
                operation_flags: if cfg!(target_endian = "big") {
                    u32::from(events) << 16
                } else {
                    u32::from(events)
                },
                ..base
            },
            Operation::DataSync { descriptor } => abi::SubmissionEntry {
                opcode: abi::OP_FSYNC,
                descriptor,
                operation_flags: abi::FSYNC_DATASYNC,
                ..base
            },
            Operation::Allocate { descriptor, mode, at, bytes } => abi::SubmissionEntry {
                opcode: abi::OP_FALLOCATE,
                descriptor,
                offset: at,
                address: bytes,
                length: mode as u32,
                ..base
            },
            Operation::Timeout { after } => {
                self.time = abi::timespec(after);
                abi::SubmissionEntry {
                    opcode: abi::OP_TIMEOUT,
                    descriptor: -1,
                    address: std::ptr::from_ref(&self.time) as u64,
                    length: 1,
                    ..base
                }
            }
            Operation::Cancel { target } => abi::SubmissionEntry {
                opcode: abi::OP_ASYNC_CANCEL,
                descriptor: -1,
                address: target.0,
                ..base
            },
            _ => unreachable!("operations with buffers are handled in `entry`"),
        }
    }

    fn fill_vectors(&mut self, memory: &Memory, parts: &[Part]) {
        self.vectors.clear();
        self.vectors.extend(parts.iter().map(|part| libc::iovec {
            iov_base: memory.address(*part).cast(),
            iov_len: part.bytes as usize,
        }));
    }

    fn vectored(
        &mut self,
        memory: &Memory,
        opcode: u8,
        descriptor: RawFd,
        at: u64,
        parts: &[Part],
    ) -> abi::SubmissionEntry {
        self.fill_vectors(memory, parts);
        abi::SubmissionEntry {
            opcode,
            descriptor,
            offset: at,
            address: self.vectors.as_ptr() as u64,
            length: self.vectors.len() as u32,
            ..abi::SubmissionEntry::default()
        }
    }

    fn message(
        &mut self,
        memory: &Memory,
        opcode: u8,
        descriptor: RawFd,
        parts: &[Part],
        flags: i32,
    ) -> abi::SubmissionEntry {
        self.fill_vectors(memory, parts);
        self.message.msg_iov = self.vectors.as_mut_ptr();
        self.message.msg_iovlen = self.vectors.len() as _;
        abi::SubmissionEntry {
            opcode,
            descriptor,
            address: std::ptr::from_ref(&self.message) as u64,
            length: 1,
            operation_flags: flags as u32,
            ..abi::SubmissionEntry::default()
        }
    }
}
