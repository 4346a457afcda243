//! The secret part of a key.

pub mod plaintext;

pub use plaintext::Plaintext;
