//! Making a pool, and reading what its last checkpoint says.

use std::collections::{BTreeMap, BTreeSet};

use crate::blocking::Blocking;
use crate::catalogue::Catalogue;
use crate::format::{
    Blob, BlobSegment, POOL_HEADER_AT, PoolHeader, Position, SLOT_BYTES_MAX, SUPERBLOCK_COPIES,
    SUPERBLOCK_PAIRS, SegmentKind, Superblock, checksum, other_copy, superblock_at,
};
use crate::map::Map;
use crate::recovery::Known;
use crate::reserve::slots_max;
use crate::segments::{Segment, Segments};
use crate::store::Broken;
use crate::{
    BLOCK_BYTES, BatchNumber, Epoch, Media, MediumError, PoolId, SegmentId, Seq, SlotId, StoreError,
};

/// The fewest slots a pool can work with.
const SLOTS_MIN: u32 = 24;
/// The smallest slot of a new pool: in smaller ones the heads of images take what compaction wins.
const NEW_SLOT_BYTES_MIN: u64 = 128 << 10;

/// What a new pool is to be.
#[derive(Debug, Clone, Copy)]
pub struct CreateOptions {
    /// Its identity, drawn at random.
    pub pool: PoolId,
    /// The secret seed of its checksums, drawn at random.
    pub salt: u64,
    /// Bytes in a slot.
    pub slot_bytes: u64,
    /// The time, in seconds since 1970.
    pub now_seconds: u64,
}

/// Makes a pool on a medium, over whatever was there.
///
/// # Errors
/// If the sizes cannot be or the medium fails.
pub fn create<M: Media>(
    media: &mut M,
    pages: &bowline_arena::SharedPages,
    options: &CreateOptions,
) -> Result<(), StoreError> {
    let slot_bytes = options.slot_bytes;
    if !(NEW_SLOT_BYTES_MIN..=SLOT_BYTES_MAX).contains(&slot_bytes)
        || !slot_bytes.is_multiple_of(BLOCK_BYTES)
    {
        return Err(StoreError::Invalid(format!(
            "{slot_bytes} bytes cannot be the size of a slot: use {NEW_SLOT_BYTES_MIN} to \
             {SLOT_BYTES_MAX}"
        )));
    }
    let header = PoolHeader {
        pool: options.pool,
        salt: options.salt,
        slot_bytes,
        created_at_seconds: options.now_seconds,
    };
    let bytes = media.bytes_total();
    let slot_count = header.slots_on(bytes);
    if slot_count < SLOTS_MIN {
        return Err(StoreError::Invalid(format!(
            "{bytes} bytes are too few for a pool: it needs {SLOTS_MIN} slots of {slot_bytes} bytes"
        )));
    }
    check_slot_count(slot_count, &header)?;
    let root = Superblock {
        pool: options.pool,
        epoch: Epoch(0),
        generation: 1,
        boot: 0,
        clean: true,
        slot_count,
        segment_limit: SegmentId(1),
        seq: Seq(0),
        position: Position {
            segment: SegmentId(0),
            slot: SlotId(0),
            block: header.slot_blocks(),
            number: BatchNumber(0),
            checksum: options.salt,
        },
        blob: Default::default(),
        blob_bytes: 0,
        blob_checksum: options.salt,
        cuts: Vec::new(),
    };
    let mut medium = Blocking::new(media, pages)?;
    // Every place for a superblock holds one from the beginning: one that holds none was lost.
    for epoch in 0..SUPERBLOCK_PAIRS {
        for copy in 0..SUPERBLOCK_COPIES {
            medium.write_block(superblock_at(epoch, copy), |block| {
                root.encode(header.salt, block);
            })?;
        }
    }
    medium.flush()?;
    for at in POOL_HEADER_AT {
        medium.write_block(at, |block| header.encode(block))?;
    }
    medium.flush()?;
    Ok(())
}

/// Whether the checkpoints of so many slots can be named by a superblock.
///
/// # Errors
/// If they cannot.
pub(crate) fn check_slot_count(slot_count: u32, header: &PoolHeader) -> Result<(), StoreError> {
    let most = slots_max(header.slot_blocks());
    if u64::from(slot_count) <= most {
        return Ok(());
    }
    let (slot_bytes, most_bytes) = (header.slot_bytes, most * header.slot_bytes);
    Err(StoreError::Invalid(format!(
        "{slot_count} slots of {slot_bytes} bytes are too many for the superblock: with slots of \
         this size a pool has at most {most_bytes} bytes; make it with larger slots"
    )))
}

/// What never changes about the pool on a medium: which one it is, above all.
///
/// # Errors
/// If there is no pool, or it cannot be read.
pub fn pool_header<M: Media>(
    media: &mut M,
    pages: &bowline_arena::SharedPages,
) -> Result<PoolHeader, StoreError> {
    read_header(&mut Blocking::new(media, pages)?)
}

