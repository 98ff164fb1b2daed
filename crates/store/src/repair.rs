//! What can be done about damage while nobody serves the pool. Nothing is done that was not asked
//! for: the steps come from a check, and each says what it gives up.
//!
//! - Damaged copies of the pool header, of superblocks and of the last checkpoint's blob are
//!   written again from good ones.
//! - A damaged log is cut off behind its last good batch, as recovery would at a torn end.
//! - Blocks that cannot be read, and what only a damaged page of the map knew, are marked as lost
//!   in the page above: reads of them fail until they are written or discarded. Zeros in their
//!   place would be wrong data.
//! - A slot in which a header or a head is damaged is emptied, as compaction would in time.
//!
//! Cut and marks become a fact with the superblock of one checkpoint. Before that nothing on the
//! medium that anything points to has changed. Slots are emptied after that: what is lost in them
//! keeps nothing any more.

use bowline_arena::SharedPages;

use crate::blocking::Blocking;
use crate::check::RepairStep;
use crate::format::{POOL_HEADER_AT, PoolHeader, Superblock, superblock_at};
use crate::recovery::{choose_root, read_blob_copy, read_header, read_roots};
use crate::store::{ArenaRegion, Store, StoreOptions};
use crate::tables::Entry;
use crate::{BLOCK_BYTES, Epoch, Lba, LineageId, Media, StoreError};

/// Carries out what a check proposed. The options are those to open the pool with; a pool whose
/// arena is gone asks for `accept_loss` here as anywhere.
///
/// # Errors
/// If the medium fails, or the pool is not as the check found it. It is as it was then, but for
/// copies that may have been written again.
pub fn repair<M: Media>(
    mut media: M,
    arena: ArenaRegion,
    steps: &[RepairStep],
    options: StoreOptions,
) -> Result<(), StoreError> {
    if steps.contains(&RepairStep::Copies) {
        rewrite_copies(&mut media, &arena.pages)?;
    }
    let mut options = options;
    let (mut blocks_lost, mut slots) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            RepairStep::Copies => {}
            RepairStep::CutLog { after } => options.accept_cut = Some(*after),
            RepairStep::Empty { slot } => slots.push(*slot),
            RepairStep::GiveUp { lineage, level: 0, lba, blocks, .. } => {
                blocks_lost.push((*lineage, *lba, *blocks));
            }
            RepairStep::GiveUp { lineage, level, index, .. } => {
                options.give_up.push((*lineage, *level, *index));
            }
        }
    }
    if steps.iter().all(|step| *step == RepairStep::Copies) {
        return Ok(());
    }
    let mut store = Store::open(media, arena, options)?;
    if let Some(cause) = store.status().state.refuses_writes() {
        return Err(StoreError::Damaged(cause));
    }
    for (lineage, lba, blocks) in blocks_lost {
        store.give_up_blocks(lineage, lba, blocks);
    }
    store.checkpoint_now()?;
    for slot in slots {
        store.empty_slot(slot)?;
    }
    store.close()
}

impl<M: Media> Store<M> {
    /// Blocks are lost from now on. That becomes a fact with the next checkpoint.
    fn give_up_blocks(&mut self, lineage: LineageId, lba: Lba, blocks: u64) {
        for lba in (lba.0..lba.0 + blocks).map(Lba) {
            if !self.map.active.has_room(1, 1) {
                self.map.enlarge();
            }
            let active = &mut self.map.active;
            active.ordinal += 1;
            let old = active.deltas.insert(lineage, lba, Entry::LOST, active.ordinal);
            if let Some(old) = old.filter(|old| old.entry.has_address()) {
                self.segments.clear_live(old.entry);
            }
        }
    }
}

fn rewrite_copies<M: Media>(media: &mut M, pages: &SharedPages) -> Result<(), StoreError> {
    let mut medium = Blocking::new(media, pages)?;
    let header = read_header(&mut medium)?;
    for at in POOL_HEADER_AT {
        let found = medium.read(at, BLOCK_BYTES).ok().and_then(|b| PoolHeader::decode(b).ok());
        if found != Some(header) {
            medium.write_block(at, |block| header.encode(block))?;
            medium.flush()?;
        }
    }
    // Which one counts must be beyond doubt before any is touched.
    let root = choose_root(read_roots(&mut medium, &header))?;
    let copies = read_roots(&mut medium, &header);
    for one in &copies {
        if matches!(one.found, Ok(Some(_))) {
            continue;
        }
        let other = copies.iter().find_map(|other| match &other.found {
            Ok(Some(root)) if other.pair == one.pair => Some(root.clone()),
            _ => None,
        });
        // Of an old epoch nothing is needed but that something verifies there.
        let filler = Superblock { epoch: Epoch(0), generation: 0, ..root.clone() };
        let found = other.unwrap_or(filler);
        medium.write_block(superblock_at(one.pair, one.copy), |block| {
            found.encode(header.salt, block);
        })?;
        medium.flush()?;
    }
    rewrite_blobs(&mut medium, &header, &root)
}

/// Writes copies of the last checkpoint's blob that do not verify again, where they are.
fn rewrite_blobs<M: Media>(
    medium: &mut Blocking<'_, M>,
    header: &PoolHeader,
    root: &Superblock,
) -> Result<(), StoreError> {
    let copies: Vec<_> =
        (0..root.blob.len()).map(|copy| read_blob_copy(medium, header, root, copy)).collect();
    let Some(good) = copies.iter().find_map(|copy| copy.as_ref().ok()) else {
        // Checks say what that means; no copy can help another one.
        return Ok(());
    };
    for (extents, found) in root.blob.iter().zip(&copies) {
        if found.is_ok() {
            continue;
        }
        let mut blocks = good.chunks(BLOCK_BYTES as usize);
        for (slot, block) in extents.iter().flat_map(|extent| {
            (extent.block..extent.block + extent.blocks).map(|block| (extent.slot, block))
        }) {
            let bytes = blocks.next().unwrap_or_default();
            medium.write_block(header.block_at(slot, block), |block| {
                block[..bytes.len()].copy_from_slice(bytes);
            })?;
        }
        medium.flush()?;
    }
    Ok(())
}
