//! Each rule fails where it is broken, and only there.

use super::crates;
use super::rules::{self, Findings};
use super::source::Source;

fn domains() -> Vec<String> {
    ["api_keys", "event_bus", "webhooks"]
        .map(str::to_owned)
        .to_vec()
}

/// What a rule says of a file with this text.
fn told(rule: impl Fn(&Source) -> Findings, path: &str, text: &str) -> Findings {
    rule(&Source::parse(path, text))
}

#[test]
fn a_function_of_71_lines_is_too_long_and_one_of_70_is_not() {
    let of = |lines: usize| format!("fn f() {{\n{}}}\n", "    a();\n".repeat(lines - 2));
    assert!(told(rules::sizes, "a.rs", &of(70)).is_empty());
    assert_eq!(
        told(rules::sizes, "a.rs", &of(71)),
        ["a.rs:1: fn f has 71 lines"]
    );
    let within = format!("both! {{ async {} }}", of(71));
    assert_eq!(told(rules::sizes, "a.rs", &within).len(), 1);
}

#[test]
fn a_file_of_501_lines_is_too_long_and_one_of_500_is_not() {
    assert!(told(rules::sizes, "a.rs", &"a();\n".repeat(500)).is_empty());
    let found = told(rules::sizes, "a.rs", &"a();\n".repeat(501));
    assert_eq!(found, ["a.rs:501: the file has 501 lines"]);
}

#[test]
fn a_line_of_101_columns_is_too_long_and_one_of_100_is_not() {
    let of = |columns: usize| format!("// {}", "é".repeat(columns - 3));
    assert!(told(rules::sizes, "a.rs", &of(100)).is_empty());
    assert_eq!(told(rules::sizes, "a.rs", &of(101)).len(), 1);
}

#[test]
fn panics_are_found_in_code_but_not_in_tests_texts_and_comments() {
    let path = "server/core/src/a.rs";
    for bad in [
        "fn f() { a.unwrap(); }",
        "fn f() { a.b().expect(\"why\"); }",
        "fn f() { panic!(\"why\") }",
        "fn f() { todo!() }",
        "fn f() { unreachable!() }",
        "#[cfg(test)] mod t {} fn f() { a.unwrap(); }",
    ] {
        assert_eq!(told(rules::no_panics, path, bad).len(), 1, "{bad}");
    }
    for good in [
        "fn f() { a.unwrap_or(1); }",
        "// a.unwrap()\nfn f() { \".unwrap()\"; }",
        "#[cfg(test)] mod t { fn f() { a.unwrap(); panic!() } }",
        "#[test] fn f() { a.unwrap(); }",
        "#[expect(clippy::x)] fn f() {}",
    ] {
        assert!(told(rules::no_panics, path, good).is_empty(), "{good}");
    }
}

#[test]
fn allow_is_found_and_expect_is_not() {
    assert_eq!(
        told(rules::no_allow, "server/a.rs", "#[allow(x)] fn f() {}").len(),
        1
    );
    assert_eq!(
        told(rules::no_allow, "server/a.rs", "#![allow(x)]").len(),
        1
    );
    assert!(told(rules::no_allow, "server/a.rs", "#[expect(x)] fn f() {}").is_empty());
}

#[test]
fn names_that_say_nothing_are_found() {
    for bad in [
        "server/src/utils.rs",
        "server/core/src/common/a.rs",
        "tests/helpers/mod.rs",
    ] {
        assert_eq!(rules::no_empty_names(bad).len(), 1, "{bad}");
    }
    for good in [
        "server/event_bus/src/event_types.rs",
        "server/core/src/cursor.rs",
    ] {
        assert!(rules::no_empty_names(good).is_empty(), "{good}");
    }
}

