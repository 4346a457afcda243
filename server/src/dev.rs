//! What `hub dev` adds to a server: a tenant with keys, traffic, and commands to paste. It uses the
//! public API through hub-client, as every product does.

pub mod commands;
pub mod demo;
pub mod traffic;
