//! The first pages of an arena: what it is, who owns it, and which rings may have I/O in flight.
//!
//! ```text
//! 0      identity: magic, layout, pool, boot, instance, regions, checksum; written once
//! 4096   current: number of the valid owner record, a published word
//! 4160   quarantine: 64 words, each 0 or the number of a ring file
//! 8192   owner record of even numbers: epoch, process, control address, checksum
//! 12288  owner record of odd numbers
//! ```
//!
//! An owner record is written beside the current one and then made current by one word, so the
//! header is valid after every prefix of its stores.

use twox_hash::XxHash3_64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{Memory, PAGE_BYTES, Part, Span};

/// Bytes of the header.
pub(crate) const HEADER_BYTES: u32 = 4 * PAGE_BYTES;
/// Version of everything in an arena file: header, and the store's and sessions' records in it.
pub const ARENA_LAYOUT: u32 = 4;

const MAGIC: u64 = u64::from_le_bytes(*b"BOWLARNA");
const CURRENT: u32 = PAGE_BYTES;
const QUARANTINE: u32 = PAGE_BYTES + 64;
const QUARANTINE_SLOTS: u32 = 64;
const OWNERS: u32 = 2 * PAGE_BYTES;
const ADDRESS_BYTES: usize = 512;

/// What an arena belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The pool.
    pub pool: u128,
    /// The boot of the machine; memory of an earlier boot means nothing.
    pub boot: u128,
    /// The instance.
    pub instance: u64,
    /// Bytes of the control region.
    pub control_bytes: u64,
    /// Bytes of the session region; there may be none.
    pub session_bytes: u64,
    /// Bytes of the page region.
    pub page_bytes: u64,
}

/// Who uses an arena, and since which adoption.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Owner {
    /// Number of the adoption; the first owner has 1.
    pub epoch: u64,
    /// The process.
    pub process: u32,
    /// When it started, in clock ticks since boot: tells it from a later process of that number.
    pub started: u64,
    /// Where its control socket is; empty until it has one.
    pub control_address: String,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct RegionRecord {
    kind: u32,
    reserved: u32,
    offset: u64,
    bytes: u64,
}

const KIND_CONTROL: u32 = 1;
const KIND_PAGES: u32 = 2;
const KIND_SESSIONS: u32 = 3;

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct IdentityRecord {
    magic: u64,
    layout: u32,
    header_bytes: u32,
    pool: [u8; 16],
    boot: [u8; 16],
    instance: u64,
    regions: [RegionRecord; 8],
    checksum: u64,
}

#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct OwnerRecord {
    number: u64,
    epoch: u64,
    started: u64,
    process: u32,
    address_bytes: u32,
    address: [u8; ADDRESS_BYTES],
    checksum: u64,
}

const _: () = {
    assert!(size_of::<RegionRecord>() == 24);
    assert!(size_of::<IdentityRecord>() == 256);
    assert!(size_of::<OwnerRecord>() == 552);
    assert!(QUARANTINE + QUARANTINE_SLOTS * 8 <= OWNERS);
};

/// Why bytes are no header of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Never completed, or damaged.
    Damaged,
    /// Of another version of the program.
    Layout(u32),
}

/// The bytes a checksum at the end of a record covers.
fn covered<T: IntoBytes + Immutable>(record: &T) -> u64 {
    let bytes = record.as_bytes();
    XxHash3_64::oneshot(&bytes[..bytes.len() - size_of::<u64>()])
}

impl Identity {
    /// Where the control region lies.
    pub(crate) fn control(&self) -> Part {
        Part { offset: u64::from(HEADER_BYTES), bytes: self.control_bytes as u32 }
    }

    /// Where the pages lie.
    pub(crate) fn pages(&self) -> std::ops::Range<u64> {
        let start = self.sessions().offset + self.session_bytes;
        start..start + self.page_bytes
    }

    /// Where the records of sessions lie.
    pub(crate) fn sessions(&self) -> Part {
        let offset = u64::from(HEADER_BYTES) + self.control_bytes;
        Part { offset, bytes: self.session_bytes as u32 }
    }

    /// Bytes of the whole arena.
    pub(crate) fn bytes_total(&self) -> u64 {
        self.pages().end
    }

