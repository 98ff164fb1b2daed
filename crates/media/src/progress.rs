//! How far a transfer has come: short ones are continued, interrupted ones tried again.

use bowline_arena::Part;
use bowline_store::{BLOCK_BYTES, MediumError};

use crate::target::Direction;

/// How many times without progress before it is an error.
const ATTEMPTS_MAX: u32 = 1000;

/// One transfer under way.
#[derive(Debug)]
pub(crate) struct Progress {
    direction: Direction,
    at: u64,
    bytes: u64,
    done: u64,
    /// What is left, in order.
    parts: Vec<Part>,
    first: usize,
    attempts: u32,
}

impl Progress {
    pub(crate) fn new(direction: Direction, at: u64, mut parts: Vec<Part>) -> Progress {
        join_neighbours(&mut parts);
        let bytes = parts.iter().map(|part| u64::from(part.bytes)).sum();
        Progress { direction, at, bytes, done: 0, parts, first: 0, attempts: 0 }
    }

    /// What is still to be moved, and where on the medium.
    pub(crate) fn rest(&self) -> (u64, &[Part]) {
        (self.at + self.done, &self.parts[self.first..])
    }

    /// Takes the result of a call that was given the rest: bytes moved, or an error number. The
    /// transfer's result, if that was the end of it.
    pub(crate) fn advance(&mut self, moved: Result<u64, i32>) -> Option<Result<(), MediumError>> {
        let call = || self.direction.call(self.bytes, self.at);
        self.attempts += 1;
        match moved {
            Err(libc::EINTR | libc::EAGAIN) if self.attempts < ATTEMPTS_MAX => return None,
            Err(code) => return Some(Err(MediumError::System { call: call(), code })),
            Ok(0) => return Some(Err(MediumError::Short { call: call(), done: self.done })),
            Ok(bytes) if self.done + bytes >= self.bytes => return Some(Ok(())),
            Ok(bytes) => {
                // Direct I/O goes on at a whole block only.
                let whole = bytes - bytes % BLOCK_BYTES;
                if whole == 0 && self.attempts >= ATTEMPTS_MAX {
                    return Some(Err(MediumError::Short { call: call(), done: self.done }));
                }
                if whole > 0 {
                    self.attempts = 0;
                }
                self.skip(whole);
            }
        }
        None
    }

    fn skip(&mut self, bytes: u64) {
        self.done += bytes;
        let mut left = bytes;
        while left > 0 {
            let part = &mut self.parts[self.first];
            let step = left.min(u64::from(part.bytes)) as u32;
            *part = part.sub(step, part.bytes - step);
            left -= u64::from(step);
            if part.bytes == 0 {
                self.first += 1;
            }
        }
    }
}

/// Makes one part of those that lie side by side.
fn join_neighbours(parts: &mut Vec<Part>) {
    parts.dedup_by(|next, before| {
        let adjacent = before.offset + u64::from(before.bytes) == next.offset;
        match before.bytes.checked_add(next.bytes) {
            Some(bytes) if adjacent => {
                before.bytes = bytes;
                true
            }
            _ => false,
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(offset: u64, bytes: u32) -> Part {
        Part { offset, bytes }
    }

    fn transfer() -> Progress {
        let parts = vec![part(4096, 4096), part(8192, 4096), part(40960, 8192)];
        Progress::new(Direction::Write, 1 << 20, parts)
    }

    #[test]
    fn neighbours_are_joined_and_short_transfers_go_on_at_a_block() {
        let mut progress = transfer();
        assert_eq!(progress.rest(), (1 << 20, &[part(4096, 8192), part(40960, 8192)][..]));
        assert_eq!(progress.advance(Ok(5000)), None);
        let rest = [part(8192, 4096), part(40960, 8192)];
        assert_eq!(progress.rest(), ((1 << 20) + 4096, &rest[..]));
        assert_eq!(progress.advance(Ok(8192)), None);
        assert_eq!(progress.rest(), ((1 << 20) + 12288, &[part(45056, 4096)][..]));
        assert_eq!(progress.advance(Ok(4096)), Some(Ok(())));
    }

    #[test]
    fn interruptions_are_tried_again_and_errors_named() {
        let mut progress = transfer();
        assert_eq!(progress.advance(Err(libc::EINTR)), None);
        assert_eq!(progress.advance(Err(libc::EAGAIN)), None);
        let call = "write of 16384 bytes at 1048576".to_owned();
        let error = MediumError::System { call: call.clone(), code: libc::EIO };
        assert_eq!(progress.advance(Err(libc::EIO)), Some(Err(error)));
        let mut progress = transfer();
        assert_eq!(progress.advance(Ok(4096)), None);
        assert_eq!(progress.advance(Ok(0)), Some(Err(MediumError::Short { call, done: 4096 })));
    }

    #[test]
    fn nothing_is_tried_for_ever() {
        let mut progress = transfer();
        let tries = (0..).find(|_| progress.advance(Err(libc::EAGAIN)).is_some());
        assert_eq!(tries, Some(ATTEMPTS_MAX as usize - 1));
        let mut progress = transfer();
        let tries = (0..).find(|_| progress.advance(Ok(512)).is_some());
        assert_eq!(tries, Some(ATTEMPTS_MAX as usize - 1));
    }
}