#[test]
fn sqlx_is_found_outside_core_and_stores() {
    let text = "use sqlx::query;";
    let rule = rules::no_sqlx_outside_stores;
    for bad in [
        "server/webhooks/src/grpc.rs",
        "server/src/lib.rs",
        "client/src/lib.rs",
    ] {
        assert_eq!(told(rule, bad, text).len(), 1, "{bad}");
    }
    let good = [
        "server/core/src/a.rs",
        "server/webhooks/src/store.rs",
        "server/a/src/store/b.rs",
    ];
    for good in good {
        assert!(told(rule, good, text).is_empty(), "{good}");
    }
    assert!(
        told(
            rule,
            "server/a/src/b.rs",
            "// sqlx\n#[cfg(test)] use sqlx::a;"
        )
        .is_empty()
    );
}

#[test]
fn transport_is_found_in_stores_and_storage_in_grpc() {
    let tonic = "use tonic::Code;";
    for bad in [
        "server/webhooks/src/store.rs",
        "server/core/src/storage/tx.rs",
    ] {
        assert_eq!(
            told(rules::no_tonic_in_stores, bad, tonic).len(),
            1,
            "{bad}"
        );
    }
    assert!(
        told(
            rules::no_tonic_in_stores,
            "server/webhooks/src/grpc.rs",
            tonic
        )
        .is_empty()
    );
    let storage = "use hub_core::storage::Db;";
    assert_eq!(
        told(rules::no_storage_in_grpc, "server/a/src/grpc.rs", storage).len(),
        1
    );
    assert!(told(rules::no_storage_in_grpc, "server/a/src/store.rs", storage).is_empty());
}

#[test]
fn a_domain_that_names_another_is_found() {
    let rule = |source: &Source| rules::no_domain_names_another(source, &domains());
    let bad = [
        ("server/webhooks/src/a.rs", "use hub_event_bus::routing;"),
        (
            "server/webhooks/src/a.rs",
            "use hub_proto::hub::event_bus::v1::PublishRequest;",
        ),
        (
            "server/webhooks/src/a.rs",
            "fn f() { hub_proto::hub::api_keys::v1::ApiKey {} }",
        ),
        (
            "server/core/src/a.rs",
            "use hub_proto::server::webhooks_server::Webhooks;",
        ),
        ("server/core/src/a.rs", "use hub_webhooks::module;"),
        (
            "server/core/src/a.rs",
            "use hub_proto::hub::event_bus::v1::{CloudEvent, Subscription};",
        ),
        (
            "server/core/src/a.rs",
            "#[cfg(test)] mod tests { use hub_webhooks::module; }",
        ),
    ];
    for (path, text) in bad {
        assert_eq!(told(rule, path, text).len(), 1, "{path}: {text}");
    }
    let good = [
        (
            "server/webhooks/src/a.rs",
            "use hub_proto::hub::webhooks::v1::Endpoint;",
        ),
        ("server/src/modules.rs", "use hub_webhooks::module;"),
        (
            "server/core/src/a.rs",
            "use hub_proto::hub::event_bus::v1::{CloudEvent, EventBatch};",
        ),
        (
            "server/core/src/a.rs",
            "let a = hub::event_bus::v1::CloudEvent { id: b, c };",
        ),
        ("tests/webhooks/a.rs", "use hub_event_bus::routing;"),
    ];
    for (path, text) in good {
        assert!(told(rule, path, text).is_empty(), "{path}: {text}");
    }
}

#[test]
fn a_crate_that_depends_on_a_domain_is_found() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\nhub-core.workspace = true\n";
    let with = |more: &str| format!("{manifest}{more}");
    let check = |own: &str, text: &str| crates::dependencies(own, text, &domains());
    assert!(check("webhooks", manifest).is_empty());
    assert!(check("src", &with("hub-webhooks.workspace = true\n")).is_empty());
    for bad in [
        "hub-event-bus.workspace = true\n",
        "hub-event-bus = { path = \"../event_bus\" }\n",
        "[dev-dependencies]\nhub-api-keys.workspace = true\n",
        "other = { package = \"hub-event-bus\", path = \"../event_bus\" }\n",
    ] {
        assert_eq!(check("webhooks", &with(bad)).len(), 1, "{bad}");
        assert_eq!(check("core", &with(bad)).len(), 1, "{bad}");
    }
    let server = "hub-server.workspace = true\n";
    assert_eq!(
        check("webhooks", &with(server)).len(),
        1,
        "the server is above its domains"
    );
}
