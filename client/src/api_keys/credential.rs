//! The one key of a request, found as the hub finds it.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use hub_proto::credential::{
    IDENTITY_HEADERS, NOT_WHOLE, OTHER_HEADER, check_query, is_whole, presented as found,
};

use super::refusal::Refusal;

/// The key that a request presents. One that is not whole is refused here, so that a flood of them
/// costs the hub nothing.
pub(super) fn presented(headers: &HeaderMap, query: Option<&str>) -> Result<String, Box<Refusal>> {
    let key = check_query(query.unwrap_or_default()).and(found(headers));
    match key {
        Ok(key) if is_whole(key) => Ok(key.to_owned()),
        Ok(_) => Err(Refusal::no_key(NOT_WHOLE)),
        Err(fault) => Err(Refusal::no_key(fault)),
    }
}

/// Removes what the service behind must not see: the key, and what a caller says of himself.
pub(super) fn strip(headers: &mut HeaderMap) {
    headers.remove(AUTHORIZATION);
    headers.remove(OTHER_HEADER);
    for name in IDENTITY_HEADERS {
        headers.remove(name);
    }
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
