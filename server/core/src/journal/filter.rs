//! A Bloom filter whose probe costs one cache line.
//!
//! Each key sets one bit in each of the eight words of its 64-byte line (split block Bloom filter,
//! as in the Parquet format). At 20 bits a key about one foreign key in some thousands passes.
//!
//! Keys are added while others look: a bit that is not seen yet is one of a key whose adding has
//! not ended, and nobody relies on the filter for such keys.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Bits of memory for each key.
const BITS_PER_KEY: usize = 20;
const WORDS: usize = 8;

/// Bits of some keys, in one cache line.
#[derive(Debug)]
#[repr(align(64))]
struct Line([AtomicU64; WORDS]);

/// Says "certainly not" or "look it up".
#[derive(Debug)]
pub(super) struct Filter {
    lines: Vec<Line>,
    keys: AtomicUsize,
}

impl Filter {
    /// For up to `keys_max` keys.
    pub(super) fn with_capacity(keys_max: usize) -> Self {
        let lines = (keys_max * BITS_PER_KEY)
            .div_ceil(WORDS * 64)
            .next_power_of_two();
        let line = || Line([const { AtomicU64::new(0) }; WORDS]);
        Filter {
            lines: std::iter::repeat_with(line).take(lines).collect(),
            keys: AtomicUsize::new(0),
        }
    }

    /// Keys that it can still take before it answers "look it up" too often.
    pub(super) fn room(&self) -> usize {
        let keys = self.keys.load(Relaxed);
        (self.lines.len() * WORDS * 64 / BITS_PER_KEY).saturating_sub(keys)
    }

    pub(super) fn insert(&self, key: u128) {
        for (word, bit) in self.lines[self.line(key)].0.iter().zip(bits(key)) {
            word.fetch_or(bit, Relaxed);
        }
        self.keys.fetch_add(1, Relaxed);
    }

    /// Looks at all words, though the first may tell: which one does is a guess, and a processor
    /// that guessed wrong does not fetch the lines of the next keys meanwhile.
    pub(super) fn may_contain(&self, key: u128) -> bool {
        let words = self.lines[self.line(key)].0.iter().zip(bits(key));
        words.fold(true, |all, (word, bit)| {
            all & (word.load(Relaxed) & bit != 0)
        })
    }

    /// Keys are hashes already: the upper half chooses the line, the lower half the bits.
    fn line(&self, key: u128) -> usize {
        ((key >> 64) as u64 & (self.lines.len() as u64 - 1)) as usize
    }
}

fn bits(key: u128) -> [u64; WORDS] {
    let mut bits = [0; WORDS];
    for (place, bit) in bits.iter_mut().enumerate() {
        *bit = 1 << ((key as u64) >> (place * 6) & 63);
    }
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u64) -> u128 {
        let mix = |x: u64| (x ^ (x >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        u128::from(mix(mix(n + 1))) << 64 | u128::from(mix(mix(n + 1_000_000_007)))
    }

    #[test]
    fn every_key_is_found_and_few_others() {
        let filter = Filter::with_capacity(50_000);
        (0..50_000).for_each(|n| filter.insert(key(n)));
        assert!((0..50_000).all(|n| filter.may_contain(key(n))));
        let wrong = (50_000..150_000)
            .filter(|n| filter.may_contain(key(*n)))
            .count();
        assert!(wrong < 200, "{wrong} of 100,000 foreign keys pass");
    }
}
