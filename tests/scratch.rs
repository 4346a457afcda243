//! Scratch: compiled while the other modules are being written.
#[cfg(test)]
#[macro_use]
mod support;
#[cfg(test)]
mod journal;
