//! Messages between two processes of a family, whole or not at all, with descriptors beside them.
//!
//! A message that was sent is the receiver's, whatever becomes of the sender. Nothing here waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message, in bytes: a configuration with long paths fits well.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Most descriptors beside one.
pub const DESCRIPTORS_MAX: usize = 64;

/// One end.
pub struct Channel {
    socket: OwnedFd,
    /// Messages without descriptors that found the channel full.
    waiting: RefCell<VecDeque<Vec<u8>>>,
}

impl AsFd for Channel {
    /// Readable when a message waits, or the other end has gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Channel {
    /// Two ends.
    ///
    /// # Errors
    /// If the system has no descriptor left.
    pub fn pair() -> std::io::Result<(Channel, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Channel::over(one), other))
    }

    /// The end behind a descriptor.
    pub fn over(socket: OwnedFd) -> Channel {
        Channel { socket, waiting: RefCell::default() }
    }

    /// Sends a message. One without descriptors that finds the channel full is kept, and goes with
    /// the next [`send`](Channel::send) or [`receive`](Channel::receive).
    ///
    /// # Errors
    /// If the other end has gone, or does not take its messages and this one has descriptors.
    pub fn send<M: Serialize>(
        &self,
        message: &M,
        descriptors: &[BorrowedFd<'_>],
    ) -> std::io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        assert!(bytes.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", bytes.len());
        self.send_waiting()?;
        let mut waiting = self.waiting.borrow_mut();
        let sent = if waiting.is_empty() { self.put(&bytes, descriptors) } else { Ok(false) };
        match sent? {
            true => Ok(()),
            false if descriptors.is_empty() => {
                waiting.push_back(bytes);
                Ok(())
            }
            false => Err(ErrorKind::WouldBlock.into()),
        }
    }

    fn send_waiting(&self) -> std::io::Result<()> {
        let mut waiting = self.waiting.borrow_mut();
        while let Some(bytes) = waiting.front() {
            if !self.put(bytes, &[])? {
                break;
            }
            waiting.pop_front();
        }
        Ok(())
    }

    /// Puts one message into the channel; false if that is full.
    fn put(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> std::io::Result<bool> {
        assert!(descriptors.len() <= DESCRIPTORS_MAX, "{} descriptors", descriptors.len());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            let fits = beside.push(SendAncillaryMessage::ScmRights(descriptors));
            assert!(fits, "the space is for so many");
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut beside, flags) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The next message, if one waits.
    ///
    /// # Errors
    /// `UnexpectedEof` when the other end has gone and all its messages have been taken; or if what
    /// came is no message.
    pub fn receive<M: DeserializeOwned>(&self) -> std::io::Result<Option<(M, Vec<OwnedFd>)>> {
        // That the other end has gone shows below.
        let _ = self.send_waiting();
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let into = &mut [IoSliceMut::new(&mut bytes)];
        let received = match recvmsg(&self.socket, into, &mut beside, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(Errno::CONNRESET) => return Err(ErrorKind::UnexpectedEof.into()),
            Err(error) => return Err(error.into()),
        };
        if received.bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let descriptors = beside.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        });
        let descriptors = descriptors.collect();
        let message = bytes.get(..received.bytes).unwrap_or_default();
        let message = serde_json::from_slice(message).map_err(Error::other)?;
        Ok(Some((message, descriptors)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn messages_come_in_order_with_their_descriptors_also_from_the_dead() {
        let (one, other) = Channel::pair().unwrap();
        let other = Channel::over(other);
        assert!(other.receive::<u32>().unwrap().is_none());
        let (mut read, write) = std::io::pipe().unwrap();
        one.send(&1, &[]).unwrap();
        one.send(&2, &[write.as_fd()]).unwrap();
        drop((one, write));
        let (first, none) = other.receive::<u32>().unwrap().unwrap();
        assert!(first == 1 && none.is_empty());
        let (second, mut handed) = other.receive::<u32>().unwrap().unwrap();
        assert_eq!((second, handed.len()), (2, 1));
        let mut write = std::io::PipeWriter::from(handed.remove(0));
        write.write_all(b"well").unwrap();
        drop(write);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "well");
        let end = other.receive::<u32>().unwrap_err();
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_full_channel_keeps_words_and_refuses_descriptors() {
        let (one, other) = Channel::pair().unwrap();
        let other = Channel::over(other);
        let count = 20_000u32;
        for number in 0..count {
            one.send(&number, &[]).unwrap();
        }
        assert!(!one.waiting.borrow().is_empty(), "it never was full");
        let refused = one.send(&0u32, &[other.as_fd()]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::WouldBlock);
        for number in 0..count {
            if let Some((found, _)) = other.receive::<u32>().unwrap() {
                assert_eq!(found, number);
            } else {
                panic!("{number} is not there");
            }
            // Whoever looks for an answer passes on what waits.
            assert!(one.receive::<u32>().unwrap().is_none());
        }
    }
}
