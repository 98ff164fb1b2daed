//! Which blocks of a segment are alive, and which of them an image holds.
//!
//! Bytes from the medium are not trusted: a directory is decoded only if it is exactly what
//! encoding would have made, so that a position never leads outside the image.

use std::ops;

use super::SEGMENT_BLOCKS_MAX;

const WORD_BITS: u32 = u64::BITS;
const WORD_BYTES: usize = size_of::<u64>();

/// Bytes that cannot be what was encoded, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed table of blocks: {0}")]
pub struct Malformed(pub &'static str);

/// One bit for each block of a segment, and how many of them are set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveBits {
    words: Vec<u64>,
    blocks: u32,
    count: u32,
}

impl LiveBits {
    /// No bit set.
    ///
    /// # Panics
    /// If a segment cannot have that many blocks.
    #[must_use]
    pub fn new(blocks: u32) -> LiveBits {
        assert!(blocks <= SEGMENT_BLOCKS_MAX, "a segment of {blocks} blocks");
        LiveBits { words: vec![0; blocks.div_ceil(WORD_BITS) as usize], blocks, count: 0 }
    }

    /// Every bit set.
    ///
    /// # Panics
    /// If a segment cannot have that many blocks.
    #[must_use]
    pub fn full(blocks: u32) -> LiveBits {
        let mut bits = LiveBits::new(blocks);
        bits.words.fill(u64::MAX);
        if let Some(last) = bits.words.last_mut() {
            *last = u64::MAX >> (blocks.wrapping_neg() % WORD_BITS);
        }
        bits.count = blocks;
        bits
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Number of bits set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether a bit is set.
    ///
    /// # Panics
    /// If the segment has no such block.
    #[inline]
    #[must_use]
    pub fn get(&self, index: u32) -> bool {
        let (word, bit) = self.locate(index);
        self.words[word] & bit != 0
    }

    /// Sets a bit. Returns whether it was clear.
    ///
    /// # Panics
    /// If the segment has no such block.
    #[inline]
    pub fn set(&mut self, index: u32) -> bool {
        let (word, bit) = self.locate(index);
        let was_clear = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.count += u32::from(was_clear);
        was_clear
    }

    /// Clears a bit. Returns whether it was set.
    ///
    /// # Panics
    /// If the segment has no such block.
    #[inline]
    pub fn clear(&mut self, index: u32) -> bool {
        let (word, bit) = self.locate(index);
        let was_set = self.words[word] & bit != 0;
        self.words[word] &= !bit;
        self.count -= u32::from(was_set);
        was_set
    }

    /// The runs of set bits, in order.
    pub fn runs(&self) -> impl Iterator<Item = ops::Range<u32>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let start = self.find(from, 0)?;
            let end = self.find(start, u64::MAX).unwrap_or(self.blocks);
            from = end;
            Some(start..end)
        })
    }

    /// Bytes that [`LiveBits::encode`] makes for a segment of so many blocks.
    #[must_use]
    pub fn encoded_bytes(blocks: u32) -> usize {
        blocks.div_ceil(WORD_BITS) as usize * WORD_BYTES
    }

    /// The bits, lowest index first, in whole words of 8 bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.words.iter().flat_map(|word| word.to_le_bytes()));
    }

    /// The bits of a segment of `blocks` blocks.
    ///
    /// # Errors
    /// If the bytes are not as many as they should be, or bits beyond the last block are set.
    pub fn decode(blocks: u32, bytes: &[u8]) -> Result<LiveBits, Malformed> {
        if blocks > SEGMENT_BLOCKS_MAX {
            return Err(Malformed("more blocks than a segment can have"));
        }
        if bytes.len() != LiveBits::encoded_bytes(blocks) {
            return Err(Malformed("not as many bytes as the blocks need"));
        }
        let words = decode_words(bytes);
        let spare = blocks.wrapping_neg() % WORD_BITS;
        if words.last().is_some_and(|last| spare > 0 && last >> (WORD_BITS - spare) != 0) {
            return Err(Malformed("a bit beyond the last block"));
        }
        let count = words.iter().map(|word| word.count_ones()).sum();
        Ok(LiveBits { words, blocks, count })
    }

    /// The first index from `from` whose bit is set after the bits are flipped by `flip`.
    fn find(&self, from: u32, flip: u64) -> Option<u32> {
        let mut word = (from / WORD_BITS) as usize;
        let mut mask = u64::MAX << (from % WORD_BITS);
        while let Some(bits) = self.words.get(word) {
            let bits = (bits ^ flip) & mask;
            if bits != 0 {
                let index = word as u32 * WORD_BITS + bits.trailing_zeros();
                return (index < self.blocks).then_some(index);
            }
            (word, mask) = (word + 1, u64::MAX);
        }
        None
    }

    #[inline]
    fn locate(&self, index: u32) -> (usize, u64) {
        assert!(index < self.blocks, "block {index} of a segment of {}", self.blocks);
        ((index / WORD_BITS) as usize, 1 << (index % WORD_BITS))
    }
}

