//! Whether a request came to a base URL of a product.
//!
//! A base URL covers its own host and everything below its path, by whole segments. Host and path
//! are brought into one form first, so that case, a trailing dot, the usual port, `//`, `.` and
//! `..` (also as `%2e`) lead to the same answer as for the server that receives the request. Some
//! servers take `%2f` and `%5c` for separators, and drop `;` and what follows it in a segment, and
//! others do not: a path is covered if it is in both readings. Where no path is told, the host
//! alone counts.

use std::borrow::Cow;

/// Whether `base_url`, e.g. `https://api.example.com/psa`, covers this host and path.
pub(crate) fn covers(base_url: &str, host: &str, path: &str) -> bool {
    let (scheme, rest) = base_url.split_once("://").unwrap_or(("https", base_url));
    let (base_host, base_path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let usual = if scheme.eq_ignore_ascii_case("http") {
        "80"
    } else {
        "443"
    };
    let (Some(asked), Some(base)) = (authority(host, usual), authority(base_host, usual)) else {
        return false;
    };
    let is_same = asked.0.eq_ignore_ascii_case(base.0) && asked.1 == base.1;
    is_same && (path.is_empty() || is_below(base_path, path))
}

fn is_below(base_path: &str, path: &str) -> bool {
    let base = segments(base_path);
    let is_below = |path: &str| segments(path).starts_with(&base);
    // Most paths read the same to everyone.
    let is_plain = !path.contains(['%', ';']);
    is_below(path) && (is_plain || is_below(&decoded(path)))
}

/// Host and port; `None` if it is no plain host.
fn authority<'a>(text: &'a str, usual_port: &'a str) -> Option<(&'a str, &'a str)> {
    let (host, port) = match text.rfind(':') {
        // The colons of `[::1]` are not those of a port.
        Some(at) if !text[at..].contains(']') => (&text[..at], &text[at + 1..]),
        _ => (text, usual_port),
    };
    let port = if port.is_empty() { usual_port } else { port };
    let host = host.strip_suffix('.').unwrap_or(host);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b);
    let is_plain = !host.is_empty() && host.bytes().all(plain);
    let is_port = port.bytes().all(|b| b.is_ascii_digit());
    (is_plain && is_port).then_some((host, port))
}

/// A path without its query as those servers read it that decode separators and drop parameters.
fn decoded(path: &str) -> String {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = ["%2f", "%2F", "%5c", "%5C"]
        .iter()
        .fold(path.to_owned(), |path, separator| {
            path.replace(separator, "/")
        });
    let segments = path.split(['/', '\\']);
    let segments = segments.map(|segment| segment.split(';').next().unwrap_or_default());
    segments.collect::<Vec<_>>().join("/")
}

/// The segments of a path without its query, with `.` and `..` followed.
fn segments(path: &str) -> Vec<Cow<'_, str>> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut segments = Vec::new();
    for segment in path.split(['/', '\\']) {
        let dots = match segment.contains('%') {
            true => Cow::from(segment.replace("%2e", ".").replace("%2E", ".")),
            false => Cow::from(segment),
        };
        match &*dots {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(dots),
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    const PSA: &str = "https://api.example.com/psa";

    #[test]
    fn a_base_url_covers_its_host_and_what_is_below_its_path() {
        for (host, path) in [
            ("api.example.com", "/psa"),
            ("api.example.com", "/psa/tickets/1"),
            ("API.Example.com", "/psa/tickets"),
            ("api.example.com.", "/psa"),
            ("api.example.com:443", "/psa?x=/../crm"),
            ("api.example.com", "//psa//tickets"),
            ("api.example.com", "/crm/../psa/"),
            ("api.example.com", "/crm/%2e%2E/psa/"),
            ("api.example.com", "/psa/a%2Fb;v=1"),
            ("api.example.com", ""),
        ] {
            assert!(covers(PSA, host, path), "{host} {path}");
        }
        assert!(covers("https://psa.example.com", "psa.example.com", ""));
        assert!(covers("http://psa.test", "psa.test:80", "/a"));
        assert!(covers("http://[::1]:7070/", "[::1]:7070", "/a"));
    }

    #[test]
    fn what_only_looks_alike_is_not_covered() {
        for (host, path) in [
            ("api.example.com.evil", "/psa"),
            ("evil-api.example.com", "/psa"),
            ("api.example.com", "/psaa"),
            ("api.example.com", "/PSA"),
            ("api.example.com", "/psa/../crm"),
            ("api.example.com", "/psa/%2e%2e/crm"),
            ("api.example.com", "/psa\\..\\crm"),
            ("api.example.com", "/psa/..%2fcrm"),
            ("api.example.com", "/psa/x%2F..%5C..%5ccrm"),
            ("api.example.com", "/psa/%2e%2e%2fcrm"),
            ("api.example.com", "/psa/..;/crm"),
            ("api.example.com", "/psa/%2e.;x=1/crm"),
            ("api.example.com", "/crm%2f..%2fpsa/tickets"),
            ("api.example.com", "/"),
            ("api.example.com:8443", "/psa"),
            ("user@api.example.com", "/psa"),
            ("api.example.com\r\n", "/psa"),
            ("", "/psa"),
        ] {
            assert!(!covers(PSA, host, path), "{host:?} {path}");
        }
    }
}
