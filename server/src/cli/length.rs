//! Lengths of time as people write them: `10s`, `500ms`, `8d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length(Duration);

/// Units, longest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

impl From<Duration> for Length {
    fn from(duration: Duration) -> Self {
        Length(duration)
    }
}

impl From<Length> for Duration {
    fn from(length: Length) -> Self {
        length.0
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        let whole = UNITS
            .iter()
            .find(|(_, unit)| ms > 0 && ms.is_multiple_of(*unit));
        match whole {
            Some((name, unit)) => write!(f, "{}{name}", ms / unit),
            None => write!(f, "0s"),
        }
    }
}

impl FromStr for Length {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(text.len());
        let (count, unit) = text.split_at(at);
        let unit = UNITS.iter().find(|(name, _)| *name == unit);
        let ms = unit.and_then(|(_, ms)| count.parse::<u64>().ok()?.checked_mul(*ms));
        let duration = ms.map(Duration::from_millis);
        duration
            .map(Length)
            .ok_or_else(|| "write it as 500ms, 10s, 5m, 2h or 8d".to_owned())
    }
}

/// How long a key in memory is believed. Everywhere it is promised that a key that was revoked is
/// refused by all within 5 s, so that no setting may be more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyAge(Length);

const KEY_AGE_MAX: Duration = Duration::from_secs(5);

impl From<Duration> for KeyAge {
    fn from(duration: Duration) -> Self {
        KeyAge(duration.into())
    }
}

impl From<KeyAge> for Duration {
    fn from(age: KeyAge) -> Self {
        age.0.into()
    }
}

impl fmt::Display for KeyAge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for KeyAge {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let length: Length = text.parse()?;
        if length.0 > KEY_AGE_MAX {
            let most = Length(KEY_AGE_MAX);
            return Err(format!(
                "write {most} or less: after {most} no server may believe a revoked key"
            ));
        }
        Ok(KeyAge(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read() {
        for (text, ms) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("90s", 90_000),
            ("30m", 1_800_000),
            ("8d", 691_200_000),
        ] {
            let length: Length = text.parse().unwrap();
            assert_eq!(Duration::from(length), Duration::from_millis(ms));
            assert_eq!(length.to_string(), text);
        }
        assert_eq!("0s".parse::<Length>().unwrap().to_string(), "0s");
    }

    #[test]
    fn a_key_in_memory_is_believed_for_5_s_at_most() {
        for good in ["0s", "500ms", "5s"] {
            assert_eq!(good.parse::<KeyAge>().unwrap().to_string(), good);
        }
        for bad in ["5001ms", "6s", "1m"] {
            let refused = bad.parse::<KeyAge>().unwrap_err();
            assert!(refused.starts_with("write 5s or less"), "{bad}: {refused}");
        }
        assert!(
            "soon"
                .parse::<KeyAge>()
                .unwrap_err()
                .contains("write it as")
        );
    }

    #[test]
    fn a_length_needs_a_number_and_a_unit() {
        for text in [
            "",
            "10",
            "s",
            "10 s",
            "-1s",
            "1.5s",
            "99999999999999999d",
            "10w",
        ] {
            assert!(text.parse::<Length>().is_err(), "{text}");
        }
    }
}