/// Which blocks of a segment an image holds, in the order of their indices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory(Form);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Form {
    /// The first `len` blocks, each at its own index: a segment as it was written.
    Identity { len: u32 },
    /// A bit for each block, and before each word how many bits are set in the words before it.
    Bitmap { words: Vec<u64>, ranks: Vec<u16>, len: u32 },
    /// The indices, ascending: smaller than a bitmap when few blocks are left.
    List(Vec<u16>),
}

const KIND_IDENTITY: u16 = 1;
const KIND_BITMAP: u16 = 2;
const KIND_LIST: u16 = 3;
const HEADER_BYTES: usize = 4;

impl Directory {
    /// The directory of a segment that is whole.
    ///
    /// # Panics
    /// If a segment cannot have that many blocks.
    #[must_use]
    pub fn identity(blocks: u32) -> Directory {
        assert!(blocks <= SEGMENT_BLOCKS_MAX, "a segment of {blocks} blocks");
        Directory(Form::Identity { len: blocks })
    }

    /// The directory of an image of the blocks whose bits are set, in the smallest form.
    #[must_use]
    pub fn of(bits: &LiveBits) -> Directory {
        let words_used = bits.words.iter().rposition(|word| *word != 0).map_or(0, |at| at + 1);
        let is_identity = bits.runs().next().is_none_or(|run| run == (0..bits.count));
        if is_identity {
            Directory::identity(bits.count)
        } else if bits.count as usize * size_of::<u16>() <= words_used * WORD_BYTES {
            Directory(Form::List(bits.runs().flatten().map(|index| index as u16).collect()))
        } else {
            Directory(Form::bitmap(bits.words[..words_used].to_vec()))
        }
    }

    /// Number of blocks in the image.
    #[must_use]
    pub fn len(&self) -> u32 {
        match &self.0 {
            Form::Identity { len } | Form::Bitmap { len, .. } => *len,
            Form::List(indices) => indices.len() as u32,
        }
    }

    /// Whether the image holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where in the image a block of the segment lies, in blocks from the image's start.
    #[inline]
    #[must_use]
    pub fn position(&self, index: u32) -> Option<u32> {
        match &self.0 {
            Form::Identity { len } => (index < *len).then_some(index),
            Form::Bitmap { words, ranks, .. } => {
                let at = (index / WORD_BITS) as usize;
                let (word, rank) = (words.get(at)?, ranks.get(at)?);
                let bit = 1u64 << (index % WORD_BITS);
                let before = (word & (bit - 1)).count_ones();
                (word & bit != 0).then_some(u32::from(*rank) + before)
            }
            Form::List(indices) => {
                let index = u16::try_from(index).ok()?;
                indices.binary_search(&index).ok().map(|position| position as u32)
            }
        }
    }

