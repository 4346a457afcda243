//! Sizes as people write them: `64MiB`, `16KiB`, or a number of bytes.

use std::fmt;
use std::str::FromStr;

/// A number of bytes on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u64);

/// Units, largest first, in bytes.
const UNITS: [(&str, u64); 5] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

impl Size {
    /// The bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl From<usize> for Size {
    fn from(bytes: usize) -> Self {
        Size(u64::try_from(bytes).unwrap_or(u64::MAX))
    }
}

impl From<u32> for Size {
    fn from(bytes: u32) -> Self {
        Size(bytes.into())
    }
}

impl From<u64> for Size {
    fn from(bytes: u64) -> Self {
        Size(bytes)
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> Self {
        size.0
    }
}

impl From<Size> for usize {
    fn from(size: Size) -> Self {
        usize::try_from(size.0).unwrap_or(usize::MAX)
    }
}

impl From<Size> for u32 {
    fn from(size: Size) -> Self {
        u32::try_from(size.0).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = UNITS
            .iter()
            .find(|(name, unit)| *name != "B" && self.0 > 0 && self.0.is_multiple_of(*unit));
        match whole {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let at = text
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(text.len());
        let (count, unit) = text.split_at(at);
        let unit = match unit {
            "" => Some(1),
            unit => {
                let found = UNITS.iter().find(|(name, _)| *name == unit);
                found.map(|(_, bytes)| *bytes)
            }
        };
        let bytes = unit.and_then(|unit| count.parse::<u64>().ok()?.checked_mul(unit));
        bytes
            .map(Size)
            .ok_or_else(|| "write it as 16KiB, 64MiB, 2GiB, or as a number of bytes".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_can_be_read() {
        for (text, bytes) in [
            ("0", 0),
            ("100", 100),
            ("1KiB", 1024),
            ("1536KiB", 1_572_864),
            ("64MiB", 67_108_864),
            ("3GiB", 3_221_225_472),
            ("2TiB", 2_199_023_255_552),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size.bytes(), bytes);
            assert_eq!(size.to_string(), text);
        }
        assert_eq!("67108864".parse::<Size>().unwrap().to_string(), "64MiB");
        assert_eq!("7B".parse::<Size>().unwrap().bytes(), 7);
    }

    #[test]
    fn a_size_needs_a_number_and_a_unit_that_cannot_be_misunderstood() {
        for text in [
            "",
            "MiB",
            "64MB",
            "64M",
            "1.5MiB",
            "-1",
            "64 MiB",
            "99999999999TiB",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
