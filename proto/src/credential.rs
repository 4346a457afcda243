//! The key of a request: its form, and where a request carries it. The hub, the proxies that it
//! answers and the client's layer read it here, so that none takes what another refuses.
//!
//! A key is `tos_`, 30 random base62 digits, and 6 that check the 34 characters before them.

use percent_encoding::percent_decode_str;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{HeaderMap, HeaderName};

/// What every key begins with, so that people and scanners recognise one.
pub const PREFIX: &str = "tos_";
/// Base62, the least digit first.
pub const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const RANDOM_DIGITS: usize = 30;
const CHECK_DIGITS: usize = 6;
/// Characters that the checksum is of.
pub const CHECKED: usize = PREFIX.len() + RANDOM_DIGITS;
/// Characters of a key.
pub const LENGTH: usize = CHECKED + CHECK_DIGITS;

const SCHEME: &str = "bearer";
/// A header that other systems carry keys in.
pub const OTHER_HEADER: HeaderName = HeaderName::from_static("x-api-key");

/// Headers by which a product learns who calls, from a proxy that asked the hub: ids of key and
/// tenant, and the scopes. Nobody may believe those that a caller sent.
pub const IDENTITY_HEADERS: [&str; 3] = ["x-hub-key-id", "x-hub-tenant-id", "x-hub-scopes"];

/// Why a request presents no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It carries none: `KEY_MISSING`.
    Missing,
    /// What it carries is none: `KEY_MALFORMED`, with this explanation.
    Malformed(&'static str),
}

/// A key whose form is wrong: it needs no look-up.
pub const NOT_WHOLE: Fault =
    Fault::Malformed("The key is not whole: its length, alphabet or checksum is wrong");

/// The one key that a request presents, of whatever form. Never one of several, and two places are
/// as bad as two keys: whoever adds a header must not be able to choose who is calling.
///
/// # Errors
/// There is none, or more than one.
pub fn presented(headers: &HeaderMap) -> Result<&str, Fault> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Fault::Missing)?;
    if values.next().is_some() {
        let why = "The request carries two authorization headers";
        return Err(Fault::Malformed(why));
    }
    if headers.contains_key(&OTHER_HEADER) {
        let why = "The request carries two keys, in authorization and x-api-key";
        return Err(Fault::Malformed(why));
    }
    let not_plain = Fault::Malformed("The key is not plain text");
    let text = value.to_str().map_err(|_| not_plain)?;
    let (scheme, key) = text.split_once(' ').unwrap_or((text, ""));
    let key = key.trim_start_matches(' ');
    let is_bearer = scheme.eq_ignore_ascii_case(SCHEME);
    if scheme.is_empty() || (is_bearer && key.is_empty()) {
        return Err(Fault::Missing);
    }
    if !is_bearer {
        let why = "The authorization header is not of scheme Bearer";
        return Err(Fault::Malformed(why));
    }
    Ok(key)
}

/// Refuses a query with a key in it. Logs keep what stands there, on its way and behind it, so such
/// a key has leaked, whatever else the request presents.
///
/// # Errors
/// A whole key stands in it, however its characters are written.
pub fn check_query(query: &str) -> Result<(), Fault> {
    let query = percent_decode_str(query).decode_utf8_lossy();
    let mut places = query.match_indices(PREFIX);
    if places.any(|(at, _)| query.get(at..at + LENGTH).is_some_and(is_whole)) {
        let why = "The request carries a key in its query string, which logs keep: rotate that key";
        return Err(Fault::Malformed(why));
    }
    Ok(())
}

