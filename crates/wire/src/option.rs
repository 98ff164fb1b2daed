//! The data of options, as the client sent it.

/// Reads big-endian numbers and strings off a slice; none as soon as it is too short.
pub(crate) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its length in 32 bits before it.
    pub fn string(&mut self) -> Option<&'a [u8]> {
        let bytes = self.u32()?;
        self.bytes(usize::try_from(bytes).ok()?)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// INFO and GO: "32 bits, length of name", name, "16 bits, number of information requests", those.
pub(crate) struct InfoQuery<'a> {
    pub name: &'a [u8],
    items: &'a [u8],
}

impl<'a> InfoQuery<'a> {
    pub fn parse(data: &'a [u8]) -> Option<InfoQuery<'a>> {
        let mut reader = Reader(data);
        let name = reader.string()?;
        let count = reader.u16()?;
        let items = reader.bytes(usize::from(count) * 2)?;
        reader.is_empty().then_some(InfoQuery { name, items })
    }

    /// Whether the client asked for an item.
    pub fn wants(&self, item: u16) -> bool {
        self.items.chunks_exact(2).any(|pair| pair == item.to_be_bytes())
    }
}

/// LIST_META_CONTEXT and SET_META_CONTEXT: export name, "32 bits, number of queries", queries.
pub(crate) struct ContextQuery<'a> {
    pub name: &'a [u8],
    pub queries: Vec<&'a [u8]>,
}

impl<'a> ContextQuery<'a> {
    pub fn parse(data: &'a [u8]) -> Option<ContextQuery<'a>> {
        let mut reader = Reader(data);
        let name = reader.string()?;
        let count = reader.u32()?;
        let mut queries = Vec::new();
        for _ in 0..count {
            // Each query takes four bytes at least, so the data bounds the count.
            queries.push(reader.string()?);
        }
        reader.is_empty().then_some(ContextQuery { name, queries })
    }
}
