//! The secret part of a key.

pub mod kept;
pub mod plaintext;

pub use plaintext::Plaintext;
