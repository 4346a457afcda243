//! Hashes that are of no key, so that asking again costs no query.
//!
//! Nobody knows a plaintext before its key is committed, so that what is in here becomes a key
//! only by chance of 178 bits, or by a database that was put back. Hence one second is enough, and
//! all is forgotten when a key is made. Two generations bound the memory.

use std::collections::HashMap;

use hub_core::clock::Micros;

use crate::secret::plaintext::Hash;

/// Hashes in each of the two generations, about 60 bytes each.
const GENERATION_MAX: usize = 5_000;
/// How long one is believed to be of no key.
const BELIEVED: Micros = 1_000_000;

#[derive(Default)]
pub(crate) struct Unknown {
    young: HashMap<Hash, Micros>,
    old: HashMap<Hash, Micros>,
}

impl Unknown {
    /// Whether it was of no key a moment ago. A clock that is set back makes everything old.
    pub fn contains(&self, hash: &Hash, now: Micros) -> bool {
        let since = self.young.get(hash).or_else(|| self.old.get(hash));
        since.is_some_and(|since| (0..BELIEVED).contains(&(now - since)))
    }

    /// A query that began at `since` found no key.
    pub fn insert(&mut self, hash: Hash, since: Micros) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, since);
    }

    /// A key was made.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_hash_is_remembered_for_a_second_or_until_a_key_is_made() {
        let mut unknown = Unknown::default();
        unknown.insert([1; 32], 100);
        assert!(unknown.contains(&[1; 32], 100 + BELIEVED - 1));
        assert!(!unknown.contains(&[1; 32], 100 + BELIEVED));
        assert!(!unknown.contains(&[1; 32], 99));
        assert!(!unknown.contains(&[2; 32], 100));
        unknown.clear();
        assert!(!unknown.contains(&[1; 32], 100));
    }

    #[test]
    fn a_million_unknown_hashes_take_no_more_memory_than_a_few() {
        let mut unknown = Unknown::default();
        for number in 0..1_000_000u32 {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&number.to_be_bytes());
            unknown.insert(hash, 0);
            debug_assert!(unknown.len() <= 2 * GENERATION_MAX);
        }
        assert!(unknown.len() <= 2 * GENERATION_MAX);
        assert!(unknown.young.capacity() + unknown.old.capacity() <= 8 * GENERATION_MAX);
    }
}
