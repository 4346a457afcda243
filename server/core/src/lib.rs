//! What at least two domains of Hub need; it knows no domain.
//!
//! - [`storage`]: one SQL text on SQLite and PostgreSQL.
//! - [`journal`]: the append-only log of each tenant, the heart of the hub.
//! - [`auth`]: who is calling and what that key may do.
//! - [`error`]: the one error type that leaves a domain.
//! - [`cursor`], [`clock`], [`id`], [`limits`], [`tenancy`], [`secrets`]: what these share.
//! - [`page`], [`products`], [`replay`]: lists in pages, the suite's slugs, safe retry of a call.
//! - [`hub_event`]: what the hub itself tells in the system log.
//! - [`module`]: what a domain gets from the server, and what it hands back.

pub mod auth;
pub mod clock;
pub mod cursor;
pub mod error;
pub mod hub_event;
pub mod id;
pub mod journal;
pub mod limits;
pub mod module;
pub mod page;
pub mod products;
pub mod replay;
pub mod secrets;
pub mod storage;
pub mod tenancy;
