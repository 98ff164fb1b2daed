//! What the medium may hold after a cut.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::dice::Dice;
use super::trace::{Kind, Op, Trace};
use crate::Result;

/// The smallest thing that is written whole.
pub const SECTOR_BYTES: usize = 512;

/// The medium at a cut: what is certainly there, and what may be.
pub struct Platter {
    bytes: Vec<u8>,
    /// Operations submitted and not certainly there, in order.
    pending: Vec<usize>,
    /// The next operation that is not looked at yet.
    next: usize,
    /// Whether ranges that are cleared become zeros; if not, they stay as they are.
    clears: bool,
}

/// What a state has of what was pending.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fates {
    /// Writes that were not certainly there.
    pub pending: u64,
    /// Of these, writes of which nothing is there.
    pub lost: u64,
    /// Of these, writes of which a part is there.
    pub torn: u64,
}

/// Bytes that a crash left behind, to be laid over what is certainly there.
pub type Patch = (u64, Vec<u8>);

impl Platter {
    /// A medium before the first step.
    #[must_use]
    pub fn new(bytes: Vec<u8>, clears: bool) -> Platter {
        Platter { bytes, pending: Vec::new(), next: 0, clears }
    }

    /// Moves on to a cut, which never lies before the last one. What had completed before the step
    /// `durable` is certainly there: [`Trace::durable`] of the cut, less for a medium that lies.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn advance(&mut self, trace: &Trace, cut: usize, durable: usize) -> Result<()> {
        while let Some(op) = trace.ops.get(self.next).filter(|op| op.submitted < cut) {
            if op.kind == Kind::Write || op.kind == Kind::Clear && self.clears {
                self.pending.push(self.next);
            }
            self.next += 1;
        }
        let is_durable = |op: &Op| op.completed.is_some_and(|step| step < durable);
        for at in std::mem::take(&mut self.pending) {
            let op = &trace.ops[at];
            if is_durable(op) {
                lay(&mut self.bytes, op.at, &trace.data(op)?)?;
            } else {
                self.pending.push(at);
            }
        }
        Ok(())
    }

    /// What is certainly there.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes that may be there, in part or not at all.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Draws what became of the pending writes: the bytes that are there, in the order in which
    /// they hit the medium.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn draw(&self, trace: &Trace, dice: &mut Dice) -> Result<(Vec<Patch>, Fates)> {
        // Crashes differ: nothing had left the cache, nearly everything had, all was cut to bits.
        let lost = dice.pick(&[0, 20, 50, 50, 80, 100]).unwrap_or(0);
        let torn = dice.pick(&[0, 20, 100]).unwrap_or(0);
        // Most crashes lose the youngest; this one loses the oldest and keeps the rest.
        let loses_first = dice.is(15);
        let mut order = self.pending.clone();
        if dice.is(50) {
            dice.shuffle(&mut order);
        }
        let mut fates = Fates { pending: order.len() as u64, ..Fates::default() };
        let mut patches = Vec::new();
        for at in order {
            let op = &trace.ops[at];
            let is_lost =
                if loses_first { self.pending.first() == Some(&at) } else { dice.is(lost) };
            if is_lost {
                fates.lost += 1;
                continue;
            }
            let data = trace.data(op)?;
            if !loses_first && dice.is(torn) && data.len() > SECTOR_BYTES {
                fates.torn += 1;
                tear(op.at, &data, dice, &mut patches);
            } else {
                patches.push((op.at, data));
            }
        }
        Ok((patches, fates))
    }

    /// Writes a state to a file, holes where there are zeros.
    ///
    /// # Errors
    /// If there is no room, or a patch lies behind the end.
    pub fn save(&self, patches: &[Patch], path: &Path) -> Result<()> {
        let file = File::create(path)?;
        file.set_len(self.bytes.len() as u64)?;
        for (at, piece) in self.bytes.chunks(PIECE_BYTES).enumerate() {
            if piece.iter().any(|&byte| byte != 0) {
                file.write_all_at(piece, (at * PIECE_BYTES) as u64)?;
            }
        }
        for (at, data) in patches {
            if at + data.len() as u64 > self.bytes.len() as u64 {
                return Err(format!("{} bytes at {at} lie behind the end", data.len()).into());
            }
            file.write_all_at(data, *at)?;
        }
        Ok(())
    }

    /// Lays something over what is certainly there.
    ///
    /// # Errors
    /// If it lies behind the end.
    pub fn lay(&mut self, (at, data): &Patch) -> Result<()> {
        lay(&mut self.bytes, *at, data)
    }
}

