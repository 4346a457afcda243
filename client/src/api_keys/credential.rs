//! The one key of a request, found as the hub finds it.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::refusal::Refusal;

const SCHEME: &str = "bearer";
/// A header that other systems carry keys in.
const OTHER_HEADER: &str = "x-api-key";

/// Headers by which a proxy of the hub says who calls. Behind this layer nobody may believe them.
const SPOOFED: [&str; 3] = ["x-hub-key-id", "x-hub-tenant-id", "x-hub-scopes"];

/// The form of a key: `tos_`, 30 random base62 digits, and 6 that check the 34 before them.
const PREFIX: &str = "tos_";
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const CHECKED: usize = 34;
const CHECK_DIGITS: usize = 6;
const LENGTH: usize = CHECKED + CHECK_DIGITS;

/// The key that a request presents. Never the first of several: whoever adds a header must not be
/// able to choose who is calling. A key that is not well-formed is refused here, so that a flood of
/// them costs the hub nothing.
pub(super) fn presented(headers: &HeaderMap, query: Option<&str>) -> Result<String, Box<Refusal>> {
    if query.is_some_and(has_key) {
        return Err(Refusal::malformed(
            "The URL has a key in it, and URLs are written to logs: rotate this key",
        ));
    }
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or_else(Refusal::missing)?;
    if values.next().is_some() {
        return Err(Refusal::malformed(
            "The request carries two authorization headers",
        ));
    }
    let text = value
        .to_str()
        .map_err(|_| Refusal::malformed("The key is not plain text"))?;
    let (scheme, key) = text.split_once(' ').unwrap_or((text, ""));
    let key = key.trim_start_matches(' ');
    if scheme.is_empty() || (scheme.eq_ignore_ascii_case(SCHEME) && key.is_empty()) {
        return Err(Refusal::missing());
    }
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return Err(Refusal::malformed(
            "The authorization header is not of scheme Bearer",
        ));
    }
    if headers.contains_key(OTHER_HEADER) {
        return Err(Refusal::malformed(
            "The request carries two keys, in authorization and x-api-key",
        ));
    }
    if !is_well_formed(key) {
        return Err(Refusal::malformed(
            "The key is not whole: its length, alphabet or checksum is wrong",
        ));
    }
    Ok(key.to_owned())
}

/// Removes what the service behind must not see: the key, and what a caller says of himself.
pub(super) fn strip(headers: &mut HeaderMap) {
    headers.remove(AUTHORIZATION);
    headers.remove(OTHER_HEADER);
    for name in SPOOFED {
        headers.remove(name);
    }
}

/// A whole key anywhere in the query, however its prefix is written.
fn has_key(query: &str) -> bool {
    let query = query.replace("%5F", "_").replace("%5f", "_");
    let mut places = query.match_indices(PREFIX);
    places.any(|(at, _)| query.get(at..at + LENGTH).is_some_and(is_well_formed))
}

fn is_well_formed(key: &str) -> bool {
    let Some(secret) = key.strip_prefix(PREFIX) else {
        return false;
    };
    if key.len() != LENGTH || !secret.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return false;
    }
    let (checked, check) = key.as_bytes().split_at(CHECKED);
    check_digits(checked) == check
}

/// CRC-32 (IEEE) in base62, most significant digit first, padded with `0`.
fn check_digits(text: &[u8]) -> [u8; CHECK_DIGITS] {
    let mut rest = crc32fast::hash(text) as usize;
    let mut digits = [b'0'; CHECK_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[rest % ALPHABET.len()];
        rest /= ALPHABET.len();
    }
    digits
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Made with Python's `zlib.crc32`; the hub tests against the same.
    const KEY: &str = "tos_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o51xqYGe";

    fn answer(headers: &[(&'static str, &str)], query: Option<&str>) -> Result<String, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        presented(&map, query).map_err(|refusal| refusal.reason().to_owned())
    }

    #[test]
    fn exactly_one_bearer_key_is_read() {
        for scheme in ["Bearer ", "bearer ", "BEARER  "] {
            let value = format!("{scheme}{KEY}");
            assert_eq!(
                answer(&[("authorization", &value)], Some("q=tos_1")),
                Ok(KEY.into())
            );
        }
    }

    #[test]
    fn what_is_no_key_is_missing_or_malformed_and_never_looked_up() {
        let bearer = format!("Bearer {KEY}");
        let typo = bearer.replace("a1B2", "a1B3");
        let missing: [&[(&str, &str)]; 4] = [
            &[],
            &[("authorization", "")],
            &[("authorization", "Bearer ")],
            &[("x-api-key", KEY)],
        ];
        for headers in missing {
            let refused = answer(headers, None);
            assert_eq!(refused, Err("KEY_MISSING".into()), "{headers:?}");
        }
        let joined = format!("{bearer}, {bearer}");
        let malformed: [&[(&str, &str)]; 7] = [
            &[("authorization", "Basic YTpi")],
            &[("authorization", KEY)],
            &[("authorization", "Bearer tos_short")],
            &[("authorization", &typo)],
            &[("authorization", &joined)],
            &[("authorization", &bearer), ("authorization", &bearer)],
            &[("authorization", &bearer), ("x-api-key", "1")],
        ];
        for headers in malformed {
            let refused = answer(headers, None);
            assert_eq!(refused, Err("KEY_MALFORMED".into()), "{headers:?}");
        }
    }

    #[test]
    fn a_key_in_the_url_is_refused_also_beside_a_good_one() {
        let bearer = format!("Bearer {KEY}");
        let escaped = KEY.replace('_', "%5F");
        for query in [
            format!("key={KEY}"),
            format!("a=1&{KEY}&b=é"),
            format!("k={escaped}"),
        ] {
            let refused = answer(&[("authorization", &bearer)], Some(&query));
            assert_eq!(refused, Err("KEY_MALFORMED".into()), "{query}");
        }
    }

    #[test]
    fn the_key_and_what_the_caller_says_of_himself_are_removed() {
        let mut headers = HeaderMap::new();
        for name in ["authorization", "x-api-key", "x-hub-key-id", "x-hub-scopes"] {
            headers.append(name, HeaderValue::from_static("one"));
            headers.append(name, HeaderValue::from_static("two"));
        }
        headers.insert("x-hub-signature", HeaderValue::from_static("kept"));
        strip(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}
