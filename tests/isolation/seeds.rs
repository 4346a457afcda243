//! What each tenant has. A request here has to succeed as soon as its RPC is built; until then it
//! is left out. `$MARK` is a text that only this tenant knows, `$N` counts, `$UUID` is new,
//! `$key_` is the newest id with this prefix that the tenant has seen, `$other_key_` and
//! `$spare_key_` the two before it, and `$first_key_` the oldest.

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Admin,
    Product,
}

/// A request that leaves something.
pub struct Seed {
    pub method: &'static str,
    pub by: By,
    /// So many times; 0 = only when anything is sent.
    pub times: usize,
    pub json: &'static str,
}

const fn admin(method: &'static str, times: usize, json: &'static str) -> Seed {
    Seed {
        method,
        by: By::Admin,
        times,
        json,
    }
}

const fn product(method: &'static str, times: usize, json: &'static str) -> Seed {
    Seed {
        method,
        by: By::Product,
        times,
        json,
    }
}

/// In this order.
pub const SEEDS: &[Seed] = &[
    admin(
        "hub.api_keys.v1.ApiKeys/CreateApiKey",
        4,
        r#"{"apiKey":{"name":"$MARK key $N","scopes":["psa:tickets.read"],
            "labels":{"$MARK":"$MARK"},"allowedCidrs":[]},"requestId":"$UUID"}"#,
    ),
    admin(
        "hub.api_keys.v1.ApiKeys/SetRateLimit",
        1,
        r#"{"keyId":"$key_","requestsPerMinute":$N}"#,
    ),
    admin(
        "hub.api_keys.v1.ApiKeys/RotateApiKey",
        1,
        r#"{"keyId":"$key_","requestId":"$UUID"}"#,
    ),
    admin(
        "hub.api_keys.v1.ApiKeys/RevokeApiKey",
        1,
        r#"{"keyId":"$other_key_","reason":"$MARK"}"#,
    ),
    // One each to rotate, to revoke and to change: what was ended cannot be changed any more.
    admin(
        "hub.api_keys.v1.ApiKeys/CreateApiKey",
        6,
        r#"{"apiKey":{"name":"$MARK last $N","scopes":["psa:tickets.read"]},"requestId":"$UUID"}"#,
    ),
    admin(
        "hub.api_keys.v1.ApiKeys/UpdateApiKey",
        1,
        r#"{"apiKey":{"keyId":"$spare_key_","labels":{"why$N":"$MARK"}},"updateMask":"labels"}"#,
    ),
    admin(
        "hub.event_bus.v1.EventBus/PutEventType",
        2,
        r#"{"eventType":{"type":"note.added$N","purpose":"$MARK","sources":["psa"],
            "destinations":["portal"],"example":"{\"a\":\"$MARK\"}"}}"#,
    ),
    admin(
        "hub.platform.v1.Platform/SetIntegration",
        1,
        r#"{"source":"psa","destination":"portal","enabled":true,"reason":"$MARK"}"#,
    ),
    admin(
        "hub.platform.v1.Platform/SetIntegration",
        1,
        r#"{"source":"psa","destination":"crm","enabled":false,"reason":"$MARK"}"#,
    ),
    admin(
        "hub.platform.v1.Platform/SetProductSubscription",
        1,
        r#"{"product":"voice","active":false}"#,
    ),
    admin(
        "hub.platform.v1.Platform/UpdateTenant",
        1,
        r#"{"tenant":{"name":"$MARK"},"updateMask":"name"}"#,
    ),
    admin(
        "hub.platform.v1.Platform/ControlJob",
        1,
        r#"{"jobId":"$job_","action":"JOB_ACTION_PAUSE"}"#,
    ),
    admin(
        "hub.platform.v1.Platform/ControlJob",
        1,
        r#"{"jobId":"$job_","action":"JOB_ACTION_RESUME"}"#,
    ),
    product(
        "hub.event_bus.v1.EventBus/CreateSubscription",
        3,
        r#"{"subscription":{"name":"worker-$N","labels":{"why":"$MARK"},
            "filter":{"types":["ticket.*"]}},"requestId":"$UUID"}"#,
    ),
    admin(
        "hub.event_bus.v1.EventBus/UpdateSubscription",
        1,
        r#"{"subscription":{"subscriptionId":"$sub_","maxPerSecond":$N},
            "updateMask":"maxPerSecond"}"#,
    ),
    admin(
        "hub.event_bus.v1.EventBus/SeekSubscription",
        1,
        r#"{"subscriptionId":"$sub_","to":{"earliest":true},"requestId":"$UUID"}"#,
    ),
    admin(
        "hub.event_bus.v1.EventBus/PauseSubscription",
        1,
        r#"{"subscriptionId":"$sub_","reason":"$MARK"}"#,
    ),
    admin(
        "hub.event_bus.v1.EventBus/ResumeSubscription",
        0,
        r#"{"subscriptionId":"$sub_"}"#,
    ),
    admin(
        "hub.event_bus.v1.EventBus/DeleteSubscription",
        0,
        r#"{"subscriptionId":"$first_sub_"}"#,
    ),
    admin(
        "hub.event_bus.v1.EventBus/GetSubscription",
        1,
        r#"{"subscriptionId":"$sub_"}"#,
    ),
    product(
        "hub.event_bus.v1.EventBus/Pull",
        0,
        r#"{"subscription":"$sub_","maxEvents":$N}"#,
    ),
    product(
        "hub.event_bus.v1.EventBus/Consume",
        0,
        r#"{"open":{"subscription":"$sub_"}}"#,
    ),
    product(
        "hub.event_bus.v1.EventBus/Publish",
        6,
        r#"{"events":[{"id":"one-$N","source":"/psa/tickets","specVersion":"1.0",
            "type":"ticket.created","textData":"{\"text\":\"$MARK\"}",
            "attributes":{"subject":{"ceString":"$MARK"},
                "datacontenttype":{"ceString":"application/json"}}},
            {"id":"two-$N","source":"/psa/tickets","specVersion":"1.0",
            "type":"$MARK.made","textData":"$MARK"}]}"#,
    ),
    product(
        "hub.event_bus.v1.EventBus/PublishStream",
        1,
        r#"{"frame":"1","events":[{"id":"three-$N","source":"/psa/tickets","specVersion":"1.0",
            "type":"ticket.created","textData":"$MARK"}]}"#,
    ),
    admin(
        "hub.event_bus.v1.EventBus/EraseEvents",
        1,
        r#"{"eventIds":["$evt_"],"reason":"$MARK"}"#,
    ),
];

