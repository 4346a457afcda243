//! Writes `impl Validate` for every message that a request can contain.

use std::collections::BTreeMap;
use std::fmt::Write;

use protox::prost_reflect::{
    Cardinality, DescriptorPool, FieldDescriptor, Kind, MessageDescriptor, OneofDescriptor,
};

use crate::naming::{field_ident, message_path, oneof_path, upper_camel};
use crate::rules::{self, Rules, Shape, shape};

/// Bytes of a string without a stated limit.
const DEFAULT_TEXT_BYTES: u64 = 1024;
/// Entries of a list or map without a stated limit.
const DEFAULT_ITEMS: u64 = 64;

pub fn generate(pool: &DescriptorPool, mirrors: &[(&str, &str)]) -> String {
    let reachable = reachable_from_requests(pool);
    refuse_dead_rules(pool, &reachable);
    let mut generator = Generator {
        pool,
        patterns: Vec::new(),
        out: String::new(),
    };
    for (name, message) in &reachable {
        generator.implementation(message, &message_path(message));
        for (_, mirror) in mirrors.iter().filter(|(plain, _)| plain == name) {
            generator.implementation(message, mirror);
        }
    }
    generator.finish()
}

fn reachable_from_requests(pool: &DescriptorPool) -> BTreeMap<String, MessageDescriptor> {
    let mut found = BTreeMap::new();
    let mut open: Vec<MessageDescriptor> = pool
        .services()
        .flat_map(|service| {
            service
                .methods()
                .map(|method| method.input())
                .collect::<Vec<_>>()
        })
        .collect();
    while let Some(message) = open.pop() {
        if found
            .insert(message.full_name().to_owned(), message.clone())
            .is_some()
        {
            continue;
        }
        for field in message
            .fields()
            .filter(|field| !rules::read(pool, field).unchecked)
        {
            if let (Shape::Message, Kind::Message(inner)) =
                (shape(&value_kind(&field)), value_kind(&field))
            {
                open.push(inner);
            }
        }
    }
    found
}

/// A rule on a message that is only ever answered would look enforced and not be.
fn refuse_dead_rules(pool: &DescriptorPool, reachable: &BTreeMap<String, MessageDescriptor>) {
    let unreachable = pool
        .all_messages()
        .filter(|message| message.package_name().starts_with("hub."))
        .filter(|message| !reachable.contains_key(message.full_name()));
    for message in unreachable {
        for field in message.fields() {
            let declared = rules::read(pool, &field).declared;
            assert!(
                !declared,
                "{}: no request contains this field",
                field.full_name()
            );
        }
        for oneof in message.oneofs() {
            let declared = rules::one_required(pool, &oneof);
            assert!(
                !declared,
                "{}: no request contains this oneof",
                oneof.full_name()
            );
        }
    }
}

/// Kind of a field, of its items or of its map values.
fn value_kind(field: &FieldDescriptor) -> Kind {
    match field.kind() {
        Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
        kind => kind,
    }
}

struct Generator<'a> {
    pool: &'a DescriptorPool,
    patterns: Vec<String>,
    out: String,
}