/// Reads the pool header from whichever copy verifies.
///
/// # Errors
/// If none does.
pub(crate) fn read_header<M: Media>(
    medium: &mut Blocking<'_, M>,
) -> Result<PoolHeader, StoreError> {
    let mut first_error = None;
    for at in POOL_HEADER_AT {
        let read = medium.read(at, BLOCK_BYTES).map_err(StoreError::Medium);
        match read.and_then(PoolHeader::decode) {
            Ok(header) => return Ok(header),
            Err(error) => first_error = first_error.or(Some(error)),
        }
    }
    Err(first_error.unwrap_or_else(|| StoreError::NotAPool("no pool header".into())))
}

/// A place for a superblock, and what it holds.
pub(crate) struct RootCopy {
    pub pair: u64,
    pub copy: u64,
    pub found: Result<Option<Superblock>, MediumError>,
}

/// Reads every copy of every superblock.
pub(crate) fn read_roots<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
) -> Vec<RootCopy> {
    let mut all = Vec::new();
    for pair in 0..SUPERBLOCK_PAIRS {
        for copy in 0..SUPERBLOCK_COPIES {
            let at = superblock_at(pair, copy);
            // A passing error must not let an older superblock stand in.
            let again = medium.read(at, BLOCK_BYTES).is_err();
            let block = if again { medium.read(at, BLOCK_BYTES) } else { medium.last(BLOCK_BYTES) };
            let found = block.map(|block| {
                let found = Superblock::decode(header.salt, header.pool, block);
                found.filter(|root| root.epoch.0 % SUPERBLOCK_PAIRS == pair || root.epoch.0 == 0)
            });
            all.push(RootCopy { pair, copy, found });
        }
    }
    all
}

/// The superblock that counts, among all copies: the one with the highest (epoch, generation).
///
/// # Errors
/// If none verifies, or a later one may have been where none verifies now. An older one must not
/// stand in for it: what it names may have been overwritten since.
pub(crate) fn choose_root(copies: Vec<RootCopy>) -> Result<Superblock, StoreError> {
    let mut errors = BTreeMap::new();
    let mut pairs = BTreeSet::new();
    let mut best: Option<Superblock> = None;
    for RootCopy { pair, found, .. } in copies {
        match found {
            Ok(None) => {}
            Ok(Some(found)) => {
                pairs.insert(pair);
                let is_better = best.as_ref().is_none_or(|best| {
                    (found.epoch, found.generation) > (best.epoch, best.generation)
                });
                if is_better {
                    best = Some(found);
                }
            }
            Err(error) => {
                errors.insert(pair, error);
            }
        }
    }
    let Some(best) = best else {
        let error = errors.pop_first().map(|(_, error)| StoreError::Medium(error));
        return Err(error.unwrap_or_else(|| StoreError::Damaged("no superblock verifies".into())));
    };
    let next = (best.epoch.0 + 1) % SUPERBLOCK_PAIRS;
    if pairs.contains(&next) {
        return Ok(best);
    }
    Err(match errors.remove(&next) {
        Some(error) => StoreError::Medium(error),
        None => StoreError::Damaged(format!(
            "both copies of the superblock of epoch {} are damaged; the last one that can be read \
             is of epoch {}",
            best.epoch.0 + 1,
            best.epoch
        )),
    })
}

/// Reads the superblock that counts.
///
/// # Errors
/// If it is not to be had.
pub(crate) fn read_root<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
) -> Result<Superblock, StoreError> {
    choose_root(read_roots(medium, header))
}

/// Makes sure that both copies of the superblock that counts are there, before a slot that only an
/// older one needs is written to.
///
/// Whoever wrote the copy that is found may have died before it was flushed, or because a flush
/// failed, after which no other flush says anything about it. So it is written again and flushed
/// before the other one is touched: a loss of power could tear both. If it was durable already, the
/// same bytes over it harm nothing.
pub(crate) fn double_root<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
    root: &Superblock,
    broken: &[Broken],
) -> Result<(), StoreError> {
    let (mut found, mut missing, mut failed) = (None, None, None);
    for copy in 0..SUPERBLOCK_COPIES {
        let is_there = match medium.read(superblock_at(root.epoch.0, copy), BLOCK_BYTES) {
            Ok(block) => Superblock::decode(header.salt, header.pool, block).as_ref() == Some(root),
            Err(MediumError::Died) => return Err(MediumError::Died.into()),
            // A block that cannot be read can often be written: that is what the other copy is for.
            Err(error) => {
                failed = Some(error);
                false
            }
        };
        *(if is_there { &mut found } else { &mut missing }) = Some(copy);
    }
    let Some(missing) = missing else { return Ok(()) };
    let Some(mut found) = found else {
        let changed = || StoreError::Damaged("the superblock changed while it was read".into());
        return Err(failed.map_or_else(changed, StoreError::from));
    };
    let is_believed = broken.contains(&Broken::FoundCopyBelieved);
    if is_believed || broken.contains(&Broken::BothCopiesUnflushed) {
        if is_believed {
            medium.flush()?;
        }
        let at = superblock_at(root.epoch.0, missing);
        medium.write_block(at, |block| root.encode(header.salt, block))?;
        return Ok(medium.flush()?);
    }
    write_root(medium, header, root, &mut found)
}