/// Jobs that a tenant has from the start, of a kind that no process works on: they change by what
/// is asked for only.
pub const JOBS: usize = 8;

/// What an RPC that reads shows of the seeds, by a complete request; others are generated.
pub const READS: &[(&str, &str)] = &[
    (
        "hub.event_bus.v1.EventBus/Subscribe",
        r#"{"start":{"earliest":true},"allProducts":true,"stopWhenCaughtUp":true}"#,
    ),
    (
        "hub.event_bus.v1.EventBus/GetEvent",
        r#"{"identity":{"source":"/psa/tickets","id":"one-1","product":"psa"}}"#,
    ),
    ("hub.event_bus.v1.EventBus/GetEvent", r#"{"sequence":"1"}"#),
    ("hub.api_keys.v1.ApiKeys/WatchApiKeys", "{}"),
    (
        "hub.api_keys.v1.ApiKeys/ExplainAccess",
        r#"{"product":"psa","action":"tickets.read"}"#,
    ),
    (
        "hub.event_bus.v1.EventBus/ExplainEvent",
        r#"{"search":{"type":"ticket.created","subject":"$MARK"},"destination":"portal"}"#,
    ),
    (
        "hub.event_bus.v1.EventBus/ExplainEvent",
        r#"{"search":{"type":"$MARK.mad","around":"2026-01-01T00:00:00Z"}}"#,
    ),
];

/// RPCs that read, and have nothing of one tenant to show yet, each with the reason.
pub const SHOWS_NOTHING: &[(&str, &str)] = &[
    (
        "hub.api_keys.v1.ApiKeys/WatchApiKeys",
        "without a cursor it tells of changes from now on only",
    ),
    ("hub.platform.v1.Platform/ListTenants", "only operators may"),
];

/// Values of fields that the hub checks, by the name of the field.
pub const VALUES: &[(&str, &[&str])] = &[
    ("product", &["psa", "portal", "crm"]),
    ("products", &["psa", "portal", "crm"]),
    ("destination", &["portal", "psa", "crm"]),
    ("destinations", &["portal", "hub"]),
    ("source", &["psa", "/psa/tickets"]),
    ("sources", &["psa", "*"]),
    ("type", &["ticket.created", "note.added1", "company"]),
    ("types", &["ticket.created", "ticket.*", "**"]),
    ("event_type", &["ticket.created"]),
    ("event_types", &["ticket.created"]),
    ("spec_version", &["1.0"]),
    (
        "scopes",
        &["psa:tickets.read", "hub:events.read", "hub:*", "crm:*"],
    ),
    (
        "action",
        &["tickets.read", "hub.platform.v1.Platform/SetIntegration"],
    ),
    ("allowed_cidrs", &["10.0.0.0/8"]),
    ("json_schema", &["{}", "{\"type\":\"object\"}"]),
    ("example", &["{}"]),
    ("paths", &["*", "name", "labels", "retention", "scopes"]),
    ("text_data", &["{}", "{\"a\":1}"]),
    ("subscription", &["portal", "worker-1"]),
    ("url", &["https://hooks.example.com/hub"]),
    ("kind", &["webhooks.", "test.", ""]),
    ("client_ip", &["127.0.0.1"]),
    ("host", &["localhost"]),
];

/// What puts a tenant in order after anything was sent by it.
pub const HEALING: &[(&str, &str)] = &[
    (
        "hub.platform.v1.Platform/SetProductSubscription",
        r#"{"product":"psa","active":true}"#,
    ),
    (
        "hub.platform.v1.Platform/SetProductSubscription",
        r#"{"product":"portal","active":true}"#,
    ),
    (
        "hub.platform.v1.Platform/SetIntegration",
        r#"{"source":"psa","destination":"portal","enabled":true,"reason":"$MARK"}"#,
    ),
];

/// RPCs that change nothing of a tenant that their tables hold, each with the reason.
pub const CHANGES_NOTHING: &[(&str, &str)] = &[
    (
        "hub.api_keys.v1.ApiKeys/VerifyApiKey",
        "it counts in memory, and what is written of that comes seconds later",
    ),
    (
        "hub.event_bus.v1.EventBus/Acknowledge",
        "a lease has to be taken just before, and no call of chance knows it",
    ),
];

/// RPCs that change something which is no resource, so that the audit log does not tell of it.
pub const NOT_AUDITED: &[&str] = &[
    "hub.event_bus.v1.EventBus/Publish",
    "hub.event_bus.v1.EventBus/PublishStream",
    "hub.event_bus.v1.EventBus/Consume",
    "hub.event_bus.v1.EventBus/Pull",
];