impl Generator<'_> {
    fn implementation(&mut self, message: &MessageDescriptor, rust_path: &str) {
        writeln!(self.out, "impl Validate for {rust_path} {{").unwrap();
        self.out
            .push_str("fn validate(&self, path: &mut Path, out: &mut Violations) {\n");
        for field in message.fields().filter(|field| !in_real_oneof(field)) {
            let rules = rules::read(self.pool, &field);
            let code = self.field(&field, &rules);
            self.scoped(field.name(), &code);
        }
        for oneof in message.oneofs().filter(|oneof| !oneof.is_synthetic()) {
            self.oneof(&oneof);
        }
        self.out.push_str("}\n}\n");
    }

    /// Runs `code` with `name` at the end of the path.
    fn scoped(&mut self, name: &str, code: &str) {
        if !code.is_empty() {
            write!(self.out, "path.push_field({name:?});\n{code}path.pop();\n").unwrap();
        }
    }

    fn field(&mut self, field: &FieldDescriptor, rules: &Rules) -> String {
        let ident = format!("self.{}", field_ident(field.name()));
        if field.is_list() || field.is_map() {
            return self.many(field, rules, &ident);
        }
        if !field.supports_presence() {
            if rules.unchecked {
                return String::new();
            }
            let code = self.value(&field.kind(), rules, rules.required);
            return match code.is_empty() {
                true => code,
                false => format!("let value = &{ident};\n{code}"),
            };
        }
        let mut code = if rules.unchecked {
            String::new()
        } else {
            self.value(&field.kind(), rules, false)
        };
        code.push_str(&required_fields(field, rules));
        match (code.is_empty(), rules.required) {
            (true, false) => String::new(),
            (_, false) => format!("if let Some(value) = &{ident} {{\n{code}}}\n"),
            (_, true) => format!(
                "if let Some(value) = &{ident} {{\n{code}}} else {{ out.missing(path); }}\n"
            ),
        }
    }

    fn many(&mut self, field: &FieldDescriptor, rules: &Rules, ident: &str) -> String {
        let max = match (rules.max_items, rules.unchecked) {
            (Some(max), _) => max.to_string(),
            (None, true) => "usize::MAX".to_owned(),
            (None, false) => DEFAULT_ITEMS.to_string(),
        };
        let (required, min) = (rules.required, rules.min_items.unwrap_or(0));
        let mut code = format!(
            "checks::length({ident}.len(), \
             &Count {{ required: {required}, min: {min}, max: {max} }}, \"entries\", path, out);\n"
        );
        if rules.unchecked {
            return code;
        }
        let values = self.value(&value_kind(field), rules, false);
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                unreachable!()
            };
            let key = entry.map_entry_key_field().kind();
            assert!(
                matches!(key, Kind::String),
                "{}: key is no string",
                field.full_name()
            );
            let keys = self.value(&key, &Rules::default(), false);
            write!(
                code,
                "for (key, value) in {ident}.iter().take({max}) {{\n\
                 path.push_key(key);\n{{ let value = key; {keys} }}\n{values}path.pop();\n}}\n"
            )
            .unwrap();
        } else if !values.is_empty() {
            write!(
                code,
                "for (index, value) in {ident}.iter().enumerate().take({max}) {{\n\
                 path.push_index(index);\n{values}path.pop();\n}}\n"
            )
            .unwrap();
        }
        code
    }

    fn oneof(&mut self, oneof: &OneofDescriptor) {
        let required = rules::one_required(self.pool, oneof);
        let (rust_path, ident) = (oneof_path(oneof), field_ident(oneof.name()));
        writeln!(self.out, "match &self.{ident} {{").unwrap();
        for field in oneof.fields() {
            let rules = rules::read(self.pool, &field);
            // A required choice that holds an empty string names nothing.
            let not_empty = rules.required || required && matches!(field.kind(), Kind::String);
            let mut code = match rules.unchecked {
                true => String::new(),
                false => self.value(&field.kind(), &rules, not_empty),
            };
            code.push_str(&required_fields(&field, &rules));
            let variant = upper_camel(field.name());
            if code.is_empty() {
                writeln!(self.out, "Some({rust_path}::{variant}(_)) => {{}}").unwrap();
            } else {
                writeln!(self.out, "Some({rust_path}::{variant}(value)) => {{").unwrap();
                self.scoped(field.name(), &code);
                self.out.push_str("}\n");
            }
        }
        if required {
            writeln!(self.out, "None => {{").unwrap();
            self.scoped(oneof.name(), "out.missing(path);\n");
            self.out.push_str("}\n}\n");
        } else {
            self.out.push_str("None => {}\n}\n");
        }
    }

    /// Checks of one `value: &T`.
    fn value(&mut self, kind: &Kind, rules: &Rules, required: bool) -> String {
        match kind {
            Kind::String => self.text(rules, required),
            Kind::Bytes => blob(rules, required),
            Kind::Bool => String::new(),
            Kind::Enum(_) if required => "if *value == 0 { out.missing(path); }\n".to_owned(),
            Kind::Enum(_) => String::new(),
            Kind::Message(message) => well_known(message, rules),
            Kind::Double | Kind::Float => {
                format!(
                    "checks::float(f64::from(*value), &{}, path, out);\n",
                    range(rules, required)
                )
            }
            _ => {
                let range = range(rules, required);
                format!("checks::integer(i128::from(*value), &{range}, path, out);\n")
            }
        }
    }

    fn text(&mut self, rules: &Rules, required: bool) -> String {
        let default_bytes = match rules.max_length {
            Some(_) => "usize::MAX".to_owned(),
            None => DEFAULT_TEXT_BYTES.to_string(),
        };
        let max_bytes = rules.max_bytes.map_or(default_bytes, |max| max.to_string());
        let pattern = match &rules.pattern {
            Some(pattern) => format!("Some(&PATTERN_{})", self.pattern(pattern)),
            None => "None".to_owned(),
        };
        format!(
            "checks::text(value, &Text {{ required: {required}, min_chars: {}, max_chars: {}, \
             max_bytes: {max_bytes}, pattern: {pattern} }}, path, out);\n",
            rules.min_length.unwrap_or(0),
            limit(rules.max_length),
        )
    }

    /// Number of the static that holds the compiled pattern.
    fn pattern(&mut self, pattern: &str) -> usize {
        if let Some(known) = self.patterns.iter().position(|known| known == pattern) {
            return known;
        }
        let anchored = pattern.starts_with('^') && pattern.ends_with('$');
        assert!(anchored, "pattern {pattern} must match the whole string");
        regex_lite::Regex::new(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        self.patterns.push(pattern.to_owned());
        self.patterns.len() - 1
    }

    fn finish(mut self) -> String {
        for (number, pattern) in self.patterns.iter().enumerate() {
            writeln!(
                self.out,
                "static PATTERN_{number}: Pattern = \
                 Pattern::new({pattern:?}, || compile({pattern:?}));"
            )
            .unwrap();
        }
        self.out
    }
}

