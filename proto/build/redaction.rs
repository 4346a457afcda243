//! `Debug` for messages with secrets: prost ignores `debug_redact`, and a log line must not.

use std::fmt::Write;

use protox::prost_reflect::{DescriptorPool, FieldDescriptor, MessageDescriptor, OneofDescriptor};

use crate::naming::{field_ident, message_path, oneof_path, upper_camel};

/// Messages with at least one redacted field.
pub fn messages(pool: &DescriptorPool) -> Vec<MessageDescriptor> {
    pool.all_messages()
        .filter(|message| !message.package_name().starts_with("google."))
        .filter(|message| message.fields().any(|field| is_redacted(&field)))
        .collect()
}

pub fn generate(pool: &DescriptorPool) -> String {
    let mut out = String::new();
    for message in messages(pool) {
        for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
            oneof_debug(&oneof, &mut out);
        }
        message_debug(&message, &mut out);
    }
    out
}

fn is_redacted(field: &FieldDescriptor) -> bool {
    field
        .options()
        .get_field_by_name("debug_redact")
        .and_then(|value| value.as_bool())
        .unwrap_or(false)
}

fn message_debug(message: &MessageDescriptor, out: &mut String) {
    let (path, name) = (message_path(message), message.name());
    open_impl(&path, out);
    writeln!(out, "        f.debug_struct({name:?})").unwrap();
    for field in message.fields() {
        let real_oneof = field
            .containing_oneof()
            .filter(|oneof| !oneof.is_synthetic());
        if real_oneof.is_some() {
            continue;
        }
        let (label, ident) = (field.name(), field_ident(field.name()));
        if is_redacted(&field) {
            writeln!(out, "            .field({label:?}, &Redacted)").unwrap();
        } else {
            writeln!(out, "            .field({label:?}, &self.{ident})").unwrap();
        }
    }
    for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
        let (label, ident) = (oneof.name(), field_ident(oneof.name()));
        writeln!(out, "            .field({label:?}, &self.{ident})").unwrap();
    }
    out.push_str("            .finish()\n    }\n}\n");
}

fn oneof_debug(oneof: &OneofDescriptor, out: &mut String) {
    open_impl(&oneof_path(oneof), out);
    out.push_str("        match self {\n");
    for field in oneof.fields() {
        let variant = upper_camel(field.name());
        let (binding, shown) = if is_redacted(&field) {
            ("_", "&Redacted")
        } else {
            ("value", "value")
        };
        writeln!(
            out,
            "            Self::{variant}({binding}) => \
             f.debug_tuple({variant:?}).field({shown}).finish(),"
        )
        .unwrap();
    }
    out.push_str("        }\n    }\n}\n");
}

fn open_impl(path: &str, out: &mut String) {
    writeln!(out, "impl std::fmt::Debug for {path} {{").unwrap();
    out.push_str("    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {\n");
}