/// Whether length, alphabet and checksum are those of a key.
pub fn is_whole(text: &str) -> bool {
    let is_formed = text.len() == LENGTH
        && text
            .strip_prefix(PREFIX)
            .is_some_and(|secret| secret.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    is_formed && {
        let (checked, check) = text.as_bytes().split_at(CHECKED);
        check_digits(checked) == check
    }
}

/// CRC-32 (IEEE) in base62, most significant digit first, padded with `0`.
pub fn check_digits(checked: &[u8]) -> [u8; CHECK_DIGITS] {
    let mut rest = crc32fast::hash(checked) as usize;
    let mut digits = [b'0'; CHECK_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[rest % ALPHABET.len()];
        rest /= ALPHABET.len();
    }
    digits
}

/// All values of a header, as one; one that is no text is `?`. Several are no address, no host and
/// no key.
pub fn joined(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).iter();
    let values: Vec<&str> = values.map(|value| value.to_str().unwrap_or("?")).collect();
    values.join(",")
}

#[cfg(test)]
mod tests {
    use tonic::codegen::http::HeaderValue;

    use super::*;

    /// Made with Python's `zlib.crc32`; other languages test against the same.
    const VECTORS: [(&str, &str); 6] = [
        ("tos_000000000000000000000000000000", "0p2w2A"),
        ("tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5", "1xqYGe"),
        ("tos_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz", "3FyIbh"),
        ("tos_ABCDEFGHIJKLMNOPQRSTUVWXYZabcd", "4cuqYk"),
        ("tos_0123456789abcdefghijABCDEFGHIJ", "2k2ahV"),
        ("tos_pad000000000000000000000000173", "00FLFX"),
    ];
    const KEY: &str = "tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe";

    fn headers(named: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in named {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn the_checksum_is_the_one_that_zlib_computes() {
        for (checked, check) in VECTORS {
            assert_eq!(check_digits(checked.as_bytes()), check.as_bytes());
            assert!(is_whole(&format!("{checked}{check}")), "{checked}");
        }
    }

    #[test]
    fn exactly_one_bearer_key_is_read() {
        for scheme in ["Bearer ", "bearer ", "BEARER  "] {
            let one = headers(&[("authorization", &format!("{scheme}{KEY}"))]);
            assert_eq!(presented(&one), Ok(KEY), "{scheme}");
        }
        let missing: [&[(&str, &str)]; 6] = [
            &[],
            &[("authorization", "")],
            &[("authorization", "Bearer")],
            &[("authorization", "Bearer ")],
            &[("authorization", "bearer   ")],
            &[("x-api-key", KEY)],
        ];
        for named in missing {
            assert_eq!(presented(&headers(named)), Err(Fault::Missing), "{named:?}");
        }
    }

    #[test]
    fn of_two_keys_none_is_read() {
        let bearer = format!("Bearer {KEY}");
        let refused: [&[(&str, &str)]; 6] = [
            &[("authorization", &bearer), ("authorization", &bearer)],
            &[("authorization", &bearer), ("authorization", "")],
            &[("authorization", &bearer), ("x-api-key", "1")],
            &[("authorization", "Basic YTpi")],
            &[("authorization", KEY)],
            &[("authorization", "Bearer\té")],
        ];
        for named in refused {
            let fault = presented(&headers(named)).unwrap_err();
            assert!(matches!(fault, Fault::Malformed(_)), "{named:?}");
        }
        let joined = headers(&[("authorization", &format!("{bearer}, {bearer}"))]);
        assert!(!is_whole(presented(&joined).unwrap()));
    }

    #[test]
    fn a_key_in_a_query_is_found_however_it_is_written() {
        for query in ["", "key=tos_1", &format!("k={}", &KEY[1..])] {
            assert_eq!(check_query(query), Ok(()), "{query}");
        }
        for query in [
            format!("key={KEY}"),
            format!("a=tos_&{KEY}#x"),
            format!("a=1&{KEY}&b=é"),
            format!("k={}", KEY.replace('_', "%5F")),
            format!("k={}", KEY.replace("tos_a", "%74os%5fa")),
            format!("k={}", KEY.replace("1x", "%31x")),
        ] {
            assert!(check_query(&query).is_err(), "{query}");
        }
    }

    #[test]
    fn several_values_are_one_that_is_none() {
        let two = headers(&[("host", "a"), ("host", "b\u{e9}")]);
        assert_eq!((&*joined(&two, "host"), &*joined(&two, "x")), ("a,?", ""));
    }
}
