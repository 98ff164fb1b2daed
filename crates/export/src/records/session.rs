//! What changes seldom of a session.

use bowline_wire::{NEGOTIATION_RECORD_BYTES, REQUEST_BYTES};
use twox_hash::XxHash3_64;

/// What was agreed on, and where the session's buffers are.
///
/// ```text
/// 0   generation u32, buffers u32: their first page + 1, or 0
/// 8   negotiation
/// 24  disk u32, flags u32
/// 32  carried, 28 bytes: what of a header was received before the buffers were given up
/// 60  checksum u32
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionRecord {
    pub generation: u32,
    /// The first page of the buffers, plus one; 0 if there are none.
    pub buffers: u32,
    pub negotiation: [u8; NEGOTIATION_RECORD_BYTES],
    /// The disk agreed on, and whether structured replies and block states were, too.
    pub agreement: Option<(u32, bool, bool)>,
    /// How often a process has died over what comes next in the stream, which begins here (as far
    /// as 20 bits tell).
    pub attempts: u8,
    pub attempts_at: u64,
    pub carried: [u8; REQUEST_BYTES],
}

const AT_MASK: u32 = (1 << 20) - 1;

impl SessionRecord {
    pub(super) fn encode(&self) -> [u8; 64] {
        let (disk, structured, allocation) = self.agreement.unwrap_or_default();
        let flags = u32::from(self.agreement.is_some())
            | u32::from(structured) << 1
            | u32::from(allocation) << 2
            | u32::from(self.attempts) << 4
            | (self.attempts_at as u32 & AT_MASK) << 12;
        let mut bytes = [0; 64];
        bytes[..4].copy_from_slice(&self.generation.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.buffers.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.negotiation);
        bytes[24..28].copy_from_slice(&disk.to_le_bytes());
        bytes[28..32].copy_from_slice(&flags.to_le_bytes());
        bytes[32..60].copy_from_slice(&self.carried);
        let checksum = XxHash3_64::oneshot(&bytes[..60]) as u32;
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The record, if these bytes are one. `attempts_at` is what was stored of it.
    pub(super) fn parse(bytes: &[u8; 64]) -> Option<SessionRecord> {
        let word = |at: usize| {
            let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_le_bytes(bytes))
        };
        let flags = word(28)?;
        if word(60)? != XxHash3_64::oneshot(&bytes[..60]) as u32 || flags & 8 != 0 {
            return None;
        }
        let agreement = (word(24)?, flags & 2 != 0, flags & 4 != 0);
        Some(SessionRecord {
            generation: word(0)?,
            buffers: word(4)?,
            negotiation: bytes[8..24].try_into().ok()?,
            agreement: (flags & 1 != 0).then_some(agreement),
            attempts: (flags >> 4) as u8,
            attempts_at: u64::from(flags >> 12),
            carried: bytes[32..60].try_into().ok()?,
        })
    }

    /// The attempts, if they are about what begins here.
    pub fn attempts_for(&self, consumed: u64) -> u8 {
        if consumed as u32 & AT_MASK == self.attempts_at as u32 { self.attempts } else { 0 }
    }
}
