use prost_types::{Duration, FieldMask, Timestamp};

use super::*;
use crate::hub::api_keys::v1::{
    ApiKey, CreateApiKeyRequest, RotateApiKeyRequest, UpdateApiKeyRequest, VerifyApiKeyRequest,
};
use crate::hub::entity_sync::v1::{EntityRef, FindDuplicatesRequest, GetEntityRequest, entity_ref};
use crate::hub::event_bus::v1 as bus;
use crate::wire;

/// `field reason` of each violation.
fn found<M: Validate>(message: &M) -> Vec<String> {
    let violations = violations(message);
    violations
        .as_slice()
        .iter()
        .map(|v| format!("{} {}", v.field, v.reason))
        .collect()
}

fn key(name: &str) -> ApiKey {
    ApiKey {
        name: name.to_owned(),
        ..ApiKey::default()
    }
}

fn create(api_key: ApiKey) -> CreateApiKeyRequest {
    CreateApiKeyRequest {
        api_key: Some(api_key),
        request_id: String::new(),
    }
}

#[test]
fn all_violations_are_found_at_once() {
    let mut api_key = key(&"n".repeat(201));
    api_key.scopes = vec!["psa:*".to_owned(), "x".repeat(1025)];
    api_key.labels = [("a\0".to_owned(), "b\0".to_owned())].into();
    let request = CreateApiKeyRequest {
        request_id: "1".to_owned(),
        ..create(api_key)
    };
    assert_eq!(
        found(&request),
        [
            "api_key.name TOO_LONG",
            "api_key.scopes[1] TOO_LONG",
            "api_key.labels[\"a\\0\"] CONTAINS_NUL",
            "api_key.labels[\"a\\0\"] CONTAINS_NUL",
            "request_id PATTERN_MISMATCH",
        ]
    );
}

#[test]
fn a_request_within_its_limits_passes() {
    let mut api_key = key(&"ü".repeat(200));
    api_key.scopes = vec!["hub:*".to_owned(); 64];
    api_key.expire_time = Some(Timestamp {
        seconds: 4_000_000_000,
        nanos: 999_999_999,
    });
    let request_id = "6f1c2a34-9d5e-4b7a-8c1d-0123456789AB".to_owned();
    assert!(
        found(&CreateApiKeyRequest {
            request_id,
            ..create(api_key)
        })
        .is_empty()
    );
}

#[test]
fn what_must_be_set_is_named_by_its_path() {
    assert_eq!(found(&CreateApiKeyRequest::default()), ["api_key REQUIRED"]);
    assert_eq!(found(&create(ApiKey::default())), ["api_key.name REQUIRED"]);
    // The same resource in an update needs its id and not its name.
    let update = UpdateApiKeyRequest {
        api_key: Some(ApiKey::default()),
        update_mask: None,
    };
    assert_eq!(found(&update), ["api_key.key_id REQUIRED"]);
}

#[test]
fn an_unset_choice_is_a_violation() {
    assert_eq!(found(&GetEntityRequest::default()), ["ref REQUIRED"]);
    let unset = GetEntityRequest {
        r#ref: Some(EntityRef { r#ref: None }),
        ..Default::default()
    };
    assert_eq!(found(&unset), ["ref.ref REQUIRED"]);
    let empty = Some(entity_ref::Ref::EntityId(String::new()));
    let empty = GetEntityRequest {
        r#ref: Some(EntityRef { r#ref: empty }),
        ..Default::default()
    };
    assert_eq!(found(&empty), ["ref.entity_id REQUIRED"]);
}

#[test]
fn too_many_entries_are_refused() {
    let mut api_key = key("n");
    api_key.scopes = vec!["s".to_owned(); 65];
    api_key.labels = (0..21).map(|n| (n.to_string(), String::new())).collect();
    assert_eq!(
        found(&create(api_key)),
        ["api_key.scopes TOO_LONG", "api_key.labels TOO_LONG"]
    );
    let erase = bus::EraseEventsRequest {
        event_ids: vec!["evt_1".to_owned(); 1001],
        ..Default::default()
    };
    assert_eq!(found(&erase), ["event_ids TOO_LONG"]);
    assert_eq!(
        found(&bus::EraseEventsRequest::default()),
        ["event_ids REQUIRED"]
    );
}

#[test]
fn ids_have_the_prefix_of_their_kind() {
    let erase = |id: &str| bus::EraseEventsRequest {
        event_ids: vec![id.to_owned()],
        ..Default::default()
    };
    assert!(found(&erase("evt_1")).is_empty());
    for wrong in ["sub_1", "evt_", "evt_1 ", "EVT_1"] {
        assert_eq!(
            found(&erase(wrong)),
            ["event_ids[0] PATTERN_MISMATCH"],
            "{wrong}"
        );
    }
}