    fn record(&self) -> IdentityRecord {
        let none = RegionRecord { kind: 0, reserved: 0, offset: 0, bytes: 0 };
        let region = |kind, offset, bytes| RegionRecord { kind, reserved: 0, offset, bytes };
        let mut regions = [none; 8];
        regions[0] = region(KIND_CONTROL, self.control().offset, self.control_bytes);
        regions[1] = region(KIND_PAGES, self.pages().start, self.page_bytes);
        regions[2] = region(KIND_SESSIONS, self.sessions().offset, self.session_bytes);
        let mut record = IdentityRecord {
            magic: MAGIC,
            layout: ARENA_LAYOUT,
            header_bytes: HEADER_BYTES,
            pool: self.pool.to_le_bytes(),
            boot: self.boot.to_le_bytes(),
            instance: self.instance,
            regions,
            checksum: 0,
        };
        record.checksum = covered(&record);
        record
    }

    /// Reads the identity of an arena from its first bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Identity, Unusable> {
        let (record, _) = IdentityRecord::read_from_prefix(bytes).map_err(|_| Unusable::Damaged)?;
        if record.magic != MAGIC {
            return Err(Unusable::Damaged);
        }
        // The layout comes before the checksum: another version may keep that elsewhere.
        if record.layout != ARENA_LAYOUT {
            return Err(Unusable::Layout(record.layout));
        }
        let [control, pages, sessions, ..] = record.regions;
        let identity = Identity {
            pool: u128::from_le_bytes(record.pool),
            boot: u128::from_le_bytes(record.boot),
            instance: record.instance,
            control_bytes: control.bytes,
            session_bytes: sessions.bytes,
            page_bytes: pages.bytes,
        };
        let limit = 1 << 46;
        let sane = record.checksum == covered(&record)
            && sizes_fit(control.bytes, sessions.bytes, pages.bytes)
            && pages.bytes < limit
            && record.regions.as_bytes() == identity.record().regions.as_bytes();
        if sane { Ok(identity) } else { Err(Unusable::Damaged) }
    }
}

/// Whether regions of these sizes can be laid out.
pub(crate) fn sizes_fit(control_bytes: u64, session_bytes: u64, page_bytes: u64) -> bool {
    let page = u64::from(PAGE_BYTES);
    let whole = |bytes: u64| bytes > 0 && bytes.is_multiple_of(page);
    let small = |bytes: u64| bytes < u64::from(u32::MAX);
    whole(control_bytes)
        && (session_bytes == 0 || whole(session_bytes))
        && whole(page_bytes)
        && small(control_bytes)
        && small(session_bytes)
}

impl Owner {
    fn record(&self, number: u64) -> OwnerRecord {
        let mut record = OwnerRecord {
            number,
            epoch: self.epoch,
            started: self.started,
            process: self.process,
            address_bytes: self.control_address.len() as u32,
            address: [0; ADDRESS_BYTES],
            checksum: 0,
        };
        record.address[..self.control_address.len()]
            .copy_from_slice(self.control_address.as_bytes());
        record.checksum = covered(&record);
        record
    }

    /// Reads the current owner and the number of its record from the bytes of a header.
    pub(crate) fn parse(bytes: &[u8]) -> Option<(u64, Owner)> {
        let (current, _) = u64::read_from_prefix(bytes.get(CURRENT as usize..)?).ok()?;
        let (record, _) =
            OwnerRecord::read_from_prefix(bytes.get(owner_place(current) as usize..)?).ok()?;
        if record.number != current || record.checksum != covered(&record) {
            return None;
        }
        let address = record.address.get(..record.address_bytes as usize)?;
        let owner = Owner {
            epoch: record.epoch,
            process: record.process,
            started: record.started,
            control_address: String::from_utf8(address.to_vec()).ok()?,
        };
        Some((current, owner))
    }
}

fn owner_place(number: u64) -> u32 {
    OWNERS + (number % 2) as u32 * PAGE_BYTES
}

/// Access to the header of an arena that this process owns.
pub(crate) struct Header {
    span: Span,
}

impl Header {
    /// Writes the header of a fresh arena.
    pub(crate) fn create(memory: &Memory, span: Span, identity: &Identity) -> Header {
        let mut header = Header { span };
        memory.write(&mut header.span, 0, identity.record().as_bytes());
        header
    }

    /// The header of an arena that has one.
    pub(crate) fn adopt(span: Span) -> Header {
        Header { span }
    }

    /// The current owner record, if there has been an owner.
    pub(crate) fn owner(&self, memory: &Memory) -> Option<Owner> {
        Owner::parse(memory.slice(&self.span)).map(|(_, owner)| owner)
    }

    /// Makes `owner` the current owner.
    pub(crate) fn set_owner(&mut self, memory: &Memory, owner: &Owner) {
        assert!(owner.control_address.len() <= ADDRESS_BYTES, "length of a control address");
        let number = memory.read(&self.span, CURRENT).wrapping_add(1);
        let record = owner.record(number);
        memory.write(&mut self.span, owner_place(number), record.as_bytes());
        memory.publish(&mut self.span, CURRENT, number);
    }

