//! The rules about one file.

use super::source::{File, Source, files, sources};

/// Most lines of a file that people write.
const FILE_LINES_MAX: usize = 500;
/// Most lines of a function, from `fn` to its last brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Most characters of a line.
const COLUMNS_MAX: usize = 100;

/// Names that say nothing of what is inside.
const NO_NAMES: &[&str] = &[
    "common", "handler", "handlers", "helper", "helpers", "manager", "managers", "misc", "types",
    "util", "utils",
];

/// The form of events, which the journal and all domains share.
const ENVELOPE: &[&str] = &[
    "CloudEvent",
    "CloudEventAttributeValue",
    "Attr",
    "Data",
    "EventBatch",
    "EventRecord",
    "cloud_event",
    "cloud_event_attribute_value",
    "self",
];

/// What is wrong, and where: `path:line: problem`.
pub type Findings = Vec<String>;

/// Files that fit a head, functions that fit a screen, lines that fit beside each other.
pub fn sizes(source: &Source) -> Findings {
    let path = &source.path;
    let long = source.functions.iter().filter_map(|function| {
        let lines = function.last - function.first + 1;
        let (name, first) = (&function.name, function.first);
        let problem = format!("{path}:{first}: fn {name} has {lines} lines");
        (lines > FUNCTION_LINES_MAX).then_some(problem)
    });
    let mut found: Findings = long.collect();
    found.extend(length(path, &source.text));
    found.extend(columns(path, &source.text));
    found
}

/// A file of any language has an end in sight.
pub fn length(path: &str, text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > FILE_LINES_MAX).then(|| format!("{path}:{lines}: the file has {lines} lines"))
}

fn columns(path: &str, text: &str) -> Findings {
    let lines = text.lines().enumerate();
    // A text that must stay in one piece is a raw one.
    let long = lines.filter(|(_, line)| line.chars().count() > COLUMNS_MAX && !line.contains("r#"));
    long.map(|(at, _)| {
        format!(
            "{path}:{}: the line has more than {COLUMNS_MAX} columns",
            at + 1
        )
    })
    .collect()
}

/// A program that serves many does not end because of one.
pub fn no_panics(source: &Source) -> Findings {
    let tokens: Vec<_> = source.tokens.iter().filter(|token| !token.test).collect();
    let mut found = Findings::new();
    for three in tokens.windows(3) {
        let [before, word, after] = three else {
            continue;
        };
        let call = before.text == "." && after.text == "(";
        let is = match word.text.as_str() {
            "unwrap" | "expect" | "unwrap_err" | "expect_err" => call,
            "panic" | "todo" | "unimplemented" | "unreachable" | "dbg" => {
                word.word && after.text == "!"
            }
            _ => false,
        };
        if is {
            found.push(format!(
                "{}:{}: {} outside tests",
                source.path, word.line, word.text
            ));
        }
    }
    found
}

/// A lint that does not apply is expected, so that it is told when it stops to apply.
pub fn no_allow(source: &Source) -> Findings {
    // Generated code breaks lints in ways that change with its generator.
    if source.path.starts_with("proto/") {
        return Findings::new();
    }
    let found = source
        .tokens
        .windows(2)
        .filter(|two| two[0].text == "[" && two[1].text == "allow");
    found
        .map(|two| format!("{}:{}: allow instead of expect", source.path, two[1].line))
        .collect()
}

/// A name is a noun of the field.
pub fn no_empty_names(path: &str) -> Findings {
    let names = path.trim_end_matches(".rs").split('/');
    let empty = names.filter(|name| NO_NAMES.contains(name));
    empty
        .map(|name| format!("{path}:1: the name {name} says nothing"))
        .collect()
}

/// SQL is in stores; everything else asks them.
pub fn no_sqlx_outside_stores(source: &Source) -> Findings {
    let path = &source.path;
    let free = path.starts_with("server/core/") || path.starts_with("tests/") || is_store(path);
    if free {
        Findings::new()
    } else {
        naming(source, "sqlx", "outside core and stores")
    }
}

/// A store knows no transport.
pub fn no_tonic_in_stores(source: &Source) -> Findings {
    let storage = source.path.starts_with("server/core/src/storage/");
    if is_store(&source.path) || storage {
        naming(source, "tonic", "in a store")
    } else {
        Findings::new()
    }
}

