//! The log of each tenant, driven directly: what it stores, and what readers see of it.

mod cancelled;
mod checked_log;
mod erasure;
mod fairness;
mod history;
mod listing;
mod processes;
mod property;
pub mod random;
mod reader;
mod removal;
mod rows;
mod segments;
pub mod store;
mod tail;
