//! Checks of single values, called by the generated code.

use std::sync::LazyLock;

use prost_types::{Duration, FieldMask, Timestamp};
use regex_lite::Regex;

use super::{Path, Violations};

const MAX_MASK_PATHS: usize = 64;
const MAX_MASK_PATH_BYTES: usize = 1024;
/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z.
const TIMESTAMP_SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
/// 10,000 years.
const MAX_DURATION_SECONDS: u64 = 315_576_000_000;
const NANOS_PER_SECOND: i32 = 1_000_000_000;

/// A pattern that is compiled when first used.
pub(super) struct Pattern {
    text: &'static str,
    regex: LazyLock<Option<Regex>>,
}

impl Pattern {
    pub(super) const fn new(text: &'static str, compile: fn() -> Option<Regex>) -> Self {
        Self {
            text,
            regex: LazyLock::new(compile),
        }
    }

    /// A pattern that does not compile matches nothing; the build script compiles them all before.
    fn matches(&self, value: &str) -> bool {
        self.regex
            .as_ref()
            .is_some_and(|regex| regex.is_match(value))
    }
}

pub(super) fn compile(pattern: &str) -> Option<Regex> {
    Regex::new(pattern).ok()
}

/// Limits of a string.
pub(super) struct Text {
    pub(super) required: bool,
    pub(super) min_chars: usize,
    pub(super) max_chars: usize,
    pub(super) max_bytes: usize,
    pub(super) pattern: Option<&'static Pattern>,
}

/// Limits of a length.
pub(super) struct Count {
    pub(super) required: bool,
    pub(super) min: usize,
    pub(super) max: usize,
}

/// Limits of a number.
pub(super) struct Range {
    pub(super) required: bool,
    pub(super) min: Option<i64>,
    pub(super) max: Option<i64>,
}

pub(super) fn text(value: &str, rule: &Text, path: &Path, out: &mut Violations) {
    if value.is_empty() {
        if rule.required {
            out.missing(path);
        }
        return;
    }
    if value.len() > rule.max_bytes {
        let max = rule.max_bytes;
        out.add(
            path,
            "TOO_LONG",
            format_args!("must have at most {max} bytes"),
        );
        return;
    }
    // A character has at most four bytes, so counting is needed only near the limit.
    if value.len() > rule.max_chars && value.chars().count() > rule.max_chars {
        let max = rule.max_chars;
        out.add(
            path,
            "TOO_LONG",
            format_args!("must have at most {max} characters"),
        );
        return;
    }
    if rule.min_chars > 0 && value.chars().count() < rule.min_chars {
        let min = rule.min_chars;
        out.add(
            path,
            "TOO_SHORT",
            format_args!("must have at least {min} characters"),
        );
    }
    if value.as_bytes().contains(&0) {
        out.add(path, "CONTAINS_NUL", "must not contain NUL");
    } else if let Some(pattern) = rule.pattern.filter(|pattern| !pattern.matches(value)) {
        out.add(
            path,
            "PATTERN_MISMATCH",
            format_args!("must match {}", pattern.text),
        );
    }
}

/// Length of a list, map or bytes, in `unit`.
pub(super) fn length(len: usize, rule: &Count, unit: &str, path: &Path, out: &mut Violations) {
    let (min, max) = (rule.min, rule.max);
    if len == 0 {
        if rule.required {
            out.missing(path);
        }
    } else if len > max {
        out.add(
            path,
            "TOO_LONG",
            format_args!("must have at most {max} {unit}"),
        );
    } else if len < min {
        out.add(
            path,
            "TOO_SHORT",
            format_args!("must have at least {min} {unit}"),
        );
    }
}

pub(super) fn integer(value: i128, rule: &Range, path: &Path, out: &mut Violations) {
    if value == 0 {
        if rule.required {
            out.missing(path);
        }
        return;
    }
    let (min, max) = (rule.min.unwrap_or(i64::MIN), rule.max.unwrap_or(i64::MAX));
    if value < i128::from(min) {
        out.add(path, "OUT_OF_RANGE", format_args!("must be at least {min}"));
    } else if value > i128::from(max) {
        out.add(path, "OUT_OF_RANGE", format_args!("must be at most {max}"));
    }
}

pub(super) fn float(value: f64, rule: &Range, path: &Path, out: &mut Violations) {
    if value == 0.0 {
        if rule.required {
            out.missing(path);
        }
    } else if !value.is_finite() {
        out.add(path, "OUT_OF_RANGE", "must be a finite number");
    } else if let Some(min) = rule.min.filter(|min| value < *min as f64) {
        out.add(path, "OUT_OF_RANGE", format_args!("must be at least {min}"));
    } else if let Some(max) = rule.max.filter(|max| value > *max as f64) {
        out.add(path, "OUT_OF_RANGE", format_args!("must be at most {max}"));
    }
}

/// The limits of a duration are milliseconds.
pub(super) fn duration(value: &Duration, rule: &Range, path: &Path, out: &mut Violations) {
    let same_sign =
        value.seconds == 0 || value.nanos == 0 || (value.seconds > 0) == (value.nanos > 0);
    let in_range = value.seconds.unsigned_abs() <= MAX_DURATION_SECONDS
        && (-NANOS_PER_SECOND < value.nanos && value.nanos < NANOS_PER_SECOND);
    if !same_sign || !in_range {
        out.add(
            path,
            "OUT_OF_RANGE",
            "must be a valid google.protobuf.Duration",
        );
        return;
    }
    let nanos = i128::from(value.seconds) * i128::from(NANOS_PER_SECOND) + i128::from(value.nanos);
    let limit = |millis: i64| i128::from(millis) * 1_000_000;
    if let Some(min) = rule.min.filter(|min| nanos < limit(*min)) {
        out.add(
            path,
            "OUT_OF_RANGE",
            format_args!("must be at least {}", seconds(min)),
        );
    } else if let Some(max) = rule.max.filter(|max| nanos > limit(*max)) {
        out.add(
            path,
            "OUT_OF_RANGE",
            format_args!("must be at most {}", seconds(max)),
        );
    }
}

/// A limit as durations are written in JSON, `3600s`; all limits are whole seconds.
fn seconds(millis: i64) -> String {
    format!("{}s", millis / 1000)
}

pub(super) fn timestamp(value: &Timestamp, path: &Path, out: &mut Violations) {
    let nanos_valid = (0..NANOS_PER_SECOND).contains(&value.nanos);
    if !nanos_valid || !TIMESTAMP_SECONDS.contains(&value.seconds) {
        out.add(
            path,
            "OUT_OF_RANGE",
            "must be a valid google.protobuf.Timestamp",
        );
    }
}

pub(super) fn field_mask(value: &FieldMask, path: &mut Path, out: &mut Violations) {
    path.push_field("paths");
    let paths = Count {
        required: false,
        min: 0,
        max: MAX_MASK_PATHS,
    };
    length(value.paths.len(), &paths, "entries", path, out);
    let rule = Text {
        required: true,
        min_chars: 0,
        max_chars: usize::MAX,
        max_bytes: MAX_MASK_PATH_BYTES,
        pattern: None,
    };
    for (index, item) in value.paths.iter().enumerate().take(MAX_MASK_PATHS) {
        path.push_index(index);
        text(item, &rule, path, out);
        path.pop();
    }
    path.pop();
}
