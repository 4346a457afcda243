//! What becomes of a token on the way: damage of every kind.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::journal::random::Random;

/// Damaged texts that are tried of each of many tokens.
const SAMPLE: usize = 120;

/// Damaged texts of a valid one, each different from it and none empty.
pub fn damaged(text: &str, random: &mut Random) -> Vec<String> {
    let mut all = Vec::new();
    let bytes = text.as_bytes();
    for at in 0..bytes.len() {
        // Another character of the alphabet at each place, so at the last one too, whose low bits
        // stand for nothing.
        let mut changed = bytes.to_vec();
        let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        changed[at] = alphabet[random.below(alphabet.len())];
        all.push(String::from_utf8(changed).unwrap());
        all.push(text[..at].to_owned());
        all.push(text[at..].to_owned());
    }
    if let Ok(decoded) = URL_SAFE_NO_PAD.decode(text) {
        for bit in 0..decoded.len() * 8 {
            let mut flipped = decoded.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            all.push(URL_SAFE_NO_PAD.encode(flipped));
        }
        let longer = [decoded.as_slice(), &[0], &decoded].concat();
        all.push(URL_SAFE_NO_PAD.encode(&longer[..=decoded.len()]));
        all.push(URL_SAFE_NO_PAD.encode(longer));
    }
    for added in ["A", "=", "==", " ", "\n", "%00", "é", ".", "AAAA"] {
        all.push(format!("{text}{added}"));
        all.push(format!("{added}{text}"));
    }
    all.extend([
        text.to_uppercase(),
        text.to_lowercase(),
        format!("{text}{text}"),
    ]);
    all.extend(["x", "null", "0", "*"].map(str::to_owned));
    all.push("A".repeat(900));
    all.retain(|other| other != text && !other.is_empty());
    all
}

/// Some of many, others each time.
pub fn sample(mut all: Vec<String>, random: &mut Random) -> Vec<String> {
    let count = SAMPLE.min(all.len());
    for at in 0..count {
        let other = at + random.below(all.len() - at);
        all.swap(at, other);
    }
    all.truncate(count);
    all
}

#[test]
fn a_token_is_damaged_at_every_bit_and_at_every_length() {
    let text = URL_SAFE_NO_PAD.encode([7; 20]);
    let all = damaged(&text, &mut Random::new(1, 1));
    assert!(all.len() > 20 * 8 + 2 * text.len(), "{}", all.len());
    assert!(!all.contains(&text));
    assert!((1..text.len()).all(|length| all.contains(&text[..length].to_owned())));
}
