//! Records in the log: changes of the catalogue, moves of images. The checkpoint is their
//! materialised state.

use super::bytes::{Reader, Writer};
use crate::{Disk, DiskId, Durability, LineageId, LossLimits, Provision, SegmentId, SlotId};

/// Where an image of a range of a segment was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ImageMove {
    /// The segment whose live blocks were copied.
    pub segment: SegmentId,
    /// The first index of the range.
    pub first: u32,
    /// The index after its last.
    pub end: u32,
    /// Where they are now.
    pub slot: SlotId,
    /// The block of the slot where the image's data begins; its head follows the data.
    pub block: u32,
    /// Blocks of data.
    pub data_blocks: u32,
}

/// A record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    /// A disk was made, or anything about it but its blocks was changed.
    Disk(Disk),
    /// A disk was destroyed, and its blocks with it.
    Destroyed(DiskId),
    /// Images are durable and take the place of what was before.
    Moved(Vec<ImageMove>),
    /// The pool has this many slots now.
    Grown {
        /// Slots.
        slot_count: u32,
    },
}

/// Most moves in one record block.
pub(crate) const MOVES_MAX: usize = 120;

/// Flags of a disk.
const READ_ONLY: u8 = 1;
/// The limits of loss follow the name; without the flag they are the default ones.
const HAS_LIMITS: u8 = 2;

/// Writes a disk.
pub(crate) fn encode_disk(disk: &Disk, out: &mut Writer) {
    out.u32(disk.id.0);
    out.u32(disk.lineage.0);
    out.u64(disk.bytes);
    out.u8(match disk.durability {
        Durability::Strict => 0,
        Durability::Hinted => 1,
        Durability::Ordered => 2,
        Durability::Sync => 3,
    });
    out.u8(match disk.provision {
        Provision::Thin => 0,
        Provision::Lazy => 1,
        Provision::Eager => 2,
    });
    let has_limits = disk.loss_limits != LossLimits::default();
    out.u8(if disk.read_only { READ_ONLY } else { 0 } | if has_limits { HAS_LIMITS } else { 0 });
    out.bytes(disk.name.as_bytes());
    if has_limits {
        out.u64(disk.loss_limits.loss_ms_max);
        out.u64(disk.loss_limits.loss_bytes_max);
    }
}

/// Reads a disk.
pub(crate) fn decode_disk(from: &mut Reader<'_>) -> Option<Disk> {
    let (id, lineage) = (DiskId(from.u32()?), LineageId(from.u32()?));
    let bytes = from.u64()?;
    let durability = match from.u8()? {
        0 => Durability::Strict,
        1 => Durability::Hinted,
        2 => Durability::Ordered,
        3 => Durability::Sync,
        _ => return None,
    };
    let provision = match from.u8()? {
        0 => Provision::Thin,
        1 => Provision::Lazy,
        2 => Provision::Eager,
        _ => return None,
    };
    let flags = from.u8().filter(|flags| flags & !(READ_ONLY | HAS_LIMITS) == 0)?;
    let name = String::from_utf8(from.bytes()?.to_vec()).ok()?;
    let loss_limits = if flags & HAS_LIMITS == 0 {
        LossLimits::default()
    } else {
        LossLimits { loss_ms_max: from.u64()?, loss_bytes_max: from.u64()? }
    };
    let read_only = flags & READ_ONLY != 0;
    Some(Disk { id, name, bytes, lineage, durability, provision, read_only, loss_limits })
}

impl Record {
    /// The record as bytes: at most a block.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        match self {
            Record::Disk(disk) => {
                out.u8(1);
                encode_disk(disk, &mut out);
            }
            Record::Destroyed(disk) => {
                out.u8(2);
                out.u32(disk.0);
            }
            Record::Moved(moves) => {
                assert!(moves.len() <= MOVES_MAX);
                out.u8(3);
                out.u32(moves.len() as u32);
                for one in moves {
                    out.u64(one.segment.0);
                    out.u32(one.first);
                    out.u32(one.end);
                    out.u32(one.slot.0);
                    out.u32(one.block);
                    out.u32(one.data_blocks);
                }
            }
            Record::Grown { slot_count } => {
                out.u8(4);
                out.u32(*slot_count);
            }
        }
        out.0
    }

    /// Reads a record; what follows it is ignored.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Record> {
        let mut from = Reader(bytes);
        Some(match from.u8()? {
            1 => Record::Disk(decode_disk(&mut from)?),
            2 => Record::Destroyed(DiskId(from.u32()?)),
            3 => {
                let count = from.u32()? as usize;
                let mut moves = Vec::new();
                for _ in 0..count.min(MOVES_MAX) {
                    moves.push(ImageMove {
                        segment: SegmentId(from.u64()?),
                        first: from.u32()?,
                        end: from.u32()?,
                        slot: SlotId(from.u32()?),
                        block: from.u32()?,
                        data_blocks: from.u32()?,
                    });
                }
                Record::Moved(moves)
            }
            4 => Record::Grown { slot_count: from.u32()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_comes_back_with_its_limits_of_loss() {
        let disk = |read_only, loss_ms_max, loss_bytes_max| Disk {
            id: DiskId(3),
            name: "d".into(),
            bytes: 1 << 30,
            lineage: LineageId(9),
            durability: Durability::Ordered,
            provision: Provision::Thin,
            read_only,
            loss_limits: LossLimits { loss_ms_max, loss_bytes_max },
        };
        let usual = LossLimits::default();
        let disks = [
            disk(false, usual.loss_ms_max, usual.loss_bytes_max),
            disk(true, usual.loss_ms_max, usual.loss_bytes_max),
            disk(false, 20, usual.loss_bytes_max),
            disk(true, 0, u64::MAX),
        ];
        for (disk, extra) in disks.into_iter().zip([0, 0, 16, 16]) {
            let record = Record::Disk(disk);
            let bytes = record.encode();
            assert_eq!(bytes.len(), 25 + extra);
            assert_eq!(Record::decode(&bytes), Some(record));
        }
    }

    #[test]
    fn a_flag_that_is_not_known_is_damage() {
        let mut bytes = Record::Disk(Disk {
            id: DiskId(1),
            name: "d".into(),
            bytes: 4096,
            lineage: LineageId(1),
            durability: Durability::Strict,
            provision: Provision::Thin,
            read_only: true,
            loss_limits: LossLimits::default(),
        })
        .encode();
        assert_eq!(bytes[19], READ_ONLY);
        bytes[19] |= 4;
        assert_eq!(Record::decode(&bytes), None);
    }
}
