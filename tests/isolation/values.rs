//! Requests from descriptors: values that fit, values of others, and values of nobody.

use std::collections::BTreeMap;

use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};

use super::contract::Contract;
use super::seeds::VALUES;
use crate::journal::random::Random;

/// Messages in messages are filled to this depth.
const DEPTH_MAX: usize = 5;
/// Seconds of the manual clock of tests.
const NOW: i64 = 1_767_225_600;
/// Seconds that a call may ask to wait.
const WAIT_MAX: i64 = 60;

/// Texts that nobody means.
const ODD: [&str; 6] = ["", "é\u{202e}%00", "../..", "*", "0", "null"];

/// Texts that were seen, by the name of their field, in the order in which they came.
#[derive(Debug, Clone, Default)]
pub struct Known {
    by_field: BTreeMap<String, Vec<String>>,
}

impl Known {
    /// Takes all texts of a message.
    pub fn take(&mut self, message: &DynamicMessage) {
        for (field, value) in message.fields() {
            self.take_value(field.name(), value);
        }
    }

    fn take_value(&mut self, name: &str, value: &Value) {
        match value {
            Value::String(text) => self.add(name, text),
            Value::Message(message) => self.take(message),
            Value::List(values) => values.iter().for_each(|value| self.take_value(name, value)),
            Value::Map(entries) => entries
                .values()
                .for_each(|value| self.take_value(name, value)),
            _ => {}
        }
    }

    /// Takes a text.
    pub fn add(&mut self, name: &str, text: &str) {
        // Tokens are given out under one name and taken under another, lists in the plural.
        let name = name.trim_start_matches("next_").trim_end_matches('s');
        let texts = self.by_field.entry(name.to_owned()).or_default();
        if !text.is_empty() && !texts.iter().any(|known| known == text) {
            texts.push(text.to_owned());
        }
    }

    /// What was seen in fields of this name.
    pub fn of(&self, name: &str) -> &[String] {
        let name = name.trim_end_matches('s');
        self.by_field.get(name).map_or(&[], Vec::as_slice)
    }

    /// Ids that begin so, wherever they were seen; the newest last.
    pub fn with_prefix(&self, prefix: &str) -> Vec<&String> {
        let all = self.by_field.values().flatten();
        let mut found: Vec<&String> = all
            .filter(|text| text.len() > prefix.len() + 8 && is_id(text, prefix))
            .collect();
        found.sort();
        found.dedup();
        found
    }

    /// Everything.
    pub fn all(&self) -> impl Iterator<Item = &String> {
        self.by_field.values().flatten()
    }

    /// Leaves out what was seen in fields of this name.
    pub fn forget(&mut self, name: &str) {
        self.by_field.remove(name);
    }

    /// Leaves out what `keep` refuses.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        for texts in self.by_field.values_mut() {
            texts.retain(|text| keep(text));
        }
    }
}

/// Whether a text is an id with this prefix, and not a longer one that begins with such an id.
fn is_id(text: &str, prefix: &str) -> bool {
    let rest = text.strip_prefix(prefix);
    rest.is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// Makes requests of one caller.
pub struct Generator<'a> {
    pub contract: &'a Contract,
    pub random: Random,
    /// What is the caller's.
    pub own: &'a Known,
    /// What is somebody else's.
    pub foreign: &'a Known,
}