const PIECE_BYTES: usize = 64 << 10;

fn lay(bytes: &mut [u8], at: u64, data: &[u8]) -> Result<()> {
    let at = usize::try_from(at)?;
    let place = bytes.get_mut(at..at + data.len());
    let place = place.ok_or_else(|| format!("{} bytes at {at} lie behind the end", data.len()))?;
    place.copy_from_slice(data);
    Ok(())
}

/// Keeps some sectors of a write: its beginning, its end, all but a run, or any.
fn tear(at: u64, data: &[u8], dice: &mut Dice, patches: &mut Vec<Patch>) {
    let sectors = data.len() / SECTOR_BYTES;
    let point = 1 + dice.below(sectors as u64 - 1) as usize;
    let hole = point..point + 1 + dice.below((sectors - point) as u64) as usize;
    let way = dice.below(4);
    for (sector, bytes) in data.chunks(SECTOR_BYTES).enumerate() {
        let is_kept = match way {
            0 => sector < point,
            1 => sector >= point,
            2 => !hole.contains(&sector),
            _ => dice.is(50),
        };
        if is_kept {
            patches.push((at + (sector * SECTOR_BYTES) as u64, bytes.to_vec()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::trace::tests::{DONE, FLUSH, WRITE, log};
    use super::*;

    fn laid(platter: &Platter, patches: &[Patch]) -> Vec<u8> {
        let mut bytes = platter.bytes.clone();
        patches.iter().for_each(|(at, data)| lay(&mut bytes, *at, data).unwrap());
        bytes
    }

    /// Write 1 is flushed; 2 lies over a part of it and has completed; 3 is on its way.
    fn written() -> Trace {
        log(&[
            (WRITE, 1, 0, &[1; 2048]),
            (DONE, 1, 0, &[]),
            (FLUSH, 2, 0, &[]),
            (DONE, 2, 0, &[]),
            (WRITE, 3, 1024, &[2; 1024]),
            (DONE, 3, 0, &[]),
            (WRITE, 4, 2048, &[3; 1024]),
        ])
    }

    #[test]
    fn a_state_has_what_was_flushed_and_any_part_of_the_rest() {
        let trace = written();
        let mut platter = Platter::new(vec![0; 4096], true);
        platter.advance(&trace, 7, trace.durable(7)).unwrap();
        assert_eq!(platter.pending(), 2);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let (patches, _) = platter.draw(&trace, &mut Dice::new(seed)).unwrap();
            let state = laid(&platter, &patches);
            let sectors: Vec<u8> = state.chunks(512).map(|sector| sector[0]).collect();
            assert!(state.chunks(512).all(|sector| sector.iter().all(|b| *b == sector[0])));
            assert_eq!(sectors[..2], [1, 1], "what was flushed is there");
            assert!(sectors[2..4].iter().all(|sector| [1, 2].contains(sector)));
            assert!(sectors[4..6].iter().all(|sector| [0, 3].contains(sector)));
            assert_eq!(sectors[6..], [0, 0]);
            seen.insert(sectors);
        }
        assert_eq!(seen.len(), 16, "every combination comes up");
    }

    #[test]
    fn a_medium_that_lies_may_lose_what_was_flushed() {
        let trace = written();
        let mut platter = Platter::new(vec![0; 4096], true);
        platter.advance(&trace, 7, 0).unwrap();
        let lost = (0..100).any(|seed| {
            let (patches, _) = platter.draw(&trace, &mut Dice::new(seed)).unwrap();
            laid(&platter, &patches)[0] == 0
        });
        assert!(lost);
    }

    #[test]
    fn a_state_is_saved_as_it_is() {
        let trace = written();
        let mut platter = Platter::new(vec![0; 1 << 20], true);
        platter.advance(&trace, 5, trace.durable(5)).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let patches = vec![(1 << 19, vec![9; 512])];
        platter.save(&patches, file.path()).unwrap();
        assert_eq!(std::fs::read(file.path()).unwrap(), laid(&platter, &patches));
        assert!(platter.save(&[((1 << 20) - 1, vec![9; 2])], file.path()).is_err());
    }
}
