use serde_json::json;

use super::*;

fn problem(schema: &Value) -> String {
    of(schema).unwrap_err().to_string()
}

#[test]
fn ordinary_schemas_are_cheap() {
    let tree = json!({
        "$id": "https://example.com/tree",
        "$ref": "#/$defs/node",
        "$defs": { "node": {
            "type": "object",
            "properties": {
                "name": { "type": "string", "pattern": "^[a-z]+$" },
                "children": { "type": "array", "items": { "$ref": "#/$defs/node" } },
            },
            "required": ["name"],
        } },
    });
    let cost = of(&tree).unwrap();
    assert!(cost.looks < 20, "{cost:?}");
    assert_eq!((cost.patterns, cost.alternatives), (1, false));
    assert!(of(&json!({ "oneOf": [true, false] })).unwrap().alternatives);
    assert!(of(&json!(true)).is_ok());
}

#[test]
fn exponential_work_is_refused() {
    // Each definition asks for the next one twice, at the same value.
    let mut doubling = json!({ "$ref": "#/$defs/d0", "$defs": { "d40": true } });
    for at in 0..40 {
        let next = json!({ "$ref": format!("#/$defs/d{}", at + 1) });
        doubling["$defs"][format!("d{at}")] = json!({ "allOf": [next, next] });
    }
    assert!(problem(&doubling).contains("look at one value"));
    // Recursion that asks twice for each value within.
    let twice = json!({ "allOf": [
        { "properties": { "x": { "$ref": "#" } } },
        { "properties": { "x": { "$ref": "#" } } },
    ] });
    assert!(problem(&twice).contains("look at one value"));
    let named = json!({
        "$dynamicAnchor": "me",
        "allOf": [
            { "items": { "$dynamicRef": "#me" } },
            { "prefixItems": [{ "$ref": "#me" }] },
        ],
    });
    assert!(problem(&named).contains("look at one value"));
    let many = json!({ "items": { "enum": (0..5000).collect::<Vec<_>>() } });
    assert!(problem(&many).contains("look at one value"));
}

#[test]
fn endless_and_deep_references_are_refused() {
    let around = json!({ "$ref": "#/$defs/a", "$defs": {
        "a": { "anyOf": [true, { "$ref": "#/$defs/b" }] },
        "b": { "not": { "$ref": "#/$defs/a" } },
    } });
    assert!(
        problem(&around).contains("without end"),
        "{}",
        problem(&around)
    );
    assert!(problem(&json!({ "$ref": "#" })).contains("without end"));
    let mut chain = json!({ "$ref": "#/$defs/d0", "$defs": { "d300": true } });
    for at in 0..300 {
        let next = format!("#/$defs/d{}", at + 1);
        chain["$defs"][format!("d{at}")] = json!({ "$ref": next });
    }
    assert!(
        problem(&chain).contains("too deeply"),
        "{}",
        problem(&chain)
    );
    let mut deep = json!(true);
    for _ in 0..100 {
        deep = json!({ "items": deep });
    }
    assert!(problem(&deep).contains("too deeply"), "{}", problem(&deep));
}

#[test]
fn references_stay_within_the_document() {
    for reference in [
        "https://example.com/x",
        "file:///etc/passwd",
        "other.json#/a",
        "x",
    ] {
        let schema = json!({ "items": { "$ref": reference } });
        assert!(problem(&schema).starts_with("/items/$ref must begin with #"));
    }
    assert!(problem(&json!({ "$ref": "#/$defs/x" })).contains("leads nowhere"));
    let inner = json!({ "$defs": { "x": { "$id": "https://example.com/x" } } });
    assert!(problem(&inner).contains("at the top only"));
    let twice = json!({ "items": { "$anchor": "a" }, "not": { "$anchor": "a" } });
    assert!(problem(&twice).contains("there twice"));
    let escaped = json!({ "$ref": "#/$defs/a~1b%25", "$defs": { "a/b%": true } });
    assert!(of(&escaped).is_ok());
}

#[test]
fn regular_expressions_are_counted() {
    let patterns = |count: usize| {
        let keys = (0..count).map(|at| (format!("^{at}"), Value::Bool(true)));
        json!({ "patternProperties": keys.collect::<Map<_, _>>() })
    };
    assert_eq!(of(&patterns(PATTERNS_MAX)).unwrap().patterns, PATTERNS_MAX);
    assert!(problem(&patterns(PATTERNS_MAX + 1)).contains("regular expression"));
}
