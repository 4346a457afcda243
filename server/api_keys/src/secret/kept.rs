//! Secrets of keys that were just made, in memory only, so that a retry can show them again.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use hub_core::clock::Micros;

use super::Plaintext;

/// How long a secret is kept, in microseconds: 10 min.
pub const KEPT_FOR: Micros = 10 * 60 * 1_000_000;

/// Secrets kept at once; the oldest goes first.
const KEPT_MAX: usize = 1000;

/// The secrets.
#[derive(Default)]
pub struct Kept {
    keys: Mutex<VecDeque<(Micros, String, Plaintext)>>,
}

impl Kept {
    /// Keeps the secret of `key_id`.
    pub fn put(&self, key_id: &str, plaintext: Plaintext, now: Micros) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        drop_old(&mut keys, now);
        if keys.len() == KEPT_MAX {
            keys.pop_front();
        }
        keys.push_back((now, key_id.to_owned(), plaintext));
    }

    /// The secret, if it is younger than 10 minutes.
    pub fn get(&self, key_id: &str, now: Micros) -> Option<Plaintext> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        drop_old(&mut keys, now);
        keys.iter()
            .find(|(_, id, _)| id == key_id)
            .map(|(_, _, plaintext)| plaintext.clone())
    }
}

fn drop_old(keys: &mut VecDeque<(Micros, String, Plaintext)>, now: Micros) {
    keys.retain(|(since, _, _)| (0..KEPT_FOR).contains(&(now - since)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_kept_for_ten_minutes_and_a_thousand_at_most() {
        let (kept, key) = (Kept::default(), Plaintext::generate().unwrap());
        kept.put("key_1", key.clone(), 0);
        assert_eq!(kept.get("key_1", KEPT_FOR - 1), Some(key.clone()));
        assert_eq!(kept.get("key_2", 0), None);
        assert_eq!(kept.get("key_1", KEPT_FOR), None);
        for number in 0..=KEPT_MAX {
            kept.put(&format!("key_{number}"), key.clone(), 0);
        }
        assert_eq!(kept.get("key_0", 0), None);
        assert!(kept.get("key_1", 0).is_some());
    }
}
