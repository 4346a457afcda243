//! The transport: one port for gRPC, gRPC-Web, JSON and plain pages.

mod bounds;
mod drain;
mod errors;
mod grpc_web;
mod health;
mod json;
mod pages;
mod program;
mod reflection;
mod status_table;