/// `grpc.rs` converts; it does not look things up by itself.
pub fn no_storage_in_grpc(source: &Source) -> Findings {
    let is_grpc = source.path.ends_with("/grpc.rs") || source.path.contains("/grpc/");
    if is_grpc && source.path.starts_with("server/") {
        naming(source, "storage", "in grpc")
    } else {
        Findings::new()
    }
}

fn is_store(path: &str) -> bool {
    path.starts_with("server/") && (path.ends_with("/store.rs") || path.contains("/store/"))
}

/// Tests of a domain may look into its tables.
fn naming(source: &Source, name: &str, place: &str) -> Findings {
    let words = source
        .tokens
        .iter()
        .filter(|token| token.word && !token.test);
    let named = words.filter(|token| token.text == name);
    named
        .map(|token| format!("{}:{}: {name} {place}", source.path, token.line))
        .collect()
}

/// Domains meet in the journal and in the traits of core; core knows none of them.
pub fn no_domain_names_another(source: &Source, domains: &[String]) -> Findings {
    let Some(own) = source
        .path
        .strip_prefix("server/")
        .and_then(|path| path.split('/').next())
    else {
        return Findings::new();
    };
    if own == "src" || own == "build.rs" {
        return Findings::new();
    }
    let mut found = Findings::new();
    for other in domains.iter().filter(|other| *other != own) {
        let names = [
            format!("hub_{other}"),
            format!("{other}_server"),
            format!("{other}_client"),
        ];
        for (at, token) in source
            .tokens
            .iter()
            .enumerate()
            .filter(|(_, token)| token.word)
        {
            let package = token.text == *other && follows(&source.tokens, at, "hub");
            if names.contains(&token.text) || (package && !is_envelope(&source.tokens[at + 1..])) {
                let path = &source.path;
                found.push(format!("{path}:{}: {own} names {other}", token.line));
            }
        }
    }
    found
}

/// Whether the path segment before the token at `at` is `name`.
fn follows(tokens: &[super::source::Token], at: usize, name: &str) -> bool {
    let before: Vec<&str> = tokens[..at]
        .iter()
        .rev()
        .take(3)
        .map(|t| t.text.as_str())
        .collect();
    before == [":", ":", name]
}

/// Whether a path goes on to parts of the envelope only.
fn is_envelope(tokens: &[super::source::Token]) -> bool {
    let mut before = "";
    for token in tokens {
        let text = token.text.as_str();
        let goes_on = matches!(text, ":" | "," | "}") || (text == "{" && before == ":");
        if !token.word && !goes_on {
            break;
        }
        if token.word && text != "v1" && !ENVELOPE.contains(&text) {
            return false;
        }
        before = text;
    }
    true
}

/// What a rule says of everything that there is.
pub fn keep(rule: &str, found: Findings) {
    assert!(found.is_empty(), "{rule}:\n{}\n", found.join("\n"));
}

fn all(rule: impl Fn(&Source) -> Findings) -> Findings {
    sources().iter().flat_map(rule).collect()
}

#[test]
fn files_functions_and_lines_have_their_size() {
    keep("sizes", all(sizes));
    let others = files(&["py", "sh", "sql", "js", "html", "css", ""]);
    let scripts = others.iter().filter(|file| file.path != "LICENSE");
    let long = scripts.filter_map(|file: &File| length(&file.path, &file.text));
    keep("sizes", long.collect());
}

#[test]
fn nothing_outside_tests_panics() {
    keep("panics", all(no_panics));
}

#[test]
fn lints_are_expected_not_allowed() {
    keep("expect", all(no_allow));
}

#[test]
fn names_say_what_is_inside() {
    keep("names", all(|source| no_empty_names(&source.path)));
}

#[test]
fn sqlx_is_in_core_and_stores_only() {
    keep("sqlx", all(no_sqlx_outside_stores));
}

#[test]
fn stores_know_no_transport_and_grpc_no_storage() {
    keep("tonic", all(no_tonic_in_stores));
    keep("storage", all(no_storage_in_grpc));
}

#[test]
fn no_domain_names_another_and_core_names_none() {
    let domains = super::crates::domains();
    keep(
        "domains",
        all(|source| no_domain_names_another(source, &domains)),
    );
}