    /// The indices the image holds, in the order of their positions.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        let (identity, words, list): (u32, &[u64], &[u16]) = match &self.0 {
            Form::Identity { len } => (*len, &[], &[]),
            Form::Bitmap { words, .. } => (0, words, &[]),
            Form::List(indices) => (0, &[], indices),
        };
        let in_words = words.iter().enumerate().flat_map(|(at, word)| {
            let bits = (0..WORD_BITS).filter(move |bit| word & (1 << bit) != 0);
            bits.map(move |bit| at as u32 * WORD_BITS + bit)
        });
        (0..identity).chain(in_words).chain(list.iter().map(|index| u32::from(*index)))
    }

    /// Bytes of memory the directory takes.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        size_of::<Directory>()
            + match &self.0 {
                Form::Identity { .. } => 0,
                Form::Bitmap { words, ranks, .. } => {
                    words.capacity() * WORD_BYTES + ranks.capacity() * size_of::<u16>()
                }
                Form::List(indices) => indices.capacity() * size_of::<u16>(),
            }
    }

    /// Bytes that [`Directory::encode`] makes.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        HEADER_BYTES
            + match &self.0 {
                Form::Identity { .. } => 0,
                Form::Bitmap { words, .. } => words.len() * WORD_BYTES,
                Form::List(indices) => indices.len() * size_of::<u16>(),
            }
    }

    /// The directory as bytes: kind and number of items, each 16 bits, then the items. The items
    /// of an identity are its blocks and are not written; those of a bitmap are words of 64 bits;
    /// those of a list indices of 16 bits.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, items) = match &self.0 {
            Form::Identity { len } => (KIND_IDENTITY, *len as usize),
            Form::Bitmap { words, .. } => (KIND_BITMAP, words.len()),
            Form::List(indices) => (KIND_LIST, indices.len()),
        };
        out.extend(kind.to_le_bytes());
        out.extend((items as u16).to_le_bytes());
        match &self.0 {
            Form::Identity { .. } => {}
            Form::Bitmap { words, .. } => out.extend(words.iter().flat_map(|w| w.to_le_bytes())),
            Form::List(indices) => out.extend(indices.iter().flat_map(|i| i.to_le_bytes())),
        }
    }

    /// The directory at the start of `bytes`, and how many bytes it took.
    ///
    /// # Errors
    /// If the bytes end too early or name blocks that cannot be, out of order, or twice.
    pub fn decode(bytes: &[u8]) -> Result<(Directory, usize), Malformed> {
        let [a, b, c, d, rest @ ..] = bytes else {
            return Err(Malformed("no room for a directory's header"));
        };
        let (kind, items) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
        let item_bytes = match kind {
            KIND_IDENTITY => 0,
            KIND_BITMAP => WORD_BYTES,
            KIND_LIST => size_of::<u16>(),
            _ => return Err(Malformed("unknown kind of directory")),
        };
        let bytes_total = usize::from(items) * item_bytes;
        let Some(content) = rest.get(..bytes_total) else {
            return Err(Malformed("the directory ends too early"));
        };
        let form = match kind {
            KIND_IDENTITY => Form::decode_identity(items)?,
            KIND_BITMAP => Form::decode_bitmap(content)?,
            _ => Form::decode_list(content)?,
        };
        Ok((Directory(form), HEADER_BYTES + bytes_total))
    }
}

impl Form {
    fn bitmap(words: Vec<u64>) -> Form {
        let mut len = 0;
        let ranks = words.iter().map(|word| {
            let rank = len as u16;
            len += word.count_ones();
            rank
        });
        let ranks = ranks.collect();
        Form::Bitmap { words, ranks, len }
    }

    fn decode_identity(items: u16) -> Result<Form, Malformed> {
        let len = u32::from(items);
        if len > SEGMENT_BLOCKS_MAX {
            return Err(Malformed("more blocks than a segment can have"));
        }
        Ok(Form::Identity { len })
    }

    fn decode_bitmap(content: &[u8]) -> Result<Form, Malformed> {
        let words = decode_words(content);
        if words.len() > (SEGMENT_BLOCKS_MAX / WORD_BITS) as usize {
            return Err(Malformed("more blocks than a segment can have"));
        }
        if words.last().is_none_or(|last| *last == 0) {
            return Err(Malformed("a bitmap whose last word is empty"));
        }
        Ok(Form::bitmap(words))
    }

    fn decode_list(content: &[u8]) -> Result<Form, Malformed> {
        let (pairs, _) = content.as_chunks::<2>();
        let indices: Vec<u16> = pairs.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
        if !indices.is_sorted_by(|one, two| one < two) {
            return Err(Malformed("a list of blocks that does not ascend"));
        }
        if indices.last().is_some_and(|last| u32::from(*last) >= SEGMENT_BLOCKS_MAX) {
            return Err(Malformed("more blocks than a segment can have"));
        }
        Ok(Form::List(indices))
    }
}