    /// The numbers of the ring files that may have I/O in flight.
    pub(crate) fn rings(&self, memory: &Memory) -> Vec<u64> {
        (0..QUARANTINE_SLOTS)
            .map(|slot| memory.read(&self.span, QUARANTINE + slot * 8))
            .filter(|number| *number != 0)
            .collect()
    }

    /// Puts a ring file into quarantine. False: there is no place left.
    pub(crate) fn add_ring(&mut self, memory: &Memory, number: u64) -> bool {
        assert_ne!(number, 0, "rings are numbered from 1");
        self.replace_ring(memory, 0, number)
    }

    /// Takes a ring file, fenced, out of quarantine.
    pub(crate) fn remove_ring(&mut self, memory: &Memory, number: u64) {
        self.replace_ring(memory, number, 0);
    }

    fn replace_ring(&mut self, memory: &Memory, from: u64, to: u64) -> bool {
        for slot in 0..QUARANTINE_SLOTS {
            let place = QUARANTINE + slot * 8;
            if memory.read(&self.span, place) == from {
                memory.publish(&mut self.span, place, to);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Prefixes;

    const IDENTITY: Identity = Identity {
        pool: 7,
        boot: 8,
        instance: 9,
        control_bytes: 4096,
        session_bytes: 12288,
        page_bytes: 8192,
    };

    fn span(memory: &Memory) -> Span {
        // SAFETY: called once for each memory.
        unsafe { memory.claim(Part { offset: 0, bytes: HEADER_BYTES }) }
    }

    fn owner(epoch: u64) -> Owner {
        let control_address = format!("/run/{epoch}");
        Owner { epoch, process: epoch as u32 + 100, started: 5, control_address }
    }

    #[test]
    fn an_identity_is_read_back_and_a_changed_byte_is_noticed() {
        let memory = Memory::private(IDENTITY.bytes_total());
        Header::create(&memory, span(&memory), &IDENTITY);
        let mut bytes = memory.snapshot();
        assert_eq!(Identity::parse(&bytes), Ok(IDENTITY));
        for index in 0..size_of::<IdentityRecord>() {
            bytes[index] ^= 1;
            assert!(Identity::parse(&bytes).is_err(), "byte {index}");
            bytes[index] ^= 1;
        }
        bytes[8..12].copy_from_slice(&77u32.to_le_bytes());
        assert_eq!(Identity::parse(&bytes), Err(Unusable::Layout(77)));
        assert_eq!(Identity::parse(&[]), Err(Unusable::Damaged));
    }

    #[test]
    fn every_prefix_of_a_change_of_owner_has_one_or_the_other() {
        let memory = Memory::private(IDENTITY.bytes_total());
        let mut header = Header::create(&memory, span(&memory), &IDENTITY);
        header.set_owner(&memory, &owner(1));
        header.set_owner(&memory, &owner(2));
        let snapshot = memory.snapshot();
        memory.record_stores(true);
        header.set_owner(&memory, &owner(3));
        let records = memory.record_stores(false);
        let found: Vec<Option<u64>> = Prefixes::new(snapshot, &records)
            .map(|(_, memory)| Header::adopt(span(&memory)).owner(&memory).map(|o| o.epoch))
            .collect();
        assert_eq!(found, [Some(2), Some(2), Some(3)]);
    }

    #[test]
    fn quarantine_holds_what_was_put_in_until_it_is_full() {
        let memory = Memory::private(IDENTITY.bytes_total());
        let mut header = Header::create(&memory, span(&memory), &IDENTITY);
        for number in 1..=64 {
            assert!(header.add_ring(&memory, number));
        }
        assert!(!header.add_ring(&memory, 65));
        header.remove_ring(&memory, 10);
        assert!(header.add_ring(&memory, 65));
        let mut rings = header.rings(&memory);
        rings.sort_unstable();
        let expected: Vec<u64> = (1..=65).filter(|number| *number != 10).collect();
        assert_eq!(rings, expected);
    }

    /// An arena outlives the program that made it: another hash would find it damaged.
    #[test]
    fn the_hash_is_the_one_arenas_were_made_with() {
        let bytes: Vec<u8> = (0..4096).map(|at| (at % 251) as u8).collect();
        let known = [
            (0, 0x2d06_8005_38d3_94c2),
            (16, 0x8355_e3a6_f617_70db),
            (120, 0x956b_583a_7f15_46d6),
            (248, 0x5a67_f1d0_2ee5_0e0c),
            (4096, 0x7135_ffa5_04f1_bc71),
        ];
        for (length, hash) in known {
            assert_eq!(XxHash3_64::oneshot(&bytes[..length]), hash, "{length} bytes");
        }
    }
}
