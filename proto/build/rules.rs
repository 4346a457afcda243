//! Reads `hub.options.v1.rules` and refuses what the generator cannot enforce.

use protox::prost_reflect::{DescriptorPool, FieldDescriptor, Kind, OneofDescriptor};

const RULES: &str = "hub.options.v1.rules";
const ONE_REQUIRED: &str = "hub.options.v1.one_required";

/// Limits of one field, as declared.
#[derive(Default)]
pub struct Rules {
    pub declared: bool,
    pub required: bool,
    pub unchecked: bool,
    pub min_length: Option<u64>,
    pub max_length: Option<u64>,
    pub max_bytes: Option<u64>,
    pub pattern: Option<String>,
    pub min_items: Option<u64>,
    pub max_items: Option<u64>,
    pub min: Option<i64>,
    pub max: Option<i64>,
    pub required_fields: Vec<String>,
}

/// What the rules for values apply to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shape {
    Text,
    Blob,
    Number,
    Duration,
    Message,
    Other,
}

pub fn shape(kind: &Kind) -> Shape {
    match kind {
        Kind::String => Shape::Text,
        Kind::Bytes => Shape::Blob,
        Kind::Message(message) if message.full_name() == "google.protobuf.Duration" => {
            Shape::Duration
        }
        Kind::Message(message) if message.package_name().starts_with("hub.") => Shape::Message,
        Kind::Message(_) | Kind::Bool | Kind::Enum(_) => Shape::Other,
        _ => Shape::Number,
    }
}

pub fn read(pool: &DescriptorPool, field: &FieldDescriptor) -> Rules {
    let extension = pool
        .get_extension_by_name(RULES)
        .expect("the rules option is declared");
    let options = field.options();
    if !options.has_extension(&extension) {
        return Rules::default();
    }
    let value = options.get_extension(&extension);
    let mut rules = Rules {
        declared: true,
        ..Rules::default()
    };
    let message = value.as_message().expect("the rules are a message");
    for (rule, value) in message.fields() {
        match rule.name() {
            "required" => rules.required = value.as_bool().unwrap(),
            "unchecked" => rules.unchecked = value.as_bool().unwrap(),
            "min_length" => rules.min_length = value.as_u64(),
            "max_length" => rules.max_length = value.as_u64(),
            "max_bytes" => rules.max_bytes = value.as_u64(),
            "pattern" => rules.pattern = value.as_str().map(str::to_owned),
            "min_items" => rules.min_items = value.as_u64(),
            "max_items" => rules.max_items = value.as_u64(),
            "min" => rules.min = value.as_i64(),
            "max" => rules.max = value.as_i64(),
            "required_fields" => {
                let names = value.as_list().unwrap();
                rules.required_fields = names
                    .iter()
                    .map(|name| name.as_str().unwrap().to_owned())
                    .collect();
            }
            other => panic!("{}: rule {other} is not supported", field.full_name()),
        }
    }
    refuse_meaningless(field, &rules);
    rules
}

/// True if one member of the oneof must be set.
pub fn one_required(pool: &DescriptorPool, oneof: &OneofDescriptor) -> bool {
    let extension = pool
        .get_extension_by_name(ONE_REQUIRED)
        .expect("the oneof option is declared");
    let options = oneof.options();
    options.has_extension(&extension)
        && options
            .get_extension(&extension)
            .as_bool()
            .expect("the option is a bool")
}

/// A rule on a field of a kind that it says nothing about would be ignored in silence.
fn refuse_meaningless(field: &FieldDescriptor, rules: &Rules) {
    let kind = match field.kind() {
        Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
        kind => kind,
    };
    let shape = shape(&kind);
    let many = field.is_list() || field.is_map();
    let sized = matches!(shape, Shape::Text | Shape::Blob);
    let refuse = |wrong: bool, rule: &str| {
        assert!(
            !wrong,
            "{}: rule {rule} does not fit {kind:?}",
            field.full_name()
        );
    };
    refuse(
        rules.required && !many && matches!(kind, Kind::Bool),
        "required",
    );
    refuse(rules.min_length.is_some() && !sized, "min_length");
    refuse(rules.max_length.is_some() && !sized, "max_length");
    refuse(
        rules.max_bytes.is_some() && shape != Shape::Text,
        "max_bytes",
    );
    refuse(rules.pattern.is_some() && shape != Shape::Text, "pattern");
    refuse(rules.min_items.is_some() && !many, "min_items");
    refuse(rules.max_items.is_some() && !many, "max_items");
    let ranged = matches!(shape, Shape::Number | Shape::Duration);
    refuse(rules.min.is_some() && !ranged, "min");
    refuse(rules.max.is_some() && !ranged, "max");
    refuse(
        !rules.required_fields.is_empty() && (shape != Shape::Message || many),
        "required_fields",
    );
    // An empty value passes unless it is required, so these would never refuse anything.
    refuse(
        rules.min_items == Some(1) && !rules.required,
        "min_items 1 without required",
    );
    refuse(
        rules.min_length == Some(1) && !rules.required,
        "min_length 1 without required",
    );
    let absent_is_known = many || field.supports_presence();
    refuse(
        rules.required && rules.unchecked && !absent_is_known,
        "required beside unchecked",
    );
    let chosen = field
        .containing_oneof()
        .is_some_and(|oneof| !oneof.is_synthetic());
    refuse(
        rules.required && chosen && shape != Shape::Text,
        "required in a oneof",
    );
    let beside_unchecked = rules
        .min_length
        .or(rules.max_length)
        .or(rules.max_bytes)
        .is_some()
        || rules.min_items.or(rules.max_items).is_some()
        || rules.min.or(rules.max).is_some()
        || rules.pattern.is_some();
    refuse(
        rules.unchecked && beside_unchecked,
        "unchecked beside others",
    );
}
