//! Byte ranges as blocks: which blocks a request touches, and which of them only in part.

use bowline_store::{BLOCK_BYTES, Lba};

/// The whole blocks around a range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    /// The first block.
    pub first: Lba,
    /// Number of blocks, at least one.
    pub blocks: u64,
    /// Bytes of the first block before the range.
    pub head_bytes: u64,
    /// Bytes of the last block after the range.
    pub tail_bytes: u64,
    /// Whether the range ends where the disk does: what follows in the block is nobody's and zero.
    pub ends_disk: bool,
}

/// A block that keeps some of its old bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    /// The block.
    pub lba: Lba,
    /// Bytes kept at its start.
    pub before_bytes: u64,
    /// Bytes kept at its end.
    pub after_bytes: u64,
}

impl Area {
    /// The blocks around `bytes` bytes at `offset`, which lie within the disk.
    pub fn around(offset: u64, bytes: u64, disk_bytes: u64) -> Area {
        let end = offset + bytes;
        let first = offset / BLOCK_BYTES;
        let blocks = end.div_ceil(BLOCK_BYTES) - first;
        Area {
            first: Lba(first),
            blocks,
            head_bytes: offset % BLOCK_BYTES,
            tail_bytes: end.next_multiple_of(BLOCK_BYTES) - end,
            ends_disk: end == disk_bytes,
        }
    }

    /// The block after the last.
    pub fn end(&self) -> Lba {
        Lba(self.first.0 + self.blocks)
    }

    /// Whether the range is made of whole blocks.
    pub fn is_whole(&self) -> bool {
        self.head_bytes == 0 && self.tail_bytes == 0
    }

    /// The area, with a last block that the end of the disk cuts short counted as whole.
    pub fn to_disk_end(self) -> Area {
        if self.ends_disk { Area { tail_bytes: 0, ..self } } else { self }
    }

    /// The part of the area whose blocks are covered from end to end, if there is any.
    pub fn inner(&self) -> Option<Area> {
        let cut_head = u64::from(self.head_bytes > 0);
        let cut_tail = u64::from(self.tail_bytes > 0);
        let blocks = self.blocks.checked_sub(cut_head + cut_tail).filter(|blocks| *blocks > 0)?;
        let first = Lba(self.first.0 + cut_head);
        Some(Area { first, blocks, head_bytes: 0, tail_bytes: 0, ends_disk: self.ends_disk })
    }

    /// The blocks that keep old bytes: none, one or two.
    pub fn edges(&self) -> impl Iterator<Item = Edge> {
        let before_bytes = self.head_bytes;
        let after_bytes = if self.ends_disk { 0 } else { self.tail_bytes };
        let (first, last) = (self.first, Lba(self.end().0 - 1));
        let (head, tail) = if first == last {
            (Edge { lba: first, before_bytes, after_bytes }, None)
        } else {
            let tail = Edge { lba: last, before_bytes: 0, after_bytes };
            (Edge { lba: first, before_bytes, after_bytes: 0 }, Some(tail))
        };
        let edges = std::iter::once(head).chain(tail);
        edges.filter(|edge| edge.before_bytes + edge.after_bytes > 0)
    }

    /// Whether two runs of blocks have one in common.
    pub fn overlaps(one: (Lba, Lba), two: (Lba, Lba)) -> bool {
        one.0 < two.1 && two.0 < one.1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_edges_of_ranges() {
        let disk = 64 * 1024 + 512;
        let whole = Area::around(4096, 8192, disk);
        assert!(whole.is_whole() && whole.edges().next().is_none());
        assert_eq!((whole.inner(), whole.end()), (Some(whole), Lba(3)));

        let within = Area::around(512, 1024, disk);
        let edge = Edge { lba: Lba(0), before_bytes: 512, after_bytes: 2560 };
        assert_eq!(within.edges().collect::<Vec<_>>(), [edge]);
        assert_eq!(within.inner(), None);

        let across = Area::around(3584, 1024, disk);
        assert_eq!(across.edges().map(|edge| edge.lba).collect::<Vec<_>>(), [Lba(0), Lba(1)]);
        assert_eq!(across.inner(), None);

        let long = Area::around(3584, 1024 + 4096, disk);
        assert_eq!(long.inner().map(|area| (area.first, area.blocks)), Some((Lba(1), 1)));

        let last = Area::around(disk - 512, 512, disk);
        assert!(!last.is_whole() && last.to_disk_end().is_whole());
        assert_eq!(last.edges().next(), None, "what lies past the end is not kept");
        let inner = last.to_disk_end().inner();
        assert_eq!(inner.map(|area| (area.first, area.blocks)), Some((Lba(16), 1)));
    }
}
