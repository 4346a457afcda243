//! What at least two domains of Hub need; it knows no domain.
//!
//! - [`storage`]: one SQL text on SQLite and PostgreSQL.
//! - [`journal`]: the append-only log of each tenant, the heart of the hub.
//! - [`auth`]: who is calling and what that key may do.
//! - [`bootstrap`]: the keys of a hub that is built without the domain of keys.
//! - [`error`]: the one error type that leaves a domain.
//! - [`cursor`], [`clock`], [`id`], [`limits`], [`tenancy`], [`secrets`]: what these share.
//! - [`page`], [`products`], [`replay`]: lists in pages, the suite's products, safe retry.
//! - [`processes`]: which hub processes of one database live; [`peers`], [`internal`]: how one of
//!   them passes a call on to another.
//! - [`worker`], [`sealing`]: supervised work in the background, secrets that are stored.
//! - [`jobs`]: work that outlives the call that started it.
//! - [`window`]: requests of the last minute.
//! - [`audit`]: who changed what.
//! - [`hub_event`]: what the hub itself tells in the system log.
//! - [`explain`]: what all answers to "why" share.
//! - [`module`]: what a domain gets from the server, and what it hands back.

pub mod audit;
pub mod auth;
pub mod bootstrap;
pub mod clock;
pub mod cursor;
pub mod error;
pub mod explain;
pub mod field_mask;
pub mod hub_event;
pub mod id;
pub mod internal;
pub mod jobs;
pub mod journal;
pub mod limits;
pub mod module;
pub mod page;
pub mod peers;
pub mod processes;
pub mod products;
pub mod replay;
pub mod sealing;
pub mod secrets;
pub mod services;
pub mod storage;
pub mod tenancy;
pub mod window;
pub mod worker;
