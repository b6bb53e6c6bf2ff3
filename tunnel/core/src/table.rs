//! The streams of a tunnel, by key and by wire id.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::stream::{Key, Phase, Stream};

/// Slots that an emptied table may keep.
const KEEP_SLOTS: usize = 64;
/// Slots that one search looks at.
const SEARCH: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Table {
    slots: Vec<Option<Stream>>,
    free: Vec<u32>,
    by_id: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
    next_serial: u32,
    len: usize,
}

impl Table {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a stream; an id of 0 is not indexed.
    pub(crate) fn insert(&mut self, id: u32, phase: Phase) -> &mut Stream {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("invariant: streams are limited below 2^31")
        });
        let key = Key {
            index,
            serial: self.next_serial,
        };
        self.next_serial = self.next_serial.wrapping_add(1);
        if id != 0 {
            self.by_id.insert(id, index);
        }
        self.len += 1;
        self.slots[index as usize].insert(Stream::new(key, id, phase))
    }

    /// Gives a stream its wire id.
    pub(crate) fn set_id(&mut self, key: Key, id: u32) {
        if let Some(stream) = self.get_mut(key) {
            stream.id = id;
            self.by_id.insert(id, key.index);
        }
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Stream> {
        let stream = self.slots.get(key.index as usize)?.as_ref()?;
        (stream.key == key).then_some(stream)
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Stream> {
        let stream = self.slots.get_mut(key.index as usize)?.as_mut()?;
        (stream.key == key).then_some(stream)
    }

    pub(crate) fn by_id(&mut self, id: u32) -> Option<&mut Stream> {
        let index = *self.by_id.get(&id)?;
        self.slots.get_mut(index as usize)?.as_mut()
    }

    pub(crate) fn remove(&mut self, key: Key) {
        let Some(stream) = self.get(key) else {
            return;
        };
        let id = stream.id;
        self.by_id.remove(&id);
        self.slots[key.index as usize] = None;
        self.free.push(key.index);
        self.len -= 1;
        if self.slots.len() > KEEP_SLOTS {
            self.release();
        }
    }

    /// Gives back the memory of an empty table.
    pub(crate) fn release(&mut self) {
        if self.len == 0 {
            self.slots = Vec::new();
            self.free = Vec::new();
            self.by_id = HashMap::default();
        }
    }

    /// Places that memory is held for.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.slots.capacity() + self.free.capacity() + self.by_id.capacity()
    }

    /// A stream that fits, among the next few from `place` on; `place` goes on behind it, or behind those.
    pub(crate) fn search(
        &mut self,
        place: &mut usize,
        fits: impl Fn(&Stream) -> bool,
    ) -> Option<&mut Stream> {
        for _ in 0..SEARCH.min(self.slots.len()) {
            let here = if *place < self.slots.len() { *place } else { 0 };
            *place = here + 1;
            if self.slots[here].as_ref().is_some_and(&fits) {
                return self.slots[here].as_mut();
            }
        }
        None
    }

    /// All streams, in no useful order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.slots.iter().flatten()
    }

    /// Keys of all streams, in no useful order.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.iter().map(|s| s.key).collect()
    }
}

/// Ids count up by two and cannot be chosen by the peer, so one multiplication spreads them.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_search_goes_round_in_steps_and_survives_a_smaller_table() {
        let mut table = Table::default();
        let mut place = 0;
        assert!(table.search(&mut place, |_| true).is_none());
        let keys: Vec<Key> = (1..=100)
            .map(|id| table.insert(id, Phase::Open).key)
            .collect();
        // Ids 50 and 90 fit: found in turn, after searches that end in between.
        let mut found = Vec::new();
        for _ in 0..40 {
            found.extend(
                table
                    .search(&mut place, |stream| [50, 90].contains(&stream.id))
                    .map(|stream| stream.id),
            );
        }
        assert!(found.len() >= 8, "{found:?}");
        assert!(found.windows(2).all(|two| two[0] != two[1]), "{found:?}");
        table.search(&mut place, |stream| stream.id == 90);
        for key in keys {
            table.remove(key);
        }
        let last = table.insert(7, Phase::Open).key;
        assert_eq!(table.search(&mut place, |_| true).unwrap().key, last);
    }
}
