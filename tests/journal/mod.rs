//! The log of each tenant, driven directly: what it stores, and what readers see of it.

mod cancelled;
mod checked_log;
mod fairness;
mod history;
mod property;
mod random;
mod reader;
mod schema;
mod store;
mod tail;
