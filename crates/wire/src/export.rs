//! What the handshake tells about a disk.

use crate::values::transmission;

/// Names an export for as long as the server lives; chosen by the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExportId(pub u32);

/// A disk as clients see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Which one.
    pub id: ExportId,
    /// Its canonical name.
    pub name: String,
    /// A line for people; empty for none.
    pub description: String,
    /// Its size.
    pub bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Smallest length and alignment of a request: a power of two, at most 65536.
    pub block_bytes_min: u32,
}

impl Export {
    /// The transmission flags.
    ///
    /// CAN_MULTI_CONN is always set: a flush is pool-wide, so (Transmission flags) "the effects of
    /// NBD_CMD_FLUSH and NBD_CMD_FLAG_FUA" are "visible across all connections".
    #[must_use]
    pub fn transmission_flags(&self, structured: bool) -> u16 {
        let mut flags = transmission::HAS_FLAGS
            | transmission::SEND_FLUSH
            | transmission::SEND_FUA
            | transmission::CAN_MULTI_CONN
            | transmission::SEND_CACHE;
        if self.read_only {
            flags |= transmission::READ_ONLY;
        } else {
            flags |= transmission::SEND_TRIM
                | transmission::SEND_WRITE_ZEROES
                | transmission::SEND_FAST_ZERO;
        }
        // "MUST leave this flag clear if structured replies have not been negotiated".
        if structured {
            flags |= transmission::SEND_DF;
        }
        flags
    }
}

/// The export a client asks for. The empty name "is reserved for a 'default' export"
/// (NBD_OPT_EXPORT_NAME): the only one there is, and none if there are several.
#[must_use]
pub fn find_export<'a>(exports: &'a [Export], name: &[u8]) -> Option<&'a Export> {
    match (name, exports) {
        ([], [only]) => Some(only),
        ([], _) => None,
        _ => exports.iter().find(|export| export.name.as_bytes() == name),
    }
}