impl Generator<'_> {
    /// A request from nothing.
    pub fn message(&mut self, kind: &MessageDescriptor, depth: usize) -> DynamicMessage {
        let mut message = DynamicMessage::new(kind.clone());
        match kind.full_name() {
            "google.protobuf.Timestamp" => {
                let days = self.random.below(5) as i64 - 2;
                set(&mut message, "seconds", Value::I64(NOW + days * 86_400));
                return message;
            }
            "google.protobuf.Duration" => {
                let seconds = self.random.below(7200) as i64;
                // Time stands still: a wait that is not refused for its length would not end.
                let seconds = if seconds > WAIT_MAX { seconds } else { 0 };
                set(&mut message, "seconds", Value::I64(seconds));
                return message;
            }
            "google.protobuf.Any" | "google.protobuf.Struct" => return message,
            _ => {}
        }
        for field in kind.fields() {
            if self.wanted(&field, depth) {
                let value = self.value(&field, depth);
                message.set_field(&field, value);
            }
        }
        message
    }

    /// The same request with some of its fields made new.
    pub fn vary(&mut self, message: &mut DynamicMessage) {
        if message.descriptor().full_name() == "google.protobuf.Duration" {
            *message = self.message(&message.descriptor(), 0);
            return;
        }
        let fields: Vec<FieldDescriptor> = message.descriptor().fields().collect();
        if fields.is_empty() {
            return;
        }
        let field = &fields[self.random.below(fields.len())];
        let inside = field.kind().as_message().is_some() && message.has_field(field);
        if inside && !field.is_map() && self.random.percent(80) {
            match message.get_field_mut(field) {
                Value::Message(inner) => self.vary(inner),
                Value::List(list) => {
                    let at = self.random.below(list.len());
                    if let Some(Value::Message(inner)) = list.get_mut(at) {
                        self.vary(inner);
                    }
                }
                _ => {}
            }
        } else {
            let value = self.value(field, 1);
            message.set_field(field, value);
        }
    }

    fn wanted(&mut self, field: &FieldDescriptor, depth: usize) -> bool {
        if depth >= DEPTH_MAX {
            return false;
        }
        if let Some(oneof) = field.containing_oneof() {
            // The last member that is set remains.
            let members = oneof.fields().count();
            return self.random.percent(100 / members + 30);
        }
        let required = self.contract.rule(field, "required").is_some();
        self.random.percent(if required { 97 } else { 45 })
    }

    /// A value of a field.
    pub fn value(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        if field.is_map() {
            return self.map(field, depth);
        }
        if field.is_list() {
            let count = 1 + self.random.below(3);
            return Value::List((0..count).map(|_| self.single(field, depth)).collect());
        }
        self.single(field, depth)
    }

    fn map(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        let Kind::Message(entry) = field.kind() else {
            unreachable!("a map has entries")
        };
        let value = self.single(&entry.map_entry_value_field(), depth + 1);
        let name = ["subject", "team", "partitionkey"][self.random.below(3)];
        let key = match entry.map_entry_key_field().kind() {
            Kind::String => MapKey::String(name.to_owned()),
            _ => MapKey::I32(1),
        };
        Value::Map([(key, value)].into())
    }

    fn single(&mut self, field: &FieldDescriptor, depth: usize) -> Value {
        match field.kind() {
            Kind::Message(kind) => Value::Message(self.message(&kind, depth + 1)),
            Kind::String => Value::String(self.text(field)),
            Kind::Bytes => Value::Bytes(self.random.next().to_be_bytes().to_vec().into()),
            Kind::Bool => Value::Bool(self.random.percent(50)),
            Kind::Enum(kind) => {
                let values: Vec<_> = kind.values().map(|value| value.number()).collect();
                let known = values[self.random.below(values.len())];
                Value::EnumNumber(if self.random.percent(4) { 77 } else { known })
            }
            Kind::Double => Value::F64(self.random.below(100) as f64 / 100.0),
            Kind::Float => Value::F32(self.random.below(100) as f32 / 100.0),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(self.number(field) as i32),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(self.number(field)),
            Kind::Uint32 | Kind::Fixed32 => Value::U32(self.number(field).unsigned_abs() as u32),
            Kind::Uint64 | Kind::Fixed64 => Value::U64(self.number(field).unsigned_abs()),
        }
    }

    fn number(&mut self, field: &FieldDescriptor) -> i64 {
        let least = self.contract.rule(field, "min").unwrap_or(0);
        let most = self
            .contract
            .rule(field, "max")
            .unwrap_or(i64::from(i32::MAX));
        match self.random.below(10) {
            0 => least - 1,
            1 => most.min(1 << 40),
            _ => least + self.random.below((most - least).clamp(1, 15) as usize) as i64,
        }
    }

    fn text(&mut self, field: &FieldDescriptor) -> String {
        let name = field.name();
        if name == "request_id" && self.random.percent(60) {
            return self.uuid();
        }
        let choice = self.random.below(100);
        let picked = match choice {
            0..40 => self.seen(self.foreign, field),
            40..60 => self.seen(self.own, field),
            60..75 => None,
            75..85 => self
                .seen(self.foreign, field)
                .map(|text| self.damaged(&text)),
            85..93 => {
                let all: Vec<&String> = self.foreign.all().collect();
                (!all.is_empty()).then(|| all[self.random.below(all.len())].clone())
            }
            _ => Some(ODD[self.random.below(ODD.len())].to_owned()),
        };
        picked.unwrap_or_else(|| self.fitting(field))
    }

    /// A text of the field's name, or of its prefix.
    fn seen(&mut self, known: &Known, field: &FieldDescriptor) -> Option<String> {
        let prefix = self.contract.prefix(field);
        let texts: Vec<&String> = match prefix {
            Some(prefix) => known.with_prefix(&prefix),
            None => known.of(field.name()).iter().collect(),
        };
        (!texts.is_empty()).then(|| texts[self.random.below(texts.len())].clone())
    }

    /// What the hub takes, as far as the name of the field tells.
    fn fitting(&mut self, field: &FieldDescriptor) -> String {
        let name = field.name();
        if let Some((_, values)) = VALUES.iter().find(|(known, _)| *known == name) {
            return values[self.random.below(values.len())].to_owned();
        }
        if name == "request_id" {
            return self.uuid();
        }
        let number = self.random.next() % 10_000;
        match self.contract.prefix(field) {
            Some(prefix) => format!("{prefix}{number:0>26}"),
            None => format!("word{number}"),
        }
    }

    /// One character different, the end cut off, something behind it, or in capitals.
    pub fn damaged(&mut self, text: &str) -> String {
        let mut characters: Vec<char> = text.chars().collect();
        let at = self.random.below(characters.len());
        match self.random.below(4) {
            0 => characters[at] = if characters[at] == 'a' { 'b' } else { 'a' },
            1 => characters.truncate(at),
            2 => characters.push('0'),
            _ => return text.to_uppercase(),
        }
        characters.into_iter().collect()
    }

    fn uuid(&mut self) -> String {
        let (high, low) = (self.random.next(), self.random.next());
        uuid::Uuid::from_u64_pair(high, low).to_string()
    }
}

fn set(message: &mut DynamicMessage, name: &str, value: Value) {
    message.set_field_by_name(name, value);
}
