//! Rust names of what prost generates.

use protox::prost_reflect::{MessageDescriptor, OneofDescriptor};

const KEYWORDS: [&str; 6] = ["type", "ref", "match", "move", "enum", "use"];

/// `hub.api_keys.v1.ApiKey` -> `crate::hub::api_keys::v1::ApiKey`.
pub fn message_path(message: &MessageDescriptor) -> String {
    match message.parent_message() {
        Some(parent) => format!("{}::{}", nested_module(&parent), message.name()),
        None => format!("{}::{}", package_module(message), message.name()),
    }
}

/// `crate::hub::event_bus::v1::start_at::At`.
pub fn oneof_path(oneof: &OneofDescriptor) -> String {
    format!(
        "{}::{}",
        nested_module(oneof.parent_message()),
        upper_camel(oneof.name())
    )
}

/// Field or variable name, escaped if it is a keyword.
pub fn field_ident(name: &str) -> String {
    if KEYWORDS.contains(&name) {
        format!("r#{name}")
    } else {
        name.to_owned()
    }
}

pub fn upper_camel(name: &str) -> String {
    name.split('_')
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            first.to_uppercase() + rest
        })
        .collect()
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.char_indices() {
        if c.is_ascii_uppercase() && i > 0 {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

fn package_module(message: &MessageDescriptor) -> String {
    format!("crate::{}", message.package_name().replace('.', "::"))
}

fn nested_module(message: &MessageDescriptor) -> String {
    match message.parent_message() {
        Some(parent) => format!("{}::{}", nested_module(&parent), snake(message.name())),
        None => format!("{}::{}", package_module(message), snake(message.name())),
    }
}
