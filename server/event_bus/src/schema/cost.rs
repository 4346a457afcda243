//! What checking data against a schema can cost at most, found out before any data is checked.
//!
//! A few lines of JSON Schema can ask for exponential work: definitions that refer to each other
//! twice, or recursion through several branches. So each schema is walked once: how often may the
//! parts of the schema together look at one value of the data, and how deep does that go? Where the
//! answer is too much, the schema is refused when it is put into the catalogue.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{DEPTH_MAX, Problem};

/// Looks at one value of the data that a schema may ask for.
pub(super) const LOOKS_MAX: u64 = 4096;
/// Nested parts of a schema that are at work at once.
const STEPS_MAX: usize = 256;
/// Regular expressions of a schema; each may take memory of its own.
const PATTERNS_MAX: usize = 32;

const IN_PLACE_ONE: [&str; 4] = ["not", "if", "then", "else"];
const IN_PLACE_LIST: [&str; 3] = ["allOf", "anyOf", "oneOf"];
const IN_PLACE_MAP: [&str; 2] = ["dependentSchemas", "dependencies"];

/// The cost of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cost {
    /// Looks at one value of the data, at most.
    pub looks: u64,
    /// Regular expressions.
    pub patterns: usize,
    /// Whether one violation may have others as its cause.
    pub alternatives: bool,
}

/// The cost of a schema, or why it is refused.
pub(super) fn of(schema: &Value) -> Result<Cost, Problem> {
    let mut graph = Graph {
        root: schema,
        anchors: HashMap::new(),
        nodes: Vec::new(),
        known: HashMap::new(),
        patterns: 0,
        alternatives: false,
    };
    graph.survey(schema, "", 0)?;
    graph.build()?;
    let order = graph.order()?;
    let looks = graph.looks(&order);
    if looks > LOOKS_MAX {
        let problem = format!(
            "asks to look at one value up to {looks} times; {LOOKS_MAX} are allowed. Use fewer \
             alternatives and references"
        );
        return Err(Problem::new("", problem));
    }
    if graph.steps(&order) > STEPS_MAX {
        return Err(Problem::new("", "nests references too deeply"));
    }
    Ok(Cost {
        looks,
        patterns: graph.patterns,
        alternatives: graph.alternatives,
    })
}

/// The parts of a schema and which of them lead to which.
struct Graph<'s> {
    root: &'s Value,
    /// Pointers of the parts that have a name.
    anchors: HashMap<&'s str, String>,
    nodes: Vec<Node>,
    known: HashMap<String, usize>,
    patterns: usize,
    alternatives: bool,
}

/// A part.
#[derive(Default)]
struct Node {
    pointer: String,
    /// Looks of its own.
    own: u64,
    /// Parts that look at the same value.
    in_place: Vec<usize>,
    /// How often they do.
    factor: u64,
    object: Children,
    array: Children,
}

/// Parts that look at the values within.
#[derive(Default)]
struct Children {
    /// One of them looks at each value.
    one: Vec<usize>,
    /// All of them look at each value.
    all: Vec<usize>,
}

impl Children {
    fn sum(&self, per_part: &[u64]) -> u64 {
        let one = self.one.iter().map(|part| per_part[*part]).max();
        let all = self.all.iter().map(|part| per_part[*part]);
        all.fold(one.unwrap_or(0), u64::saturating_add)
    }

    fn iter(&self) -> impl Iterator<Item = &usize> {
        self.one.iter().chain(&self.all)
    }
}

