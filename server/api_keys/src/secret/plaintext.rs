//! A key as its holder has it; its form is [`hub_proto::credential`]'s.
//!
//! Its 30 random digits are 178 bits, so that a plain SHA-256 is enough at rest: nobody can try
//! them all. The checksum tells a copy error from an unknown key without a look-up.

use std::fmt;

use hub_core::error::{Error, Result};
use hub_proto::credential::{ALPHABET, CHECKED, LENGTH, PREFIX, check_digits, is_whole};
use sha2::{Digest, Sha256};

/// Characters of the secret that a hint shows at each end.
const HINT_CHARS: usize = 4;

/// SHA-256 of a plaintext: all that is stored of it.
pub type Hash = [u8; 32];

/// A well-formed key; shown by [`Plaintext::expose`] only.
#[derive(Clone, PartialEq, Eq)]
pub struct Plaintext(String);

impl Plaintext {
    /// A new one, from the operating system's randomness.
    pub fn generate() -> Result<Self> {
        let mut text = String::with_capacity(LENGTH);
        text.push_str(PREFIX);
        let mut random = [0; 64];
        while text.len() < CHECKED {
            getrandom::fill(&mut random).map_err(Error::internal)?;
            // 62 of 64 values are digits; the rest is drawn again, so that all are as likely.
            let digits = random
                .iter()
                .filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
            text.extend(
                digits
                    .take(CHECKED - text.len())
                    .map(|digit| char::from(*digit)),
            );
        }
        let check = check_digits(text.as_bytes());
        text.extend(check.map(char::from));
        Ok(Plaintext(text))
    }

    /// `None` if length, alphabet or checksum is wrong.
    pub fn parse(text: &str) -> Option<Self> {
        is_whole(text).then(|| Plaintext(text.to_owned()))
    }

    /// The text itself: for the answer that shows it, for nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored of it.
    pub fn hash(&self) -> Hash {
        Sha256::digest(self.0.as_bytes()).into()
    }

    /// Its ends, to recognise it: `tos_a1B2…x9Yz`.
    pub fn hint(&self) -> String {
        let start = &self.0[..PREFIX.len() + HINT_CHARS];
        format!("{start}…{}", &self.0[LENGTH - HINT_CHARS..])
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plaintext(<redacted>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_is_well_formed_and_unlike_the_one_before() {
        let (one, two) = (
            Plaintext::generate().unwrap(),
            Plaintext::generate().unwrap(),
        );
        assert_eq!(one.expose().len(), 40);
        assert_eq!(Plaintext::parse(one.expose()), Some(one.clone()));
        assert_ne!(one.expose(), two.expose());
        assert_ne!(one.hash(), two.hash());
    }

    #[test]
    fn every_digit_of_the_alphabet_is_drawn_about_as_often() {
        let mut drawn = [0u32; 128];
        for _ in 0..2000 {
            let key = Plaintext::generate().unwrap();
            key.expose()[4..34]
                .bytes()
                .for_each(|digit| drawn[usize::from(digit)] += 1);
        }
        // 60,000 draws of 62 digits: 968 each, standard deviation 31; 6 of them are 186.
        for digit in ALPHABET {
            let count = drawn[usize::from(*digit)];
            assert!(
                (782..1154).contains(&count),
                "{}: {count}",
                char::from(*digit)
            );
        }
    }

    #[test]
    fn a_single_changed_or_swapped_character_is_noticed() {
        let key = Plaintext::generate().unwrap();
        let text = key.expose().as_bytes();
        for at in 0..text.len() {
            for other in ALPHABET.iter().filter(|other| **other != text[at]) {
                let mut changed = text.to_vec();
                changed[at] = *other;
                assert_eq!(Plaintext::parse(&String::from_utf8(changed).unwrap()), None);
            }
            let mut swapped = text.to_vec();
            swapped.swap(at, (at + 1) % text.len());
            if swapped != text {
                assert_eq!(Plaintext::parse(&String::from_utf8(swapped).unwrap()), None);
            }
        }
    }

    #[test]
    fn what_has_not_the_form_of_a_key_is_none() {
        let good = Plaintext::generate().unwrap();
        let good = good.expose();
        for bad in [
            "".to_owned(),
            "tos_".to_owned(),
            good[..39].to_owned(),
            format!("{good}0"),
            format!(" {good}"),
            format!("TOS_{}", &good[4..]),
            format!("tos_{}é", &good[6..]),
            format!("{good},{good}"),
            "tos_".to_owned() + &"\0".repeat(36),
            "x".repeat(1 << 20),
        ] {
            assert_eq!(Plaintext::parse(&bad), None, "{bad:.60}");
        }
    }

    #[test]
    fn a_hint_shows_the_ends_and_debug_nothing() {
        let key = Plaintext::parse("tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe").unwrap();
        assert_eq!(key.hint(), "tos_a1B2…qYGe");
        assert!(!format!("{key:?}").contains(&key.expose()[4..]));
    }
}
