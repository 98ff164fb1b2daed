//! Data of replies: where in the stream to the client the bytes of a list of spans go. All other
//! queued bytes lie in the send ring, in order.
//!
//! ```text
//! 0   position in the stream u64
//! 8   first page + 1 u32, bytes u32
//! 16  skip u16: of the first span, lane u8, zeros
//! 24  checksum u64, seeded with session and number
//! ```

use bowline_arena::{Memory, PAGE_BYTES, Span};
use twox_hash::XxHash3_64;
use zerocopy::IntoBytes;

use crate::budget::Lane;

/// Reply records of a session: so many replies with data can be on their way.
pub(crate) const REPLIES_MAX: u32 = PAGE_BYTES / 32;

/// Data of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReplyRecord {
    pub position: u64,
    pub first: u32,
    pub bytes: u32,
    pub skip: u16,
    pub lane: Lane,
}

fn seed(session: u32, number: u32) -> u64 {
    u64::from(session) << 32 | u64::from(number)
}

impl ReplyRecord {
    fn words(&self) -> [u64; 3] {
        let place = u64::from(self.first) | u64::from(self.bytes) << 32;
        [self.position, place, u64::from(self.skip) | (self.lane as u64) << 16]
    }

    pub(super) fn parse(words: [u64; 4], session: u32, number: u32) -> Option<ReplyRecord> {
        let [position, place, rest, checksum] = words;
        if checksum != XxHash3_64::oneshot_with_seed(seed(session, number), words[..3].as_bytes()) {
            return None;
        }
        let lane = match rest >> 16 {
            1 => Lane::Small,
            2 => Lane::Jumbo,
            _ => return None,
        };
        let (first, bytes) = (place as u32, (place >> 32) as u32);
        Some(ReplyRecord { position, first, bytes, skip: rest as u16, lane })
    }
}

/// Stores a reply record. It counts when the stream does count it.
pub(crate) fn store_reply(
    memory: &Memory,
    page: &mut Span,
    session: u32,
    number: u32,
    record: &ReplyRecord,
) {
    let [a, b, c] = record.words();
    let checksum = XxHash3_64::oneshot_with_seed(seed(session, number), [a, b, c].as_bytes());
    let at = number % REPLIES_MAX * 32;
    memory.write(page, at, [a, b, c, checksum].as_bytes());
}
