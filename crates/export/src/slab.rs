//! Things by slot and generation: a key of something that is gone finds nothing.

/// Generations have so many bits: they are part of what the kernel gives back.
const GENERATION_MASK: u32 = 0xff_ffff;

/// Names an entry; never names another one later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// Which entry.
    pub slot: u32,
    /// Which of those that lived there.
    pub generation: u32,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// A set of things with stable names.
pub(crate) struct Slab<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub fn new() -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    pub fn insert(&mut self, value: T) -> Key {
        if let Some(slot) = self.free.pop() {
            let entry = &mut self.entries[slot as usize];
            entry.value = Some(value);
            return Key { slot, generation: entry.generation };
        }
        let slot = self.entries.len() as u32;
        self.entries.push(Entry { generation: 0, value: Some(value) });
        Key { slot, generation: 0 }
    }

    /// Puts a thing where a dead process had it. False if the place is taken.
    pub fn insert_at(&mut self, key: Key, value: T) -> bool {
        while self.entries.len() <= key.slot as usize {
            self.free.push(self.entries.len() as u32);
            self.entries.push(Entry { generation: 0, value: None });
        }
        let Some(at) = self.free.iter().rposition(|slot| *slot == key.slot) else { return false };
        self.free.swap_remove(at);
        let generation = key.generation & GENERATION_MASK;
        self.entries[key.slot as usize] = Entry { generation, value: Some(value) };
        true
    }

    pub fn get(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.slot as usize)?;
        if entry.generation != key.generation {
            return None;
        }
        let value = entry.value.take()?;
        entry.generation = entry.generation.wrapping_add(1) & GENERATION_MASK;
        self.free.push(key.slot);
        Some(value)
    }

    /// The key of what lives in a slot now.
    pub fn key_at(&self, slot: u32) -> Option<Key> {
        let entry = self.entries.get(slot as usize)?;
        entry.value.as_ref().map(|_| Key { slot, generation: entry.generation })
    }

    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().enumerate().filter_map(|(slot, entry)| {
            let key = Key { slot: slot as u32, generation: entry.generation };
            Some((key, entry.value.as_ref()?))
        })
    }
}
