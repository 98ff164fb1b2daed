//! Known things by the bytes they begin with, so that nobody's data is overwritten by mistake.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

struct Known {
    at: u64,
    bytes: &'static [u8],
    name: &'static str,
}

const fn known(at: u64, bytes: &'static [u8], name: &'static str) -> Known {
    Known { at, bytes, name }
}

/// In this order: what lies deeper comes before what only points at it.
const KNOWN: &[Known] = &[
    known(0, b"BOWLPOOL", "a Bowline pool"),
    known(0x438, &[0x53, 0xef], "an ext2, ext3 or ext4 file system"),
    known(0, b"XFSB", "an XFS file system"),
    known(0x10040, b"_BHRfS_M", "a btrfs file system"),
    known(0x400, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
    known(0, b"hsqs", "a squashfs file system"),
    known(3, b"NTFS    ", "an NTFS file system"),
    known(0x8001, b"CD001", "an ISO 9660 file system"),
    known(0xff6, b"SWAPSPACE2", "swap space"),
    known(0, b"LUKS\xba\xbe", "a LUKS encrypted volume"),
    known(0x218, b"LVM2 001", "an LVM physical volume"),
    known(0x1000, &[0xfc, 0x4e, 0x2b, 0xa9], "a member of an MD RAID"),
    known(0, b"QFI\xfb", "a QCOW2 image"),
    known(0, b"KDMV", "a VMDK image"),
    known(0x200, b"EFI PART", "a GPT partition table"),
    known(0x1fe, &[0x55, 0xaa], "a partition table or boot sector"),
];

/// What lies there, in words. Anything that is not zero at the start, and not known, is "data".
pub fn of(file: &File) -> io::Result<Option<String>> {
    let mut start = vec![0; 0x10100];
    let mut filled = 0;
    while filled < start.len() {
        match file.read_at(&mut start[filled..], filled as u64)? {
            0 => break,
            more => filled += more,
        }
    }
    start.truncate(filled);
    let matches = |known: &&Known| {
        let bytes = start.get(known.at as usize..).unwrap_or_default();
        bytes.starts_with(known.bytes)
    };
    if let Some(known) = KNOWN.iter().find(matches) {
        return Ok(Some(known.name.into()));
    }
    let data = start.iter().any(|&byte| byte != 0);
    Ok(data.then(|| "data of a kind that is not known here".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signature_is_found_and_zeros_are_not() {
        for known in KNOWN {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            assert_eq!(of(&file).unwrap(), None);
            file.write_all_at(known.bytes, known.at).unwrap();
            assert_eq!(of(&file).unwrap().as_deref(), Some(known.name));
        }
    }

    #[test]
    fn a_short_file_and_unknown_data() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(of(&file).unwrap(), None);
        file.write_all_at(b"x", 7).unwrap();
        assert!(of(&file).unwrap().unwrap().starts_with("data"));
    }
}
