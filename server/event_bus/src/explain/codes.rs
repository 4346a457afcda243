//! The checks of an event, in their order. Each has a page in `docs/checks`.

pub(super) const RECEIVED: &str = "EVT_RECEIVED";
pub(super) const VALID: &str = "EVT_VALID";
pub(super) const NOT_DEDUPED: &str = "EVT_NOT_DEDUPED";
pub(super) const RETAINED: &str = "EVT_RETAINED";
pub(super) const SOURCE_SUBSCRIPTION: &str = "EVT_SOURCE_SUBSCRIPTION";
pub(super) const DEST_SUBSCRIPTION: &str = "EVT_DEST_SUBSCRIPTION";
pub(super) const INTEGRATION_ENABLED: &str = "EVT_INTEGRATION_ENABLED";
pub(super) const ROUTE_MATCHED: &str = "EVT_ROUTE_MATCHED";
pub(super) const DEST_PRINCIPAL_ALLOWED: &str = "EVT_DEST_PRINCIPAL_ALLOWED";
pub(super) const SUBSCRIBER_EXISTS: &str = "EVT_SUBSCRIBER_EXISTS";
pub(super) const SUBSCRIBER_CONNECTED: &str = "EVT_SUBSCRIBER_CONNECTED";
pub(super) const CURSOR_PASSED: &str = "EVT_CURSOR_PASSED";
pub(super) const NOT_BLOCKED_BY_EARLIER: &str = "EVT_NOT_BLOCKED_BY_EARLIER";
pub(super) const DELIVERED: &str = "EVT_DELIVERED";
pub(super) const ACKED: &str = "EVT_ACKED";
pub(super) const CONSUMER_OUTCOME: &str = "EVT_CONSUMER_OUTCOME";
pub(super) const FOLLOW_UP: &str = "EVT_FOLLOW_UP";

/// What a subscription needs to have an event, unless it was given it later by a call.
pub(super) const ROUTED: &[&str] = &[
    SOURCE_SUBSCRIPTION,
    DEST_SUBSCRIPTION,
    INTEGRATION_ENABLED,
    ROUTE_MATCHED,
];

/// The checks of a delivery, in their order, with what they ask where there is none.
pub(super) const OF_DELIVERY: [(&str, &str); 7] = [
    (
        SUBSCRIBER_CONNECTED,
        "A consumer takes from the subscription",
    ),
    (CURSOR_PASSED, "The subscription has reached the event"),
    (
        NOT_BLOCKED_BY_EARLIER,
        "No earlier event of its key holds it back",
    ),
    (DELIVERED, "It was handed to a consumer"),
    (ACKED, "The consumer settled it"),
    (CONSUMER_OUTCOME, "The consumer did what the event is for"),
    (FOLLOW_UP, "An event names it as its cause"),
];
