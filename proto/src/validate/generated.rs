//! `impl Validate` of all request messages, written by the build script.
#![allow(unused_variables, clippy::all, clippy::too_many_lines)]

use super::checks::{self, Count, Pattern, Range, Text, compile};
use super::{Path, Validate, Violations};

include!(concat!(env!("OUT_DIR"), "/validation.rs"));
