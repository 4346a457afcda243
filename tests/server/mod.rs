//! The transport: one port for gRPC, gRPC-Web, JSON and plain pages.

mod backup;
mod bounds;
mod config;
mod drain;
mod errors;
mod grpc_web;
mod health;
mod json;
mod migrate;
mod operator_key;
mod pages;
mod program;
mod reflection;
mod sealing;
mod secrecy;
mod status_table;
mod telemetry;
pub mod tls;
mod tls_slow;
