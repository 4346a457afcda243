//! Payloads, keys and secrets are in no output, however much is logged.

use std::net::SocketAddr;

use futures_util::StreamExt;
use http::Method;
use hub_client::proto::hub::api_keys::v1::{
    ApiKey, CreateApiKeyRequest, RevokeApiKeyRequest, WhoAmIRequest,
};
use hub_client::proto::hub::event_bus::v1::PublishRequest;
use hub_client::{CloudEvent, Data, Hub, SubscribeOptions};
use prost::Message;

use crate::api_keys::ext_authz::Asked;
use crate::support::{
    Backend, Command, SEALING_KEY, Tenant, TestProcess, frame, post_grpc, post_json, request,
};

/// In the data of events, well-formed and not.
const PAYLOAD: &str = "planted-payload-b7c1f2";
/// In what is no request at all.
const GARBAGE: &str = "planted-garbage-93ad10";
const PUBLISH: &str = "hub.event_bus.v1.EventBus/Publish";

fn event(id: &str, kind: &str, data: Data) -> CloudEvent {
    CloudEvent {
        id: id.into(),
        source: "/psa".into(),
        spec_version: "1.0".into(),
        r#type: kind.into(),
        data: Some(data),
        ..CloudEvent::default()
    }
}

fn client(process: &TestProcess, key: &str) -> Hub {
    let hub = Hub::builder(format!("http://{}", process.addr()));
    hub.api_key(key).connect_lazy().unwrap()
}

/// Calls that succeed and calls that are refused, in every protocol. Returns what they were
/// answered with, and all keys that they made or used.
async fn calls(process: &TestProcess) -> (String, Vec<String>) {
    let operator_key = process.ready["operatorKey"].as_str().unwrap().to_owned();
    let tenant = Tenant::create(&client(process, &operator_key)).await;
    let admin = client(process, &tenant.admin_key);
    let scopes = [
        "hub:events.publish",
        "hub:events.read",
        "hub:events.read_all",
    ];
    let psa = tenant.key(&admin, "psa", &scopes).await;
    let request_id = uuid::Uuid::new_v4().to_string();
    let mut retried = Vec::new();
    for _ in 0..2 {
        let api_key = Some(ApiKey {
            name: "retried".into(),
            ..ApiKey::default()
        });
        let request = CreateApiKeyRequest {
            api_key,
            request_id: request_id.clone(),
        };
        let made = admin.api_keys().create_api_key(request).await.unwrap();
        retried.push(made.into_inner().plaintext);
    }
    assert_eq!(retried[0], retried[1]);
    let mut keys = vec![
        operator_key,
        tenant.admin_key.clone(),
        psa.clone(),
        retried.remove(0),
    ];
    let answers = published(process, &psa).await + &refused(process, &mut keys, &psa).await;
    let answers = answers + &worked_off(process, &tenant, &mut keys).await;
    (answers, keys)
}