fn decode_words(bytes: &[u8]) -> Vec<u64> {
    let (words, _) = bytes.as_chunks::<WORD_BYTES>();
    words.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::random::Random;
    use super::*;

    fn runs_of(model: &BTreeSet<u32>) -> Vec<ops::Range<u32>> {
        let mut runs: Vec<ops::Range<u32>> = Vec::new();
        for &index in model {
            match runs.last_mut() {
                Some(run) if run.end == index => run.end += 1,
                _ => runs.push(index..index + 1),
            }
        }
        runs
    }

    fn check(bits: &LiveBits, model: &BTreeSet<u32>) {
        assert_eq!(bits.count() as usize, model.len());
        assert!((0..bits.blocks()).all(|index| bits.get(index) == model.contains(&index)));
        assert_eq!(bits.runs().collect::<Vec<_>>(), runs_of(model));
        let mut bytes = Vec::new();
        bits.encode(&mut bytes);
        assert_eq!(LiveBits::decode(bits.blocks(), &bytes).as_ref(), Ok(bits));

        let directory = Directory::of(bits);
        assert_eq!(directory.len() as usize, model.len());
        for (position, index) in model.iter().enumerate() {
            assert_eq!(directory.position(*index), Some(position as u32));
        }
        assert!(directory.indices().eq(model.iter().copied()));
        let absent = (0..bits.blocks() + 70).chain([u32::MAX]).filter(|at| !model.contains(at));
        assert!(absent.into_iter().all(|index| directory.position(index).is_none()));
        let mut bytes = Vec::new();
        directory.encode(&mut bytes);
        assert_eq!(bytes.len(), directory.encoded_bytes());
        let len = bytes.len();
        assert!((0..len).all(|cut| Directory::decode(&bytes[..cut]).is_err()));
        bytes.extend([0xff; 9]);
        assert_eq!(Directory::decode(&bytes), Ok((directory, len)));
    }

    #[test]
    fn agree_with_an_ordered_set() {
        for seed in 0..60 {
            let mut random = Random(seed);
            let most = [1, 63, 64, 65, 200, 8192, SEGMENT_BLOCKS_MAX][seed as usize % 7];
            let mut bits = LiveBits::new(most);
            let mut model = BTreeSet::new();
            for _ in 0..6 {
                let (start, keep) = (random.below(u64::from(most)) as u32, random.below(3) == 0);
                for index in start..(start + random.below(3000) as u32).min(most) {
                    match keep {
                        true => assert_eq!(bits.clear(index), model.remove(&index)),
                        false => assert_eq!(bits.set(index), model.insert(index)),
                    }
                }
                for _ in 0..random.below(40) {
                    let index = random.below(u64::from(most)) as u32;
                    match random.below(2) {
                        0 => assert_eq!(bits.clear(index), model.remove(&index)),
                        _ => assert_eq!(bits.set(index), model.insert(index)),
                    }
                }
                check(&bits, &model);
            }
            check(&LiveBits::full(most), &(0..most).collect());
        }
        check(&LiveBits::full(0), &BTreeSet::new());
    }

    #[test]
    fn the_smallest_form_is_taken() {
        let of = |indices: &[u32]| {
            let mut bits = LiveBits::new(SEGMENT_BLOCKS_MAX);
            indices.iter().for_each(|index| assert!(bits.set(*index)));
            Directory::of(&bits).0
        };
        assert_eq!(of(&[]), Form::Identity { len: 0 });
        assert_eq!(of(&[0, 1, 2]), Form::Identity { len: 3 });
        assert_eq!(of(&[1, 16383]), Form::List(vec![1, 16383]));
        let even: Vec<u32> = (0..8192).map(|index| index * 2).collect();
        assert!(matches!(of(&even), Form::Bitmap { .. }));
    }

    #[test]
    fn damaged_bytes_are_refused() {
        let refused = |bytes: &[u8]| Directory::decode(bytes).is_err();
        assert!(refused(&[0, 0, 0, 0]), "no kind");
        assert!(refused(&[1, 0, 1, 0x40]), "an identity of 16385 blocks");
        assert!(!refused(&[1, 0, 0, 0x40]), "an identity of 16384 blocks");
        assert!(refused(&[3, 0, 2, 0, 5, 0, 5, 0]), "an index twice");
        assert!(refused(&[3, 0, 2, 0, 6, 0, 5, 0]), "indices that descend");
        assert!(refused(&[3, 0, 1, 0, 0, 0x40]), "an index of 16384");
        assert!(refused(&[2, 0, 0, 0]), "an empty bitmap");
        assert!(refused(&[2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "a last word without bits");
        let mut long = vec![2, 0, 1, 1];
        long.resize(4 + 257 * 8, 0xff);
        assert!(refused(&long), "a bitmap of 16448 blocks");
        assert!(LiveBits::decode(65, &[0; 15]).is_err());
        assert!(LiveBits::decode(65, &[[0; 8], [2, 0, 0, 0, 0, 0, 0, 0]].concat()).is_err());
        assert!(LiveBits::decode(65, &[[0; 8], [1, 0, 0, 0, 0, 0, 0, 0]].concat()).is_ok());
    }

    #[test]
    fn random_bytes_never_lead_outside_the_image() {
        let mut random = Random(1);
        let mut accepted = 0;
        for _ in 0..20_000 {
            let mut bytes = vec![random.below(5) as u8, 0, random.below(5) as u8, 0];
            bytes.extend((0..40).map(|_| random.next() as u8));
            let Ok((directory, taken)) = Directory::decode(&bytes) else { continue };
            accepted += 1;
            assert!(taken <= bytes.len());
            let positions: Vec<u32> =
                (0..SEGMENT_BLOCKS_MAX).filter_map(|index| directory.position(index)).collect();
            assert!(positions.iter().copied().eq(0..directory.len()));
        }
        assert!(accepted > 1000);
    }
}