#[test]
fn numbers_keep_to_their_range() {
    let verify = |cost| VerifyApiKeyRequest {
        product: "psa".to_owned(),
        action: "tickets.read".to_owned(),
        cost,
        ..Default::default()
    };
    assert!(found(&verify(None)).is_empty());
    assert!(found(&verify(Some(0))).is_empty());
    assert!(found(&verify(Some(1000))).is_empty());
    assert_eq!(found(&verify(Some(1001))), ["cost OUT_OF_RANGE"]);
    let list = bus::ListEventsRequest {
        page_size: -1,
        ..Default::default()
    };
    assert_eq!(found(&list), ["page_size OUT_OF_RANGE"]);
    let list = bus::ListEventsRequest {
        page_size: 100_000,
        ..Default::default()
    };
    assert!(found(&list).is_empty(), "a large page is cut, not refused");
    let at = bus::start_at::At::AfterSequence(u64::MAX);
    let start = Some(bus::StartAt { at: Some(at) });
    let subscribe = bus::SubscribeRequest {
        start,
        ..Default::default()
    };
    assert_eq!(found(&subscribe), ["start.after_sequence OUT_OF_RANGE"]);
}

#[test]
fn numbers_with_a_fraction_are_finite_and_in_range() {
    let probe =
        crate::hub::entity_sync::v1::find_duplicates_request::Probe::EntityId("ent_1".into());
    for (score, valid) in [
        (0.0, true),
        (1.0, true),
        (1.01, false),
        (-0.1, false),
        (f64::NAN, false),
    ] {
        let request = FindDuplicatesRequest {
            probe: Some(probe.clone()),
            min_score: score,
            ..Default::default()
        };
        assert_eq!(found(&request).is_empty(), valid, "{score}");
    }
}

#[test]
fn times_and_durations_are_valid_and_in_range() {
    let rotate = |seconds, nanos| RotateApiKeyRequest {
        key_id: "key_1".to_owned(),
        grace: Some(Duration { seconds, nanos }),
        ..Default::default()
    };
    for (seconds, nanos, valid) in [
        (0, 0, true),
        (30 * 86_400, 0, true),
        (30 * 86_400, 1, false),
        (-1, 0, false),
        (1, -1, false),
        (1, 1_000_000_000, false),
        (i64::MIN, 0, false),
    ] {
        assert_eq!(
            found(&rotate(seconds, nanos)).is_empty(),
            valid,
            "{seconds} {nanos}"
        );
    }
    for time in [
        Timestamp {
            seconds: 0,
            nanos: -1,
        },
        Timestamp {
            seconds: i64::MAX,
            nanos: 0,
        },
    ] {
        let request = create(ApiKey {
            expire_time: Some(time),
            ..key("n")
        });
        assert_eq!(found(&request), ["api_key.expire_time OUT_OF_RANGE"]);
    }
}

#[test]
fn a_mask_has_at_most_64_paths() {
    let update = |paths| UpdateApiKeyRequest {
        api_key: Some(ApiKey {
            key_id: "key_1".to_owned(),
            ..ApiKey::default()
        }),
        update_mask: Some(FieldMask { paths }),
    };
    assert!(found(&update(vec!["name".to_owned(); 64])).is_empty());
    assert_eq!(
        found(&update(vec!["name".to_owned(); 65])),
        ["update_mask.paths TOO_LONG"]
    );
    assert_eq!(
        found(&update(vec!["a\0".to_owned()])),
        ["update_mask.paths[0] CONTAINS_NUL"]
    );
}

#[test]
fn unknown_enum_values_are_accepted() {
    let request = crate::hub::api_keys::v1::ListApiKeysRequest {
        states: vec![99],
        ..Default::default()
    };
    assert!(found(&request).is_empty());
}

#[test]
fn the_bus_checks_its_events_itself() {
    let events = vec![bytes::Bytes::from_static(b"anything"); 2000];
    assert!(
        found(&wire::PublishRequest {
            events,
            ..Default::default()
        })
        .is_empty()
    );
    assert_eq!(found(&wire::PublishRequest::default()), ["events REQUIRED"]);
    let frame = wire::PublishStreamRequest {
        tenant_id: "tnt_\0".to_owned(),
        ..Default::default()
    };
    assert_eq!(found(&frame), ["tenant_id CONTAINS_NUL"]);
}

#[test]
fn violations_are_limited_in_number() {
    let acks = bus::AckBatch {
        ack: vec!["\0".to_owned(); 1000],
        ..Default::default()
    };
    let subscription = "portal".to_owned();
    let request = bus::AcknowledgeRequest {
        subscription,
        acks: Some(acks),
    };
    let count = violations(&request).as_slice().len();
    assert!((1..=MAX_VIOLATIONS).contains(&count), "{count}");
}

#[test]
fn secrets_are_not_shown_by_debug() {
    use crate::hub::api_keys::v1::{
        CreateApiKeyResponse, ExplainAccessRequest, explain_access_request,
    };
    let plaintext = "tos_secret".to_owned();
    let response = CreateApiKeyResponse {
        api_key: None,
        plaintext: plaintext.clone(),
    };
    let subject = Some(explain_access_request::Subject::Key(plaintext.clone()));
    let explain = ExplainAccessRequest {
        subject,
        ..Default::default()
    };
    let verify = VerifyApiKeyRequest {
        key: plaintext,
        product: "psa".to_owned(),
        ..Default::default()
    };
    let shown = format!("{response:?} {explain:?} {verify:?}");
    assert!(!shown.contains("tos_secret"), "{shown}");
    assert!(
        shown.contains("<redacted>") && shown.contains("psa"),
        "{shown}"
    );
}