/// Payloads that are leased, listed, explained and checked against a schema, and keys that are
/// shown again and asked for by a proxy. Returns what may show none of them.
async fn worked_off(process: &TestProcess, tenant: &Tenant, keys: &mut Vec<String>) -> String {
    let portal = tenant
        .key(&client(process, &tenant.admin_key), "portal", &["hub:*"])
        .await;
    keys.push(portal.clone());
    let call = async |key: &str, method: &str, body: String| {
        let answer = post_json(process.addr(), &format!("hub.{method}"), key, &body).await;
        answer.json()
    };
    let bus = async |method: &str, body: String| {
        call(&portal, &format!("event_bus.v1.EventBus/{method}"), body).await
    };
    let pull = r#"{"subscription":"portal","maxEvents":9,"wait":"20s"}"#.to_owned();
    let pulled = bus("Pull", pull).await;
    assert!(pulled.to_string().contains(PAYLOAD), "{pulled}");
    let lease = pulled["events"][0]["leaseId"].as_str().unwrap();
    let nack =
        format!(r#"{{"leaseId":"{lease}","action":"NACK_ACTION_FAIL","error":"{PAYLOAD}"}}"#);
    let acks = format!(r#"{{"subscription":"portal","acks":{{"nack":[{nack}]}}}}"#);
    let mut answers = bus("Acknowledge", acks).await.to_string();
    assert!(answers.contains("ACK_OUTCOME_OK"), "{answers}");
    let listed = bus("ListEvents", "{}".to_owned()).await;
    assert!(listed.to_string().contains(PAYLOAD), "{listed}");
    let event_id = pulled["events"][0]["record"]["eventId"].clone();
    let explained = bus("ExplainEvent", format!(r#"{{"eventId":{event_id}}}"#)).await;
    assert!(
        explained.to_string().contains("primaryCause"),
        "{explained}"
    );
    let schema = r#"{"eventType":{"type":"note.made","sources":["portal"],"destinations":["psa"],
        "jsonSchema":"{\"type\":\"number\"}"}}"#;
    answers += &bus("PutEventType", schema.to_owned()).await.to_string();
    let note = format!(
        r#"{{"id":"9","source":"/p","specVersion":"1.0","type":"note.made",
        "textData":"\"{PAYLOAD}\""}}"#
    );
    let violates = bus("Publish", format!(r#"{{"events":[{note}]}}"#))
        .await
        .to_string();
    assert!(violates.contains("SCHEMA_VIOLATION"), "{violates}");
    answers += &violates;
    let own = call(&portal, "api_keys.v1.ApiKeys/WhoAmI", "{}".to_owned()).await;
    let rotate = format!(r#"{{"keyId":{}}}"#, own["apiKey"]["keyId"]);
    let method = "api_keys.v1.ApiKeys/RotateApiKey";
    let rotated = call(&tenant.admin_key, method, rotate).await;
    keys.push(rotated["plaintext"].as_str().unwrap().to_owned());
    answers + &decided(process, tenant, keys).await
}

/// Every way to ask about a key: good, damaged, unknown, revoked, and where none may stand.
async fn decided(process: &TestProcess, tenant: &Tenant, keys: &mut Vec<String>) -> String {
    let addr = process.addr();
    let admin = client(process, &tenant.admin_key);
    let revoked = tenant.key(&admin, "psa", &["psa:*"]).await;
    let me = client(process, &revoked)
        .api_keys()
        .who_am_i(WhoAmIRequest {})
        .await;
    let key_id = me.unwrap().into_inner().api_key.unwrap().key_id;
    let request_to_end = RevokeApiKeyRequest {
        key_id,
        reason: "leaked".into(),
    };
    admin
        .api_keys()
        .revoke_api_key(request_to_end)
        .await
        .unwrap();
    let unknown = hub_api_keys::Plaintext::generate().unwrap();
    let damaged = format!("{}!", &revoked[..39]);
    keys.extend([revoked, unknown.expose().to_owned(), damaged]);
    let mut answers = String::new();
    for key in keys.clone() {
        let method = |name: &str| format!("hub.api_keys.v1.ApiKeys/{name}");
        let ask = async |name: &str, body: String| {
            let answer = post_json(addr, &method(name), &tenant.admin_key, &body).await;
            format!("{:?} {}", answer.headers, answer.text())
        };
        let asked = r#","product":"portal","action":"tickets.read""#;
        for shown in [key.clone(), format!("{key}\\u0000"), format!("{key} {key}")] {
            answers += &ask("VerifyApiKey", format!(r#"{{"key":"{shown}"{asked}}}"#)).await;
            answers += &ask("ExplainAccess", format!(r#"{{"key":"{shown}"{asked}}}"#)).await;
            // Where a key does not belong.
            answers += &ask("VerifyApiKey", format!(r#"{{"key":1,"{shown}":2}}"#)).await;
            answers += &ask("VerifyApiKey", format!(r#"{{"product":"{shown}""#)).await;
        }
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        let path = "/authz?product=portal&action=tickets.read";
        let proxied = request(addr, Method::GET, path, &headers, "").await;
        answers += &format!("{:?} {}", proxied.headers, proxied.text());
        answers += &checked(addr, &bearer, "/").await;
        answers += &checked(addr, "", &format!("/?key={key}")).await;
        let query = format!("{}?access_token={key}", method("WhoAmI"));
        let refused = post_grpc(addr, &query, &headers, frame(&[])).await;
        answers += &format!("{:?}", refused.headers);
        let refused = post_json(addr, &query, &key, "{}").await;
        answers += &format!("{:?} {}", refused.headers, refused.text());
    }
    for reason in [
        "KEY_MALFORMED",
        "KEY_NOT_RECOGNIZED",
        "KEY_REVOKED",
        "KEY_WELL_FORMED",
    ] {
        assert!(answers.contains(reason), "{reason}");
    }
    answers
}

/// What Envoy is told about a request with this `authorization` and path.
async fn checked(addr: SocketAddr, authorization: &str, path: &str) -> String {
    let header = ("authorization".to_owned(), authorization.to_owned());
    let asked = Asked {
        product: "portal",
        action: "tickets.read",
        client: "192.0.2.7",
        host: "portal.example.com",
        path: "/",
        headers: Vec::new(),
    };
    let mut check = asked.check();
    let http = check
        .attributes
        .as_mut()
        .and_then(|all| all.request.as_mut());
    let http = http.and_then(|request| request.http.as_mut()).unwrap();
    http.path = path.to_owned();
    http.headers.extend([header]);
    let method = "envoy.service.auth.v3.Authorization/Check";
    let body = frame(&check.encode_to_vec());
    let answer = post_grpc(addr, method, &[], body).await;
    format!(
        "{:?} {}",
        answer.headers,
        String::from_utf8_lossy(&answer.body)
    )
}

/// Payloads that are taken, read, and refused.
async fn published(process: &TestProcess, psa: &str) -> String {
    let mut errors = String::new();
    let bus = client(process, psa);
    let text = format!("{{\"note\":\"{PAYLOAD}\"}}");
    for (id, kind, data) in [
        ("1", "ticket.created", Data::TextData(text.clone())),
        ("1", "ticket.created", Data::TextData(format!("{text} "))),
        (
            "2",
            "ticket.created",
            Data::BinaryData(text.clone().into_bytes().into()),
        ),
        ("3", "not a type", Data::TextData(text.clone())),
        ("", "ticket.created", Data::TextData(text.clone())),
        (
            "4",
            "ticket.created",
            Data::TextData(PAYLOAD.repeat(1 << 17)),
        ),
    ] {
        let events = vec![event(id, kind, data)];
        let request = PublishRequest {
            events,
            ..PublishRequest::default()
        };
        if let Err(status) = bus.event_bus().publish(request).await {
            errors += &format!(
                "{status:?} {:?}\n",
                String::from_utf8_lossy(status.details())
            );
        }
    }
    let options = SubscribeOptions::default()
        .all_products()
        .earliest()
        .stop_when_caught_up();
    let read: Vec<_> = bus.subscribe(options).collect().await;
    assert!(
        format!("{read:?}").contains(PAYLOAD),
        "the payload is there to be read"
    );
    assert!(errors.contains("EVENT_ID_REUSED"), "{errors}");
    errors
}

/// What is wrong in every layer.
async fn refused(process: &TestProcess, keys: &mut Vec<String>, psa: &str) -> String {
    let addr = process.addr();
    let mut answers = String::new();
    // Well-formed, but unknown; and one that has lost its last character.
    let unknown = hub_api_keys::Plaintext::generate()
        .unwrap()
        .expose()
        .to_owned();
    let cut = psa[..psa.len() - 1].to_owned();
    let body = format!("{{\"events\":[{{\"id\":\"5\",\"textData\":\"{PAYLOAD}\"}}]}}");
    for key in [&unknown, &cut, psa] {
        answers += post_json(addr, PUBLISH, key, &body).await.text();
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str())];
        for message in [GARBAGE.as_bytes(), &frame(GARBAGE.as_bytes())] {
            let answer = post_grpc(addr, PUBLISH, &headers, message.to_vec()).await;
            answers += &format!("{:?}{:?}", answer.headers, answer.trailers);
        }
    }
    answers += post_json(addr, PUBLISH, psa, &format!("{{\"{GARBAGE}"))
        .await
        .text();
    let basic = [("authorization", psa), ("content-type", "application/json")];
    let path = format!("/{PUBLISH}");
    answers += request(addr, Method::POST, &path, &basic, body)
        .await
        .text();
    keys.extend([unknown, cut]);
    answers
}

/// What must be nowhere: each key without its prefix and its ends, which hints show.
fn planted(keys: &[String]) -> Vec<String> {
    let inner = |key: &String| key[8..key.len() - 6].to_owned();
    let mut planted: Vec<String> = keys.iter().map(inner).collect();
    planted.extend([PAYLOAD, GARBAGE, SEALING_KEY].map(str::to_owned));
    planted
}

/// Finds a text, also as bytes in hexadecimal or in a list of numbers, as dumps have them.
fn found(text: &str, planted: &str) -> bool {
    let hex: String = planted.bytes().map(|byte| format!("{byte:02x}")).collect();
    let list: Vec<String> = planted.bytes().map(|byte| byte.to_string()).collect();
    let lower = text.to_lowercase();
    text.contains(planted) || lower.contains(&hex) || text.contains(&list.join(", "))
}

#[test]
fn a_planted_text_is_found_in_every_form() {
    for text in ["say abc", "say 616263", "say [97, 98, 99]"] {
        assert!(found(text, "abc"), "{text}");
    }
    assert!(!found("say ab", "abc"));
}

both_databases! {
    async fn no_payload_key_or_secret_is_in_any_output(backend: Backend) {
        let process = TestProcess::start(Command::Serve, backend, &["--log-filter", "trace"]).await;
        let (answers, keys) = calls(&process).await;
        let metrics = request(process.addr(), Method::GET, "/metrics", &[], "").await;
        let ready = request(process.addr(), Method::GET, "/readyz?verbose", &[], "").await;
        let last = request(process.addr(), Method::POST, "/hub.x.v1.X/Last", &[], "").await;
        let log = process.log_until(last.header("x-request-id")).await;
        assert!(log.contains("\"level\":\"TRACE\""), "everything is logged");
        assert!(log.contains("EVENT_ID_REUSED"), "the calls are logged");
        let outputs = [
            ("the log", log.as_str()),
            ("answers", &answers),
            ("metrics", metrics.text()),
            ("readiness", ready.text()),
        ];
        for planted in planted(&keys) {
            for (name, output) in outputs {
                let line = output.lines().find(|line| found(line, &planted));
                assert!(line.is_none(), "{planted} is in {name}: {line:.600?}");
            }
        }
    }
}
