//! What the hub does, seen from outside: a folder per domain, a file per noun, sentences as names.
//!
//! Each behaviour runs on SQLite and on PostgreSQL (`both_databases!`). `tests/run` starts a
//! PostgreSQL and builds the program that the tests of whole processes start.

#[cfg(test)]
#[macro_use]
mod support;

#[cfg(test)]
mod an_idle_process;
#[cfg(test)]
mod api_keys;
#[cfg(test)]
mod client;
#[cfg(test)]
mod durability;
#[cfg(test)]
mod event_bus;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod history;
#[cfg(test)]
mod isolation;
#[cfg(test)]
mod jobs;
#[cfg(test)]
mod journal;
#[cfg(test)]
mod platform;
#[cfg(test)]
mod processes;
#[cfg(test)]
mod server;
#[cfg(test)]
mod tidy;