impl<'s> Graph<'s> {
    /// Finds names and patterns, and refuses what only other documents or other drafts have.
    fn survey(&mut self, value: &'s Value, pointer: &str, depth: usize) -> Result<(), Problem> {
        if depth > DEPTH_MAX {
            return Err(Problem::new(pointer, "is nested too deeply"));
        }
        match value {
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    self.survey(item, &format!("{pointer}/{at}"), depth + 1)?;
                }
            }
            Value::Object(map) => {
                self.survey_object(map, pointer)?;
                for (key, value) in map {
                    self.survey(value, &join(pointer, key), depth + 1)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn survey_object(&mut self, map: &'s Map<String, Value>, pointer: &str) -> Result<(), Problem> {
        for keyword in ["$anchor", "$dynamicAnchor"] {
            let Some(Value::String(name)) = map.get(keyword) else {
                continue;
            };
            if self.anchors.insert(name, pointer.to_owned()).is_some() {
                return Err(Problem::new(join(pointer, keyword), "is there twice"));
            }
        }
        for keyword in ["$id", "$schema"] {
            if !pointer.is_empty() && map.get(keyword).is_some_and(Value::is_string) {
                let problem = "stands at the top only; a schema is one document";
                return Err(Problem::new(join(pointer, keyword), problem));
            }
        }
        if map.get("$recursiveRef").is_some_and(Value::is_string) {
            let problem = "is of an older draft; use $dynamicRef";
            return Err(Problem::new(join(pointer, "$recursiveRef"), problem));
        }
        let keys = map.get("patternProperties").and_then(Value::as_object);
        self.patterns += keys.map_or(0, Map::len);
        self.patterns += usize::from(map.get("pattern").is_some_and(Value::is_string));
        if self.patterns > PATTERNS_MAX {
            let problem = format!("is one regular expression more than {PATTERNS_MAX}");
            return Err(Problem::new(pointer, problem));
        }
        Ok(())
    }

    /// Follows everything that can look at data, from the root.
    fn build(&mut self) -> Result<(), Problem> {
        let mut waiting = vec![(0, self.root)];
        self.nodes.push(Node::default());
        self.known.insert(String::new(), 0);
        while let Some((at, value)) = waiting.pop() {
            let Value::Object(map) = value else {
                self.nodes[at].own = 1;
                self.nodes[at].factor = 1;
                continue;
            };
            self.expand(at, map, &mut waiting)?;
        }
        Ok(())
    }

    fn expand(
        &mut self,
        at: usize,
        map: &'s Map<String, Value>,
        waiting: &mut Vec<(usize, &'s Value)>,
    ) -> Result<(), Problem> {
        let pointer = std::mem::take(&mut self.nodes[at].pointer);
        let mut node = Node {
            own: own(map),
            factor: factor(map),
            ..Node::default()
        };
        // The keyword may have steps of its own.
        let mut part = |keyword: &str, value: &'s Value| {
            self.part(format!("{pointer}/{keyword}"), value, waiting)
        };
        for (keyword, value) in map {
            let keyword = keyword.as_str();
            match keyword {
                "properties" => each(&mut part, keyword, value, &mut node.object.one),
                "additionalProperties" => node.object.one.push(part(keyword, value)),
                "patternProperties" => each(&mut part, keyword, value, &mut node.object.all),
                "propertyNames" | "unevaluatedProperties" => {
                    node.object.all.push(part(keyword, value));
                }
                "prefixItems" => each(&mut part, keyword, value, &mut node.array.one),
                "items" | "additionalItems" => node.array.one.push(part(keyword, value)),
                "contains" | "unevaluatedItems" => node.array.all.push(part(keyword, value)),
                _ if IN_PLACE_ONE.contains(&keyword) => node.in_place.push(part(keyword, value)),
                _ if IN_PLACE_LIST.contains(&keyword) || IN_PLACE_MAP.contains(&keyword) => {
                    each(&mut part, keyword, value, &mut node.in_place);
                }
                _ => {}
            }
        }
        self.alternatives |= map.contains_key("anyOf") || map.contains_key("oneOf");
        for keyword in ["$ref", "$dynamicRef"] {
            if let Some(Value::String(reference)) = map.get(keyword) {
                let found = self.resolve(reference);
                let (target, value) =
                    found.map_err(|problem| Problem::new(join(&pointer, keyword), problem))?;
                node.in_place.push(self.part(target, value, waiting));
            }
        }
        self.nodes[at] = Node { pointer, ..node };
        Ok(())
    }

    /// The number of a part, which is looked into later if it is new.
    fn part(
        &mut self,
        pointer: String,
        value: &'s Value,
        waiting: &mut Vec<(usize, &'s Value)>,
    ) -> usize {
        let next = self.nodes.len();
        let at = *self.known.entry(pointer.clone()).or_insert(next);
        if at == next {
            self.nodes.push(Node {
                pointer,
                ..Node::default()
            });
            waiting.push((at, value));
        }
        at
    }

    fn resolve(&self, reference: &str) -> Result<(String, &'s Value), &'static str> {
        let Some(fragment) = reference.strip_prefix('#') else {
            return Err("must begin with #; references to other documents are not followed");
        };
        let fragment = percent_decoded(fragment).ok_or("is not a reference")?;
        let pointer = match fragment.is_empty() || fragment.starts_with('/') {
            true => fragment,
            false => {
                let named = self.anchors.get(fragment.as_str());
                named.ok_or("leads nowhere")?.clone()
            }
        };
        let value = self.root.pointer(&pointer).ok_or("leads nowhere")?;
        Ok((pointer, value))
    }

    /// The parts, each behind those that it hands its own value to. It must not get it back.
    fn order(&self) -> Result<Vec<usize>, Problem> {
        let mut state = vec![Visit::New; self.nodes.len()];
        let mut order = Vec::with_capacity(self.nodes.len());
        for start in 0..self.nodes.len() {
            let mut stack = vec![(start, 0)];
            while let Some((at, next)) = stack.pop() {
                if next == 0 {
                    match state[at] {
                        Visit::New => state[at] = Visit::Open,
                        Visit::Done => continue,
                        Visit::Open => {
                            let pointer = &self.nodes[at].pointer;
                            return Err(Problem::new(pointer, "refers to itself without end"));
                        }
                    }
                }
                match self.nodes[at].in_place.get(next) {
                    Some(part) => {
                        stack.push((at, next + 1));
                        stack.push((*part, 0));
                    }
                    None => {
                        state[at] = Visit::Done;
                        order.push(at);
                    }
                }
            }
        }
        Ok(order)
    }

    /// Most looks at a value of any depth, over all parts.
    fn looks(&self, order: &[usize]) -> u64 {
        let mut most = 0;
        let mut within = vec![0; self.nodes.len()];
        for depth in 0..=DEPTH_MAX {
            let mut here = vec![0u64; self.nodes.len()];
            for at in order {
                let node = &self.nodes[*at];
                let parts = node.in_place.iter().map(|part| here[*part]);
                let in_place = parts.fold(0, u64::saturating_add);
                let own = match depth {
                    0 => node.own,
                    _ => node.object.sum(&within).max(node.array.sum(&within)),
                };
                here[*at] = in_place.saturating_mul(node.factor).saturating_add(own);
            }
            most = most.max(here[0]);
            within = here;
        }
        most
    }

    /// Most parts that are at work at once.
    fn steps(&self, order: &[usize]) -> usize {
        let mut within = vec![0; self.nodes.len()];
        for _ in 0..=DEPTH_MAX {
            let mut here = vec![0; self.nodes.len()];
            for at in order {
                let node = &self.nodes[*at];
                let in_place = node.in_place.iter().map(|part| here[*part]);
                let inner = node.object.iter().chain(node.array.iter());
                let inner = inner.map(|part| within[*part]);
                here[*at] = 1 + in_place.chain(inner).max().unwrap_or(0);
            }
            within = here;
        }
        within[0]
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    New,
    Open,
    Done,
}

/// The parts in a list or map.
fn each<'s>(
    part: &mut impl FnMut(&str, &'s Value) -> usize,
    keyword: &str,
    value: &'s Value,
    into: &mut Vec<usize>,
) {
    match value {
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                into.push(part(&format!("{keyword}/{at}"), item));
            }
        }
        Value::Object(map) => {
            for (key, value) in map {
                into.push(part(&format!("{keyword}{}", join("", key)), value));
            }
        }
        _ => {}
    }
}

/// One look, and one more for each value that a keyword compares with.
fn own(map: &Map<String, Value>) -> u64 {
    let entries = map.values().map(|value| match value {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        _ => 1,
    });
    1 + entries.map(|count| count as u64).sum::<u64>()
}

/// What is unevaluated is known once the parts in place were asked again.
fn factor(map: &Map<String, Value>) -> u64 {
    match ["unevaluatedProperties", "unevaluatedItems"]
        .iter()
        .any(|keyword| map.contains_key(*keyword))
    {
        true => 2,
        false => 1,
    }
}

/// A JSON pointer, one step on.
fn join(pointer: &str, key: &str) -> String {
    format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let high = char::from(rest.next()?).to_digit(16)?;
        let low = char::from(rest.next()?).to_digit(16)?;
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests;
