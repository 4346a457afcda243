//! Opaque places in a log: authenticated, bound to the tenant, the log and the filter.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tonic::Code;

use crate::error::{CORE, Error, Result};
use crate::journal::{Position, TenantRef};

const VERSION: u8 = 1;
const BODY_BYTES: usize = 1 + 8 + 1 + 8 + 8 + 8;
pub(crate) const MAC_BYTES: usize = 16;

/// Which log a cursor reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The events of a tenant.
    Events = 1,
    /// The changes of keys.
    Keys = 2,
}

/// Makes and checks cursors; the key comes from the database, so every server accepts them all.
#[derive(Clone)]
pub struct Cursors {
    key: [u8; 32],
}

/// What a cursor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    /// The place.
    pub position: Position,
    /// Hash of the filter it was made with; 0 = any.
    pub filter: u64,
}

impl Cursors {
    /// With the database's key.
    pub fn new(key: [u8; 32]) -> Self {
        Cursors { key }
    }

    /// Writes a cursor.
    pub fn write(&self, tenant: &TenantRef, stream: Stream, cursor: Cursor) -> String {
        let mut bytes = Vec::with_capacity(BODY_BYTES + MAC_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(&tenant.number().to_be_bytes());
        bytes.push(stream as u8);
        bytes.extend_from_slice(&cursor.position.seq.to_be_bytes());
        bytes.extend_from_slice(&cursor.position.fingerprint.to_be_bytes());
        bytes.extend_from_slice(&cursor.filter.to_be_bytes());
        let mac = self.mac(&bytes);
        bytes.extend_from_slice(&mac);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads one, or `CURSOR_INVALID`: nothing is told of whose it is.
    pub fn read(&self, tenant: &TenantRef, stream: Stream, text: &str) -> Result<Cursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
        if bytes.len() != BODY_BYTES + MAC_BYTES {
            return Err(invalid());
        }
        let (body, mac) = bytes.split_at(BODY_BYTES);
        let genuine: bool = self.mac(body).ct_eq(mac).into();
        let whose = (body[0], number(&body[1..9]), body[9]);
        if !genuine || whose != (VERSION, tenant.number() as u64, stream as u8) {
            return Err(invalid());
        }
        Ok(Cursor {
            position: Position {
                seq: number(&body[10..18]),
                fingerprint: number(&body[18..26]),
            },
            filter: number(&body[26..34]),
        })
    }

    /// Authenticates `parts`; `purpose` keeps it apart from every other use of the key.
    pub(crate) fn tag(&self, purpose: &str, parts: &[&[u8]]) -> [u8; MAC_BYTES] {
        let mut body = Vec::new();
        for part in std::iter::once(&purpose.as_bytes()).chain(parts) {
            // With its length, so that no two lists of parts are the same bytes.
            body.extend_from_slice(&(part.len() as u64).to_be_bytes());
            body.extend_from_slice(part);
        }
        self.mac(&body)
    }

    fn mac(&self, body: &[u8]) -> [u8; MAC_BYTES] {
        // An HMAC takes a key of any length, so this cannot fail.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.key) else {
            return [0; MAC_BYTES];
        };
        mac.update(b"hub cursor");
        mac.update(body);
        let mut cut = [0; MAC_BYTES];
        cut.copy_from_slice(&mac.finalize().into_bytes()[..MAC_BYTES]);
        cut
    }
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// `CURSOR_INVALID`.
fn invalid() -> Error {
    let message =
        "The cursor is damaged, of another tenant or of another stream. Start without it.";
    Error::new(Code::InvalidArgument, CORE, "CURSOR_INVALID", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_returns_what_was_written_and_only_to_its_tenant_and_stream() {
        let cursors = Cursors::new([7; 32]);
        let (one, two) = (TenantRef::new(1, "tnt_1"), TenantRef::new(2, "tnt_2"));
        let cursor = Cursor {
            position: Position {
                seq: 9,
                fingerprint: 3,
            },
            filter: 5,
        };
        let text = cursors.write(&one, Stream::Events, cursor);
        assert_eq!(cursors.read(&one, Stream::Events, &text).unwrap(), cursor);
        for refused in [
            cursors.read(&two, Stream::Events, &text),
            cursors.read(&one, Stream::Keys, &text),
            Cursors::new([8; 32]).read(&one, Stream::Events, &text),
            cursors.read(&one, Stream::Events, &text[1..]),
            cursors.read(&one, Stream::Events, ""),
        ] {
            assert_eq!(refused.unwrap_err().reason(), "CURSOR_INVALID");
        }
    }

    #[test]
    fn no_single_changed_character_passes() {
        let cursors = Cursors::new([7; 32]);
        let tenant = TenantRef::new(1, "tnt_1");
        let cursor = Cursor {
            position: Position {
                seq: 9,
                fingerprint: 3,
            },
            filter: 5,
        };
        let text = cursors.write(&tenant, Stream::Events, cursor);
        for at in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            let read = cursors.read(&tenant, Stream::Events, &forged);
            assert!(read.is_err(), "{at}");
        }
    }
}
