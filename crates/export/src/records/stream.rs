//! Where the two streams of a session stand: what changes with every request.

use crate::interface::CloseCause;
use bowline_wire::{BadMagic, CloseReason};

/// Where a session stands, as far as a successor has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StreamPhase {
    /// There is no session.
    Free,
    Fresh,
    Handshake,
    Transmission,
    Draining,
    Closing,
}

/// One published state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stream {
    /// Bytes received from the client. With those that an operation brings which is at the kernel,
    /// this is its base.
    pub received: u64,
    /// Where in the stream the next request, option or its rest begins; beyond what was received
    /// while a payload is received elsewhere, or skipped.
    pub consumed: u64,
    /// The receive ring's first byte that was not parsed, and how many were received from there.
    pub ring_head: u32,
    pub ring_used: u32,
    /// Bytes queued for the client, and how many of them were sent: the base of a send.
    pub queued: u64,
    pub sent: u64,
    /// The send ring's first unsent byte, and how many follow.
    pub send_head: u16,
    pub send_used: u16,
    /// Reply records made since the session got its buffers.
    pub replies: u32,
    pub phase: StreamPhase,
    pub cause: CloseCause,
    /// The client sends nothing more.
    pub ended: bool,
    /// The next header is received by itself.
    pub after_long: bool,
    /// Which session record is the current one.
    pub copy: bool,
    /// A receive, a send is at the kernel; the numbers of the last ones.
    pub receiving: bool,
    pub sending: bool,
    pub receive_number: u8,
    pub send_number: u8,
}

impl Stream {
    pub(super) fn words(&self) -> [u64; 7] {
        let (cause, argument) = code_of(self.cause);
        let phase = match self.phase {
            StreamPhase::Free => 0,
            StreamPhase::Fresh => 1,
            StreamPhase::Handshake => 2,
            StreamPhase::Transmission => 3,
            StreamPhase::Draining => 4,
            StreamPhase::Closing => 5,
        };
        let flags = [self.ended, self.after_long, self.copy, self.receiving, self.sending];
        let flags = flags.iter().rev().fold(0, |all, flag| all << 1 | u8::from(*flag));
        let [low, high] = [phase | cause << 3, flags];
        let state = u32::from_le_bytes([low, high, self.receive_number, self.send_number]);
        let send = u32::from(self.send_head) | u32::from(self.send_used) << 16;
        [
            self.received,
            self.consumed,
            u64::from(self.ring_head) | u64::from(self.ring_used) << 32,
            self.queued,
            self.sent,
            u64::from(send) | u64::from(self.replies) << 32,
            u64::from(state) | u64::from(argument) << 32,
        ]
    }

    pub(super) fn parse(words: [u64; 7]) -> Option<Stream> {
        let [received, consumed, ring, queued, sent, send, state] = words;
        let [low, flags, receive_number, send_number, ..] = state.to_le_bytes();
        let phase = match low & 7 {
            0 => StreamPhase::Free,
            1 => StreamPhase::Fresh,
            2 => StreamPhase::Handshake,
            3 => StreamPhase::Transmission,
            4 => StreamPhase::Draining,
            5 => StreamPhase::Closing,
            _ => return None,
        };
        let flag = |bit: u8| flags >> bit & 1 == 1;
        (flags < 1 << 5).then_some(())?;
        Some(Stream {
            received,
            consumed,
            ring_head: ring as u32,
            ring_used: (ring >> 32) as u32,
            queued,
            sent,
            send_head: send as u16,
            send_used: (send >> 16) as u16,
            replies: (send >> 32) as u32,
            phase,
            cause: cause_of(low >> 3, (state >> 32) as u32)?,
            ended: flag(0),
            after_long: flag(1),
            copy: flag(2),
            receiving: flag(3),
            sending: flag(4),
            receive_number,
            send_number,
        })
    }
}

fn code_of(cause: CloseCause) -> (u8, u32) {
    match cause {
        CloseCause::Client => (0, 0),
        CloseCause::Handshake(reason) => match reason {
            CloseReason::ClientFlags(flags) => (2, flags),
            CloseReason::Magic => (3, 0),
            CloseReason::UnknownExport => (4, 0),
            CloseReason::TooLong(bytes) => (5, bytes),
            // A reason that later versions of the codec may have is told as the plainest one.
            _ => (1, 0),
        },
        CloseCause::HandshakeTime => (6, 0),
        CloseCause::Magic(BadMagic(found)) => (7, found),
        CloseCause::Socket(code) => (8, code.cast_unsigned()),
        CloseCause::Stalled => (9, 0),
        CloseCause::Memory => (10, 0),
        CloseCause::Shutdown => (11, 0),
        CloseCause::Poisoned => (12, 0),
    }
}

fn cause_of(code: u8, argument: u32) -> Option<CloseCause> {
    Some(match code {
        0 => CloseCause::Client,
        1 => CloseCause::Handshake(CloseReason::Abort),
        2 => CloseCause::Handshake(CloseReason::ClientFlags(argument)),
        3 => CloseCause::Handshake(CloseReason::Magic),
        4 => CloseCause::Handshake(CloseReason::UnknownExport),
        5 => CloseCause::Handshake(CloseReason::TooLong(argument)),
        6 => CloseCause::HandshakeTime,
        7 => CloseCause::Magic(BadMagic(argument)),
        8 => CloseCause::Socket(argument.cast_signed()),
        9 => CloseCause::Stalled,
        10 => CloseCause::Memory,
        11 => CloseCause::Shutdown,
        12 => CloseCause::Poisoned,
        _ => return None,
    })
}