/// Writes both copies of a superblock, one after the other: first the one that is in doubt, which
/// may not be whole or durable, as the other one is to stay what it is until that is. Names the
/// one that is in doubt now, whether it went well or not.
pub(crate) fn write_root<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
    root: &Superblock,
    doubtful_copy: &mut u64,
) -> Result<(), StoreError> {
    let first = *doubtful_copy;
    for copy in [first, other_copy(first)] {
        *doubtful_copy = copy;
        medium.write_block(superblock_at(root.epoch.0, copy), |block| {
            root.encode(header.salt, block);
        })?;
        medium.flush()?;
    }
    *doubtful_copy = 0;
    Ok(())
}

/// Reads the blob of the last checkpoint, from whichever copy verifies, and builds what it
/// describes.
///
/// # Errors
/// If no copy can be read, or none verifies.
pub(crate) fn load_blob<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: PoolHeader,
    root: Superblock,
    mut map: Map,
) -> Result<Known, StoreError> {
    let (blob, bad_blobs) = read_blob(medium, &header, &root)?;
    let damaged = |what: String| StoreError::Damaged(format!("the last checkpoint {what}"));
    let mut segments = Segments::new(root.slot_count, header.slot_blocks(), root.segment_limit);
    for slot in root.blob_slots() {
        if slot.0 >= root.slot_count {
            return Err(damaged(format!("names slot {slot}, which there is not")));
        }
        segments.use_slot(slot, SegmentKind::Blob);
    }
    for one in blob.segments {
        let is_here = one.pieces.iter().all(|piece| piece.slot.0 < root.slot_count);
        if !is_here || one.live.blocks() != header.slot_blocks() {
            return Err(damaged(format!("puts segment {} where nothing can be", one.segment)));
        }
        if segments.get(one.segment).is_some() {
            return Err(damaged(format!("names segment {} twice", one.segment)));
        }
        for piece in &one.pieces {
            // An image never holds block 0, the header, so only a whole segment is that long.
            let is_whole = piece.directory.len() == header.slot_blocks();
            let kind = if is_whole { one.kind } else { SegmentKind::Images };
            segments.use_slot(piece.slot, kind);
        }
        let BlobSegment { segment, kind, pieces, live } = one;
        segments.add(segment, Segment { kind, pieces, live });
    }
    let catalogue = Catalogue {
        disks: blob.disks.into_iter().map(|disk| (disk.id, disk)).collect(),
        next_disk: blob.next_disk,
        next_lineage: blob.next_lineage,
    };
    map.lineages = blob.lineages.into_iter().map(|one| (one.lineage, one)).collect();
    Ok(Known { header, root, segments, catalogue, map, bad_blobs })
}

/// The blob, and which copies of it are damaged. All are read: the one that is not needed now would
/// be missed later.
fn read_blob<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
    root: &Superblock,
) -> Result<(Blob, Vec<(usize, String)>), StoreError> {
    if root.blob.iter().all(Vec::is_empty) {
        // Disk and lineage numbers begin with 1.
        return Ok((Blob { next_disk: 1, next_lineage: 1, ..Blob::default() }, Vec::new()));
    }
    let (mut found, mut bad, mut first_error) = (None, Vec::new(), None);
    for copy in 0..root.blob.len() {
        let read = read_blob_copy(medium, header, root, copy).and_then(|bytes| {
            let what = "the last checkpoint verifies, and cannot be understood";
            Blob::decode(&bytes).ok_or_else(|| StoreError::Version(what.into()))
        });
        match read {
            Ok(blob) => found = found.or(Some(blob)),
            Err(StoreError::Medium(MediumError::Died)) => return Err(MediumError::Died.into()),
            Err(error) => {
                bad.push((copy, error.to_string()));
                first_error = first_error.or(Some(error));
            }
        }
    }
    let no_blob = || StoreError::Damaged("there is no checkpoint".into());
    found.map(|blob| (blob, bad)).ok_or_else(|| first_error.unwrap_or_else(no_blob))
}

/// The bytes of a copy of the blob.
///
/// # Errors
/// If it cannot be read or does not verify.
pub(crate) fn read_blob_copy<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
    root: &Superblock,
    copy: usize,
) -> Result<Vec<u8>, StoreError> {
    let (mut bytes, mut sum) = (Vec::new(), header.salt);
    for extent in root.blob.get(copy).into_iter().flatten() {
        let mut done = 0;
        while done < extent.blocks {
            let at = header.block_at(extent.slot, extent.block + done);
            let left = u64::from(extent.blocks - done) * BLOCK_BYTES;
            // Errors may pass.
            let again = medium.read(at, left).is_err();
            let chunk = if again { medium.read(at, left)? } else { medium.last(left)? };
            for block in chunk.chunks_exact(BLOCK_BYTES as usize) {
                sum = checksum(sum, block);
            }
            done += (chunk.len() as u64 / BLOCK_BYTES) as u32;
            bytes.extend_from_slice(chunk);
        }
    }
    let length = usize::try_from(root.blob_bytes).unwrap_or(usize::MAX);
    if sum != root.blob_checksum || bytes.len() < length {
        return Err(StoreError::Damaged("the last checkpoint does not verify".into()));
    }
    bytes.truncate(length);
    Ok(bytes)
}
