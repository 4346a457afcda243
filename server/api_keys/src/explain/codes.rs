//! The checks of a request with a key, in their order. Each has a page in `docs/checks`.

pub(super) const PRESENTED: &str = "KEY_PRESENTED";
pub(super) const WELL_FORMED: &str = "KEY_WELL_FORMED";
pub(super) const KNOWN: &str = "KEY_KNOWN";
pub(super) const NOT_REVOKED: &str = "KEY_NOT_REVOKED";
pub(super) const NOT_EXPIRED: &str = "KEY_NOT_EXPIRED";
pub(super) const ADDRESS: &str = "KEY_IP";
pub(super) const SUBSCRIBED: &str = "KEY_PRODUCT_SUBSCRIBED";
pub(super) const PRODUCT: &str = "KEY_PRODUCT";
pub(super) const BASE_URL: &str = "KEY_BASE_URL";
pub(super) const OPERATOR: &str = "KEY_OPERATOR";
pub(super) const ACTION: &str = "KEY_ACTION";
pub(super) const RATE: &str = "KEY_RATE";
pub(super) const RIGHTS: &str = "KEY_RIGHTS";
pub(super) const PROPAGATED: &str = "KEY_PROPAGATED";
pub(super) const WOULD_PASS_NOW: &str = "KEY_WOULD_PASS_NOW";

/// One for each step of the decision.
pub(super) const STEPS: [&str; 7] = [
    NOT_REVOKED,
    NOT_EXPIRED,
    ADDRESS,
    SUBSCRIBED,
    PRODUCT,
    BASE_URL,
    ACTION,
];

/// Those by which a request is refused, in the order in which it is decided.
pub(super) const DECIDED: [&str; 10] = [
    NOT_REVOKED,
    NOT_EXPIRED,
    ADDRESS,
    SUBSCRIBED,
    PRODUCT,
    BASE_URL,
    OPERATOR,
    ACTION,
    RATE,
    RIGHTS,
];

/// The check that failed where a request was refused for this reason.
pub(super) fn of_reason(reason: &str) -> Option<&'static str> {
    Some(match reason {
        "KEY_REVOKED" => NOT_REVOKED,
        "KEY_EXPIRED" => NOT_EXPIRED,
        "IP_NOT_ALLOWED" => ADDRESS,
        "SUBSCRIPTION_INACTIVE" => SUBSCRIBED,
        "PRODUCT_MISMATCH" => PRODUCT,
        "BASE_URL_MISMATCH" => BASE_URL,
        "OPERATOR_ONLY" => OPERATOR,
        "SCOPE_MISSING" => ACTION,
        "RATE_LIMITED" => RATE,
        "SCOPE_ESCALATION" => RIGHTS,
        _ => return None,
    })
}

/// The statement that is checked.
pub(super) fn title(code: &str) -> &'static str {
    match code {
        PRESENTED => "A key was presented",
        WELL_FORMED => "The key is whole",
        KNOWN => "There is such a key",
        NOT_REVOKED => "The key was not revoked",
        NOT_EXPIRED => "The key has not expired",
        ADDRESS => "The key may be used from the client's address",
        SUBSCRIBED => "The tenant's subscription to the product is active",
        PRODUCT => "A scope of the key is for the product",
        BASE_URL => "The host is one of the product's",
        OPERATOR => "The call is not for operators only, or the key is an operator's",
        ACTION => "A scope of the key covers the action",
        RATE => "The rate limits have room for a request",
        RIGHTS => "The key has itself what the call gives or ends",
        PROPAGATED => "All verifiers know the last change of the key",
        _ => "The same request would be allowed now",
    }
}
