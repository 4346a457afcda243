//! Random choices that a seed repeats.

use std::env;
use std::time::{SystemTime, UNIX_EPOCH};

/// Repeats the choices of a failed test.
const VARIABLE: &str = "HUB_TEST_SEED";

/// SplitMix64: each state gives the next one.
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// Choices that depend on the seed and on who makes them.
    pub fn new(seed: u64, maker: u64) -> Random {
        let mut random = Random {
            state: seed ^ maker.wrapping_mul(0xd134_2543_de82_ef95),
        };
        random.next();
        random
    }

    /// Any number.
    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, cases: usize) -> bool {
        self.below(100) < cases
    }
}

/// The seed of a test; says it if the test fails.
pub struct Seed(pub u64);

impl Seed {
    /// `HUB_TEST_SEED`, or a new one.
    pub fn choose() -> Seed {
        let given = env::var(VARIABLE).ok();
        Seed(match given {
            Some(text) => text.parse().expect("HUB_TEST_SEED is a number"),
            None => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                now.as_nanos() as u64
            }
        })
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to make the same choices again: {VARIABLE}={}", self.0);
        }
    }
}
