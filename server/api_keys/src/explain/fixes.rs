//! What to do: complete calls, made of what was seen.

use hub_core::auth::is_scope;
use hub_core::explain::Checklist;
use hub_proto::hub::api_keys::v1::ApiKeyState;
use hub_proto::hub::explain::v1::{Fix, FixActor};
use serde_json::{Value, json};

use super::{Case, codes};
use crate::base_url::covers;
use crate::decision::{Asked, Step};
use crate::limits::Left;

const CREATE: &str = "hub.api_keys.v1.ApiKeys/CreateApiKey";
const UPDATE: &str = "hub.api_keys.v1.ApiKeys/UpdateApiKey";
const SET_LIMIT: &str = "hub.api_keys.v1.ApiKeys/SetRateLimit";
const UPDATE_PRODUCT: &str = "hub.platform.v1.Platform/UpdateProduct";
const SET_PRODUCT: &str = "hub.platform.v1.Platform/SetProductSubscription";

impl Case<'_> {
    /// What mends a step that fails.
    pub(super) fn fixes(&self, step: Step, checks: &Checklist) -> Vec<Fix> {
        match step {
            Step::Revoked | Step::Expired => self.another_key(checks),
            Step::Address => self.allow_address(checks).into_iter().collect(),
            Step::Subscription => vec![self.activate(checks)],
            Step::Product | Step::Scope => self.add_scope(checks).into_iter().collect(),
            Step::BaseUrl => self.right_host(checks),
        }
    }

    /// The successor if there is one, and a new key with the same rights.
    fn another_key(&self, checks: &Checklist) -> Vec<Fix> {
        let key = self.key;
        let use_successor = key.successor_id.as_ref().map(|successor| {
            let title = format!("Use {successor}, the successor of {}", key.key_id);
            Checklist::advice(FixActor::Caller, title)
        });
        let title = format!("Make a key with the rights of {}", key.key_id);
        let request = json!({"apiKey": self.key_like_it()});
        let create = checks.fix(FixActor::Operator, title, CREATE, request);
        use_successor.into_iter().chain([create]).collect()
    }

    fn key_like_it(&self) -> Value {
        let key = self.key;
        json!({
            "name": key.name,
            "scopes": key.scopes,
            "product": key.product.as_deref().unwrap_or_default(),
            "allowedCidrs": key.cidrs,
            "allTenants": key.tenant.is_none(),
        })
    }

    /// The key with another value of a field. One that is not active is not changed any more: then
    /// a new key that is so.
    pub(super) fn with(
        &self,
        what: &str,
        field: &str,
        value: Vec<String>,
        checks: &Checklist,
    ) -> Fix {
        let key_id = &self.key.key_id;
        if self.key.state(self.now) == ApiKeyState::Active {
            let title = format!("{what} {key_id}");
            let key = json!({"keyId": key_id, field: value});
            let request = json!({"apiKey": key, "updateMask": field});
            return checks.fix(FixActor::Operator, title, UPDATE, request);
        }
        let mut key = self.key_like_it();
        key[field] = value.into();
        let title = format!("{what} a new key that is otherwise as {key_id}");
        checks.fix(FixActor::Operator, title, CREATE, json!({"apiKey": key}))
    }

    fn allow_address(&self, checks: &Checklist) -> Option<Fix> {
        let client = self.subject.asked.client?.to_canonical();
        let bits = if client.is_ipv4() { 32 } else { 128 };
        let mut cidrs = self.key.cidrs.clone();
        cidrs.push(format!("{client}/{bits}"));
        let what = format!("Allow {client} to");
        Some(self.with(&what, "allowedCidrs", cidrs, checks))
    }

    fn activate(&self, checks: &Checklist) -> Fix {
        let asked = &self.subject.asked.product;
        let product = match self.key.product.as_deref() {
            Some(own) if asked == super::HUB => own,
            _ => asked,
        };
        let title = format!("Activate the subscription to {product}");
        let request = json!({"tenantId": self.tenant_id(), "product": product, "active": true});
        checks.fix(FixActor::Operator, title, SET_PRODUCT, request)
    }

    fn add_scope(&self, checks: &Checklist) -> Option<Fix> {
        let scope = &self.subject.asked.scope;
        if self.subject.action.is_empty() || self.key.scopes.contains(scope) {
            return None;
        }
        let mut scopes = self.key.scopes.clone();
        scopes.push(scope.clone());
        let what = format!("Give {scope} to");
        Some(self.with(&what, "scopes", scopes, checks))
    }

    /// The hosts that are right, and how this one becomes one of them.
    fn right_host(&self, checks: &Checklist) -> Vec<Fix> {
        let Asked { product, host, .. } = &self.subject.asked;
        let found = self.products.find(product);
        let mut base_urls = found.map_or(Vec::new(), |product| product.base_urls.clone());
        let advice = |base_url: &String| {
            Checklist::advice(FixActor::Caller, format!("Send the request to {base_url}"))
        };
        let mut fixes: Vec<Fix> = base_urls.iter().map(advice).collect();
        let own = format!("https://{host}");
        let mut known = self.products.iter().flat_map(|product| &product.base_urls);
        // A host that some product has is told apart by its paths, which nobody here knows.
        let is_free = !known.any(|base_url| covers(base_url, host, ""));
        if let (Some(found), true) = (found, is_free && covers(&own, host, "")) {
            base_urls.push(own);
            let title = format!("If {host} is {product}'s too: add it to its base URLs");
            let request = json!({
                "product": {
                    "product": product,
                    "baseUrls": base_urls,
                    "etag": found.version.to_string(),
                },
                "updateMask": "baseUrls",
            });
            fixes.push(checks.fix(FixActor::Operator, title, UPDATE_PRODUCT, request));
        }
        fixes
    }

    pub(super) fn rate_fixes(&self, left: &Left, checks: &Checklist) -> Vec<Fix> {
        let wait = "Wait until reset_at: the full limit is available again then".to_owned();
        let wait = Checklist::advice(FixActor::Wait, wait);
        let cost = self.subject.cost();
        let limit = left.limit.saturating_add(left.limit.max(cost));
        let request = |key_id: &str| json!({"keyId": key_id, "requestsPerMinute": limit});
        let raise = match &left.key_id {
            None => {
                let tenant = self.tenant_id();
                let title = format!(
                    "Let an operator of the hub raise the limit of {tenant} to {limit} requests a \
                     minute"
                );
                checks.fix_in_tenant(tenant, title, SET_LIMIT, request(""))
            }
            Some(_) => {
                let key_id = &self.key.key_id;
                let title = format!("Raise the limit of {key_id} to {limit} requests a minute");
                checks.fix(FixActor::Operator, title, SET_LIMIT, request(key_id))
            }
        };
        match cost > left.limit {
            // That much is never available.
            true => vec![raise],
            false => vec![wait, raise],
        }
    }
}

/// The first fix of what would pass now.
pub(super) fn again() -> Fix {
    Checklist::advice(FixActor::Caller, "Send the request again".to_owned())
}

/// What mends a key that is missing, damaged or unknown; each step has its own.
pub(super) fn of_form(code: &str) -> Option<Fix> {
    let title = match code {
        codes::PRESENTED => "Send the key as `authorization: Bearer tos_…`",
        codes::WELL_FORMED => "Copy the key again, all 40 characters of it",
        codes::KNOWN => "Use a key that was made for this hub and this tenant",
        _ => return None,
    };
    Some(Checklist::advice(FixActor::Caller, title.to_owned()))
}

/// Where there is no other key: one for the request.
pub(super) fn make_one(asked: &Asked, checks: &Checklist) -> Option<Fix> {
    if !is_scope(&asked.scope) {
        return None;
    }
    let title = format!("Without one: make a key that may {}", asked.scope);
    let key = json!({"name": format!("for {}", asked.scope), "scopes": [asked.scope]});
    Some(checks.fix(FixActor::Operator, title, CREATE, json!({"apiKey": key})))
}