fn in_real_oneof(field: &FieldDescriptor) -> bool {
    field
        .containing_oneof()
        .is_some_and(|oneof| !oneof.is_synthetic())
}

fn limit(max: Option<u64>) -> String {
    max.map_or("usize::MAX".to_owned(), |max| max.to_string())
}

fn range(rules: &Rules, required: bool) -> String {
    format!(
        "Range {{ required: {required}, min: {:?}, max: {:?} }}",
        rules.min, rules.max
    )
}

fn blob(rules: &Rules, required: bool) -> String {
    if !required && rules.min_length.or(rules.max_length).is_none() {
        return String::new();
    }
    let (min, max) = (rules.min_length.unwrap_or(0), limit(rules.max_length));
    format!(
        "checks::length(value.len(), \
         &Count {{ required: {required}, min: {min}, max: {max} }}, \"bytes\", path, out);\n"
    )
}

fn well_known(message: &MessageDescriptor, rules: &Rules) -> String {
    match message.full_name() {
        "google.protobuf.Timestamp" => "checks::timestamp(value, path, out);\n".to_owned(),
        "google.protobuf.FieldMask" => "checks::field_mask(value, path, out);\n".to_owned(),
        "google.protobuf.Duration" => {
            format!(
                "checks::duration(value, &{}, path, out);\n",
                range(rules, false)
            )
        }
        // Free-form by their nature; what reads them checks them.
        "google.protobuf.Struct" | "google.protobuf.Value" | "google.protobuf.Any" => String::new(),
        name if name.starts_with("hub.") => "value.validate(path, out);\n".to_owned(),
        name => panic!("{name} in a request is not supported"),
    }
}

/// Checks that named fields of `value` are set.
fn required_fields(field: &FieldDescriptor, rules: &Rules) -> String {
    let mut code = String::new();
    for name in &rules.required_fields {
        let Kind::Message(message) = field.kind() else {
            unreachable!()
        };
        let test = if message.oneofs().any(|oneof| oneof.name() == name) {
            "is_none()"
        } else {
            let inner = message
                .get_field_by_name(name)
                .unwrap_or_else(|| panic!("{}: no field {name}", message.full_name()));
            let many = inner.cardinality() == Cardinality::Repeated;
            match inner.kind() {
                Kind::String | Kind::Bytes => "is_empty()",
                _ if many => "is_empty()",
                Kind::Message(_) => "is_none()",
                kind => panic!("{}: {name} cannot be required, {kind:?}", field.full_name()),
            }
        };
        let ident = field_ident(name);
        write!(
            code,
            "if value.{ident}.{test} {{\n\
             path.push_field({name:?});\nout.missing(path);\npath.pop();\n}}\n"
        )
        .unwrap();
    }
    code
}
