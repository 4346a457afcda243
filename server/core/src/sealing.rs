//! Secrets that must be read again are stored sealed: XChaCha20-Poly1305 with a key that is not in
//! the database.
//!
//! What is sealed is bound to its place (`context`): moved to another row it does not open. The
//! database holds a check value, so that a process with another key refuses to start instead of
//! writing what the others cannot read.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::secrets;
use crate::storage::Db;

/// Layout of what is sealed: this byte, the mark of the key, the nonce, the ciphertext.
const VERSION: u8 = 1;
const MARK_BYTES: usize = 4;
const NONCE_BYTES: usize = 24;

/// Name and content of the check value.
const CHECK: &str = "sealing_check";

/// A key of 32 random bytes, written in base64; `openssl rand -base64 32` makes one.
#[derive(Clone, PartialEq, Eq)]
pub struct SealingKey([u8; 32]);

impl SealingKey {
    /// These bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        SealingKey(bytes)
    }

    /// A new one, from the operating system's randomness.
    pub fn generate() -> Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(Error::internal)?;
        Ok(SealingKey(bytes))
    }

    /// Reads base64; space around it does not count. The error does not repeat it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let bytes = STANDARD.decode(text.trim()).ok();
        let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        bytes.map(SealingKey).ok_or_else(|| {
            "is not base64 of 32 bytes; `openssl rand -base64 32` makes one".to_owned()
        })
    }

    /// In base64: for the file that keeps it, for nothing else.
    pub fn expose(&self) -> String {
        STANDARD.encode(self.0)
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(<redacted>)")
    }
}

/// Seals and opens.
pub struct Sealer {
    cipher: XChaCha20Poly1305,
    /// Tells which key sealed; of its hash, so that it tells nothing else.
    mark: [u8; MARK_BYTES],
    /// What keys for other purposes are derived from.
    root: [u8; 32],
}

impl Sealer {
    /// With this key.
    pub fn new(key: &SealingKey) -> Self {
        let hash = |purpose: &[u8]| -> [u8; 32] {
            let mut hash = Sha256::new();
            hash.update(purpose);
            hash.update(key.0);
            hash.finalize().into()
        };
        let [a, b, c, d, ..] = hash(b"hub sealing key ");
        Sealer {
            cipher: XChaCha20Poly1305::new(&key.0.into()),
            mark: [a, b, c, d],
            root: hash(b"hub derivation key "),
        }
    }

    /// A key for another purpose: who has this key and `salt` has it too, and nobody else.
    pub fn derive(&self, purpose: &[u8], salt: &[u8]) -> [u8; 32] {
        // An HMAC takes a key of any length, so this cannot fail.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.root) else {
            return [0; 32];
        };
        mac.update(&(purpose.len() as u64).to_be_bytes());
        mac.update(purpose);
        mac.update(salt);
        mac.finalize().into_bytes().into()
    }

    /// Seals `plaintext` for this context; 45 bytes longer.
    pub fn seal(&self, context: &[u8], plaintext: &[u8]) -> Result<Vec<u8>> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(Error::internal)?;
        let payload = Payload {
            msg: plaintext,
            aad: context,
        };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| Error::internal("a secret could not be sealed"))?;
        Ok([&[VERSION][..], &self.mark, &nonce, &sealed].concat())
    }

    /// What was sealed; `None` if it was sealed by another key, for another context, or changed.
    pub fn open(&self, context: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let rest = sealed.strip_prefix(&[VERSION])?;
        let rest = rest.strip_prefix(&self.mark)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let payload = Payload {
            msg: sealed,
            aad: context,
        };
        self.cipher.decrypt(&XNonce::from(*nonce), payload).ok()
    }

    /// Whether this is the key of the database; the first process decides which one is.
    pub async fn fits(&self, db: &Db) -> Result<bool> {
        let check = self.seal(CHECK.as_bytes(), CHECK.as_bytes())?;
        let stored = secrets::keep(db, CHECK, check).await?;
        Ok(self.open(CHECK.as_bytes(), &stored).as_deref() == Some(CHECK.as_bytes()))
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(<redacted>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(byte: u8) -> Sealer {
        Sealer::new(&SealingKey::new([byte; 32]))
    }

    #[test]
    fn what_is_sealed_opens_in_its_place_with_its_key_only() {
        let sealed = sealer(1).seal(b"here", b"secret").unwrap();
        assert_eq!(sealed.len(), 6 + 45);
        assert_eq!(sealer(1).open(b"here", &sealed).unwrap(), b"secret");
        assert_eq!(sealer(1).open(b"there", &sealed), None);
        assert_eq!(sealer(2).open(b"here", &sealed), None);
        assert_ne!(sealer(1).seal(b"here", b"secret").unwrap(), sealed);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(sealer(1).open(b"here", &changed), None, "{at}");
            assert_eq!(sealer(1).open(b"here", &sealed[..at]), None, "{at}");
        }
    }

    #[test]
    fn a_derived_key_follows_from_key_purpose_and_salt() {
        let key = sealer(1).derive(b"purpose", b"salt");
        assert_eq!(sealer(1).derive(b"purpose", b"salt"), key);
        for other in [
            sealer(2).derive(b"purpose", b"salt"),
            sealer(1).derive(b"another", b"salt"),
            sealer(1).derive(b"purpose", b"other"),
            sealer(1).derive(b"purposes", b"alt"),
        ] {
            assert_ne!(other, key);
        }
    }

    #[test]
    fn a_key_is_base64_of_32_bytes_and_never_shown() {
        let key = SealingKey::generate().unwrap();
        assert_eq!(
            SealingKey::parse(&format!(" {}\n", key.expose())),
            Ok(key.clone())
        );
        assert_ne!(SealingKey::generate().unwrap(), key);
        for bad in [
            "",
            "secret",
            &STANDARD.encode([1; 31]),
            &STANDARD.encode([1; 33]),
        ] {
            let error = SealingKey::parse(bad).unwrap_err();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
        let shown = format!("{key:?} {:?}", Sealer::new(&key));
        assert_eq!(shown, "SealingKey(<redacted>) Sealer(<redacted>)");
    }
}
