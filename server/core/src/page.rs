//! Tokens of lists: opaque, authenticated, bound to the list, the tenant and the filter.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use subtle::ConstantTimeEq;
use tonic::Code;

use crate::clock::Micros;
use crate::cursor::{Cursors, MAC_BYTES};
use crate::error::{CORE, Error, Result};
use crate::journal::TenantRef;

/// How long a token is valid, in microseconds: 24 h.
pub const TOKEN_AGE_MAX: Micros = 24 * 3600 * 1_000_000;

/// Largest page; a larger one that is asked for is cut to this.
pub const SIZE_MAX: i32 = 1000;

/// Size of a page that asks for none.
pub const SIZE_DEFAULT: i32 = 50;

const PURPOSE: &str = "hub page";
const TIME_BYTES: usize = 8;

/// Longest token that is read, in characters.
const TOKEN_MAX: usize = 1024;

/// What a token is good for.
#[derive(Debug, Clone, Copy)]
pub struct List<'a> {
    /// The RPC, e.g. `ListApiKeys`.
    pub name: &'a str,
    /// Whose things are listed.
    pub tenant: &'a TenantRef,
    /// Everything of the request that decides what is listed, without size and token.
    pub filter: &'a [u8],
}

/// Number of things on a page: 0 = 50, above 1000 is cut, below 0 is `FIELD_INVALID`.
pub fn size(asked: i32) -> Result<usize> {
    let size = match asked {
        0 => SIZE_DEFAULT,
        asked => asked.min(SIZE_MAX),
    };
    usize::try_from(size).map_err(|_| Error::field("page_size", "must be 0..1000"))
}

/// Cuts what was read for a page, one more than asked for, to the page: `size` things and about
/// `bytes_max` bytes, at least one, or a list would never end. Returns whether more follows.
pub fn cut<T>(
    things: &mut Vec<T>,
    size: usize,
    bytes_max: usize,
    encoded_len: impl Fn(&T) -> usize,
) -> bool {
    let mut bytes = 0;
    let fitting = things.iter().take_while(|thing| {
        bytes += encoded_len(thing);
        bytes <= bytes_max
    });
    let fitting = fitting.count().max(1).min(size);
    let more = things.len() > fitting;
    things.truncate(fitting);
    more
}

impl Cursors {
    /// A token that continues `list` after the thing named `after`.
    pub fn write_page(&self, list: List<'_>, now: Micros, after: &str) -> String {
        let mut bytes = now.to_be_bytes().to_vec();
        bytes.extend_from_slice(after.as_bytes());
        let tag = self.page_tag(list, &bytes);
        bytes.extend_from_slice(&tag);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Where a token continues, or `PAGE_TOKEN_INVALID`. An empty token begins: `None`.
    pub fn read_page(&self, list: List<'_>, now: Micros, token: &str) -> Result<Option<String>> {
        if token.is_empty() {
            return Ok(None);
        }
        self.open_page(list, now, token)
            .map(Some)
            .ok_or_else(invalid)
    }

    fn open_page(&self, list: List<'_>, now: Micros, token: &str) -> Option<String> {
        if token.len() > TOKEN_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (body, tag) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        if !bool::from(self.page_tag(list, body).ct_eq(tag)) {
            return None;
        }
        let (time, after) = body.split_at_checked(TIME_BYTES)?;
        let made = Micros::from_be_bytes(time.try_into().ok()?);
        let age = now.checked_sub(made)?;
        let after = String::from_utf8(after.to_vec()).ok()?;
        (age <= TOKEN_AGE_MAX).then_some(after)
    }

    fn page_tag(&self, list: List<'_>, body: &[u8]) -> [u8; MAC_BYTES] {
        let tenant = list.tenant.number().to_be_bytes();
        self.tag(PURPOSE, &[list.name.as_bytes(), &tenant, list.filter, body])
    }
}

/// `PAGE_TOKEN_INVALID`: nothing is told of whose it is.
fn invalid() -> Error {
    let message = "The page_token is damaged, older than 24 h, or was made with another filter or \
                   tenant. Start from the first page.";
    Error::new(Code::InvalidArgument, CORE, "PAGE_TOKEN_INVALID", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_continues_only_its_own_list() {
        let cursors = Cursors::new([7; 32]);
        let (one, two) = (TenantRef::new(1, "tnt_1"), TenantRef::new(2, "tnt_2"));
        let list = List {
            name: "ListApiKeys",
            tenant: &one,
            filter: b"psa",
        };
        let token = cursors.write_page(list, 1000, "key_9");
        let read = |list, now, token: &str| cursors.read_page(list, now, token);
        assert_eq!(read(list, 1000, &token).unwrap().as_deref(), Some("key_9"));
        assert_eq!(
            read(list, 1000 + TOKEN_AGE_MAX, &token).unwrap().as_deref(),
            Some("key_9")
        );
        assert_eq!(read(list, 0, "").unwrap(), None);
        for refused in [
            read(
                List {
                    tenant: &two,
                    ..list
                },
                1000,
                &token,
            ),
            read(
                List {
                    filter: b"crm",
                    ..list
                },
                1000,
                &token,
            ),
            read(
                List {
                    name: "ListTenants",
                    ..list
                },
                1000,
                &token,
            ),
            read(list, 1001 + TOKEN_AGE_MAX, &token),
            read(list, 1000, &token[1..]),
            read(list, 1000, "!"),
            read(list, 1000, &"A".repeat(2000)),
            Cursors::new([8; 32]).read_page(list, 1000, &token),
        ] {
            assert_eq!(refused.unwrap_err().reason(), "PAGE_TOKEN_INVALID");
        }
    }

    #[test]
    fn a_page_is_cut_at_its_size_and_its_bytes_but_never_empty() {
        let cut_to = |size, bytes_max| {
            let mut things = vec![30; 5];
            let more = cut(&mut things, size, bytes_max, |bytes| *bytes);
            (things.len(), more)
        };
        assert_eq!(cut_to(4, 1000), (4, true));
        assert_eq!(cut_to(5, 1000), (5, false));
        assert_eq!(cut_to(5, 100), (3, true));
        assert_eq!(cut_to(5, 10), (1, true));
    }

    #[test]
    fn a_page_has_fifty_things_unless_asked_and_never_more_than_a_thousand() {
        assert_eq!(size(0).unwrap(), 50);
        assert_eq!(size(1).unwrap(), 1);
        assert_eq!(size(5000).unwrap(), 1000);
        assert_eq!(size(-1).unwrap_err().reason(), "FIELD_INVALID");
    }
}
