//! Who is calling, and what that key may do. Tenant, product and scopes come from the credential.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};

use http::HeaderMap;
use hub_proto::policy::MethodPolicy;
use tonic::Code;

use crate::error::{CORE, Error, Result};
use crate::journal::{NewEvent, TenantRef};
use crate::storage::Tx;
use crate::tenancy::Tenancy;

/// Metadata by which a key without tenant names the tenant of a call.
pub const TENANT_HEADER: &str = "x-hub-tenant";

/// The scope of an administrator: every action of the hub, and giving scopes of any product.
pub const ADMINISTRATOR: &str = "hub:*";

/// The rights of a key, e.g. `psa:tickets.read`, `psa:*`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Scopes(Arc<[String]>);

impl Scopes {
    /// Takes scopes as they are; see [`is_scope`] for the form.
    pub fn new(scopes: impl IntoIterator<Item = String>) -> Self {
        Scopes(scopes.into_iter().collect())
    }

    /// The scopes as given.
    pub fn list(&self) -> &[String] {
        &self.0
    }

    /// True if one of them covers `scope`, by whole segments; a last `*` covers all that follow.
    pub fn allow(&self, scope: &str) -> bool {
        self.0.iter().any(|held| covers(held, scope))
    }

    /// True for `hub:*`.
    pub fn is_administrator(&self) -> bool {
        self.0.iter().any(|held| held == ADMINISTRATOR)
    }
}

/// Whether `held` covers everything that `asked` covers. `asked` may have a `*` itself.
pub fn covers(held: &str, asked: &str) -> bool {
    let (Some((held_product, held)), Some((product, asked))) =
        (held.split_once(':'), asked.split_once(':'))
    else {
        return false;
    };
    if held_product != product && held_product != "*" {
        return false;
    }
    let (mut held, mut asked) = (held.split('.').peekable(), asked.split('.'));
    while let Some(segment) = held.next() {
        let Some(wanted) = asked.next() else {
            return false;
        };
        if segment == "*" && held.peek().is_none() {
            return true;
        }
        if segment != "*" && segment != wanted {
            return false;
        }
    }
    asked.next().is_none()
}

/// Whether `scope` is `<product>:<action>` with whole segments or `*`.
pub fn is_scope(scope: &str) -> bool {
    let segment = |text: &str| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b);
        text == "*" || (!text.is_empty() && text.bytes().all(plain))
    };
    let Some((product, action)) = scope.split_once(':') else {
        return false;
    };
    scope.len() <= 200 && product != "*" && segment(product) && action.split('.').all(segment)
}

/// The caller of an RPC; in the request's extensions once it was admitted.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Id of the key, `key_…`.
    pub key_id: Arc<str>,
    /// Tenant of the key, or the one named by the call; none = all tenants.
    pub tenant: Option<TenantRef>,
    /// Product that the key speaks for.
    pub product: Option<Arc<str>>,
    /// What it may do.
    pub scopes: Scopes,
    /// The key itself belongs to no tenant.
    pub all_tenants: bool,
    /// The call that it makes. Apart: keys in memory have none, and there may be a million.
    pub origin: Arc<Origin>,
}

/// Where a call comes from, for the audit log, and what it needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Id of the call, `req_…`; empty outside of one.
    pub call_id: Arc<str>,
    /// Address of the caller, if known.
    pub client_ip: Option<IpAddr>,
    /// Another process was called, and passed the call on to this one: it goes no further.
    pub forwarded: bool,
    /// Its place in a trace; none outside of a call, and in one that was passed on.
    pub span: Option<Span>,
    /// Scope that the RPC needs, by its policy; empty if it needs none, and outside of an RPC.
    pub scope: &'static str,
}

/// A call as part of a trace. It is shown as the `traceparent` of what the call causes elsewhere
/// (W3C Trace Context, <https://www.w3.org/TR/trace-context/>).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Of the whole trace, not 0.
    pub trace_id: u128,
    /// Of the call, not 0.
    pub span_id: u64,
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-00", self.trace_id, self.span_id)
    }
}

impl Origin {
    /// Outside of a call.
    pub fn of_nothing() -> Arc<Origin> {
        static NOTHING: LazyLock<Arc<Origin>> = LazyLock::new(Arc::default);
        NOTHING.clone()
    }
}

impl Caller {
    /// A key with no tenant, no product and `hub:*`.
    pub fn is_operator(&self) -> bool {
        self.all_tenants && self.product.is_none() && self.scopes.is_administrator()
    }

    /// Errors with `SCOPE_MISSING` unless the key has the scope.
    pub fn require(&self, scope: &str) -> Result<()> {
        if self.scopes.allow(scope) {
            Ok(())
        } else {
            Err(scope_missing(self, scope))
        }
    }

    /// The tenant, or `TENANT_REQUIRED`.
    pub fn tenant(&self) -> Result<&TenantRef> {
        self.tenant.as_ref().ok_or_else(tenant_required)
    }

    /// The product, or `PRODUCT_REQUIRED`.
    pub fn product(&self) -> Result<&Arc<str>> {
        self.product.as_ref().ok_or_else(product_required)
    }
}

/// What a request presents.
#[derive(Debug, Clone, Copy)]
pub struct Credential<'a> {
    /// All `authorization` headers.
    pub headers: &'a HeaderMap,
    /// Where no key may stand.
    pub query: &'a str,
    /// Address of the peer, if known.
    pub peer: Option<IpAddr>,
}

/// A call that was refused.
#[derive(Debug, Clone)]
pub struct Refusal<'a> {
    /// Id of the call, `req_…`.
    pub call_id: &'a str,
    /// What was called.
    pub policy: &'a MethodPolicy,
    /// Why it was refused.
    pub reason: &'a str,
    /// What the refusal names.
    pub metadata: BTreeMap<&'a str, &'a str>,
}

/// Whose key a call presents that is not admitted.
#[derive(Debug, Clone)]
pub struct Holder {
    /// As it would be, were it admitted.
    pub caller: Caller,
    /// Whether the key works, and from there. Whoever has another one learns nothing of what its
    /// owner does.
    pub works: bool,
}

/// A future of [`Authenticator`].
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Turns a credential into a caller; the domain of keys plugs in here.
pub trait Authenticator: Send + Sync {
    /// The caller, or why not (reasons of `hub.api_keys`).
    fn authenticate<'a>(&'a self, credential: Credential<'a>) -> Answer<'a, Caller>;

    /// The caller as its call would be admitted now, or why not: long streams ask again while they
    /// run. What a stream needs beside the scope of its RPC it looks for itself in the answer.
    fn recheck<'a>(&'a self, caller: &'a Caller) -> Answer<'a, Caller>;

    /// Whose key it is, from memory alone, also of one that works no more: to say what is left of
    /// its limits, and to admit nobody.
    fn remembered(&self, _: Credential<'_>) -> Option<Holder> {
        None
    }

    /// A call was refused, by a caller if one was made out: the domain of keys may keep that, to
    /// explain it later. Returns whose key it is, as [`Authenticator::remembered`] does.
    fn refused(&self, _: Credential<'_>, _: Option<&Caller>, _: Refusal<'_>) -> Option<Holder> {
        None
    }

    /// The same of a call that was admitted, and was refused behind admission.
    fn refused_later(&self, _: &Caller, _: Refusal<'_>) {}

    /// Whether a key of a product works for a tenant and has a scope; `None` if there is no
    /// telling.
    fn has_key<'a>(&'a self, _: &'a TenantRef, _: &'a str, _: &'a str) -> Answer<'a, Option<bool>> {
        Box::pin(async { Ok(None) })
    }
}

/// A key made within a domain's transaction; it works once that transaction is committed.
pub struct IssuedKey {
    /// Id, `key_…`.
    pub key_id: String,
    /// The secret, to be shown once and never logged.
    pub plaintext: String,
    /// Tells of the key; goes into the system log in the same commit.
    pub event: NewEvent,
}

impl std::fmt::Debug for IssuedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuedKey")
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// Makes keys for other domains; the domain of keys plugs in here.
pub trait KeyIssuer: Send + Sync {
    /// The first key of a tenant, with scope [`ADMINISTRATOR`], as part of `tx`.
    fn issue_administrator<'a>(
        &'a self,
        tx: &'a mut Tx,
        tenant: &'a TenantRef,
        created_by: &'a str,
    ) -> Answer<'a, IssuedKey>;
}

/// Decides whether a caller may call a method, and for which tenant.
///
/// Errors: those of the authenticator, `TENANT_NOT_FOUND`, `SUBSCRIPTION_INACTIVE`,
/// `OPERATOR_ONLY`, `SCOPE_MISSING`, `TENANT_REQUIRED`, `PRODUCT_REQUIRED`.
pub async fn admit(
    policy: &MethodPolicy,
    credential: Credential<'_>,
    authenticator: &dyn Authenticator,
    tenancy: &Tenancy,
) -> Result<Caller> {
    let caller = authenticator.authenticate(credential).await?;
    admit_caller(policy, caller, credential.headers, tenancy).await
}

/// The same for a caller whose key another process has looked at.
pub async fn admit_caller(
    policy: &MethodPolicy,
    mut caller: Caller,
    headers: &HeaderMap,
    tenancy: &Tenancy,
) -> Result<Caller> {
    name_tenant(&mut caller, headers, tenancy).await?;
    check_subscription(&caller, tenancy).await?;
    if policy.operator_only && !caller.is_operator() {
        return Err(operator_only(policy.method));
    }
    if !policy.scope.is_empty() {
        caller.require(policy.scope)?;
    }
    if caller.tenant.is_none() && !policy.all_tenants && !policy.operator_only {
        return Err(tenant_required());
    }
    if policy.product_required && caller.product.is_none() {
        return Err(product_required());
    }
    Ok(caller)
}

/// What a call says of its tenant, which may be no tenant's id. Of two names none is chosen: what
/// is in front of the hub may have chosen the other.
///
/// Errors: `FIELD_INVALID`.
pub fn named_tenant(headers: &HeaderMap) -> Result<Option<&str>> {
    let mut all = headers.get_all(TENANT_HEADER).iter();
    let Some(named) = all.next() else {
        return Ok(None);
    };
    if all.any(|other| other != named) {
        return Err(Error::field(TENANT_HEADER, "has two values"));
    }
    Ok(Some(named.to_str().unwrap_or_default()))
}

/// A key of a tenant stays within it: naming another one is as if that one did not exist.
async fn name_tenant(caller: &mut Caller, headers: &HeaderMap, tenancy: &Tenancy) -> Result<()> {
    let Some(named) = named_tenant(headers)? else {
        return Ok(());
    };
    match &caller.tenant {
        Some(own) if own.id() == named => Ok(()),
        Some(_) => Err(crate::tenancy::not_found(named)),
        None => {
            caller.tenant = Some(tenancy.find(named).await?);
            Ok(())
        }
    }
}

/// A product's key works while the tenant's subscription to the product is active; a long stream
/// asks again while it runs. A key without tenant is checked for each tenant that it names.
///
/// Errors: `SUBSCRIPTION_INACTIVE`.
pub async fn check_subscription(caller: &Caller, tenancy: &Tenancy) -> Result<()> {
    match (&caller.tenant, &caller.product) {
        (Some(tenant), Some(product)) => tenancy.require_active(tenant, product).await,
        _ => Ok(()),
    }
}

fn scope_missing(caller: &Caller, scope: &str) -> Error {
    let held = if caller.scopes.list().is_empty() {
        "no scope".to_owned()
    } else {
        caller.scopes.list().join(" ")
    };
    let message = format!(
        "Key {} lacks the scope {scope}; it holds {held}. Add the scope or use another key.",
        caller.key_id
    );
    Error::new(
        Code::PermissionDenied,
        "hub.api_keys",
        "SCOPE_MISSING",
        message,
    )
    .with("keyId", &caller.key_id)
    .with("missingScope", scope)
    .with("heldScopes", held)
}

/// `OPERATOR_ONLY`; `method` is what only operators may do, e.g. `hub.platform.v1.Platform/…`.
pub fn operator_only(method: &str) -> Error {
    let message = format!(
        "{method} is for operators: keys of no tenant and no product with scope {ADMINISTRATOR}. \
         Use an operator key."
    );
    Error::new(Code::PermissionDenied, CORE, "OPERATOR_ONLY", message).with("method", method)
}

fn tenant_required() -> Error {
    let message = format!(
        "The key belongs to no tenant. Name the tenant of the call in the metadata {TENANT_HEADER}."
    );
    Error::new(Code::InvalidArgument, CORE, "TENANT_REQUIRED", message)
        .with("header", TENANT_HEADER)
}

fn product_required() -> Error {
    let message = "The key speaks for no product. Use a product's key for this call.";
    Error::new(Code::InvalidArgument, CORE, "PRODUCT_REQUIRED", message)
}

/// The admitted caller of a request.
pub fn caller<T>(request: &tonic::Request<T>) -> Result<Caller> {
    let found = request.extensions().get::<Caller>().cloned();
    found.ok_or_else(|| Error::internal("a request passed without being admitted"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_match_by_whole_segments() {
        for (held, asked, covered) in [
            ("psa:tickets.read", "psa:tickets.read", true),
            ("psa:tickets.*", "psa:tickets.read", true),
            ("psa:*", "psa:tickets.read", true),
            ("psa:*.read", "psa:tickets.read", true),
            ("psa:*.read", "psa:tickets.write", false),
            ("psa:tick*", "psa:tickets.read", false),
            ("psa:tickets", "psa:tickets.read", false),
            ("psa:tickets.read", "psa:tickets", false),
            ("psa:tickets.read", "psa:*", false),
            ("psa:tickets.*", "psa:tickets", false),
            ("psa:tickets.*", "psa:tickets.notes.read", true),
            ("psa:tickets.read", "psa:tickets.read.own", false),
            ("psa:*", "psa:tickets.notes.read", true),
            ("psa:*.read", "psa:tickets.notes.read", false),
            ("psa:*.notes.*", "psa:tickets.notes.read", true),
            ("psa:tickets.*", "psa:*.read", false),
            ("psa:*", "crm:tickets.read", false),
            ("psa:*", "psa:*", true),
            ("hub:*", "psa:tickets.read", false),
        ] {
            assert_eq!(covers(held, asked), covered, "{held} {asked}");
        }
    }

    /// The rule of the contract, said once more.
    fn covers_by_the_rule(held: &[&str], asked: &[&str]) -> bool {
        match (held, asked) {
            (["*"], [_, ..]) => true,
            ([one, held @ ..], [other, asked @ ..]) => {
                (*one == "*" || one == other) && covers_by_the_rule(held, asked)
            }
            _ => held.is_empty() && asked.is_empty(),
        }
    }

    /// Every action of at most so many of these segments.
    fn actions(segments: &[&'static str], most: usize) -> Vec<Vec<&'static str>> {
        let mut all: Vec<Vec<&str>> = segments.iter().map(|one| vec![*one]).collect();
        let mut longest = all.clone();
        for _ in 1..most {
            let longer = longest.iter().flat_map(|action| {
                let one_more = |last: &&'static str| [&action[..], &[*last]].concat();
                segments.iter().map(one_more)
            });
            longest = longer.collect();
            all.extend(longest.iter().cloned());
        }
        all
    }

    #[test]
    fn whatever_is_held_and_asked_is_matched_by_the_rule_and_gives_nothing_beyond() {
        let scope = |action: &[&str]| format!("psa:{}", action.join("."));
        let scopes = actions(&["a", "b", "*"], 3);
        let concrete = actions(&["a", "b", "c"], 4);
        let concrete: Vec<String> = concrete.iter().map(|action| scope(action)).collect();
        for held in &scopes {
            for asked in &scopes {
                let (all, some) = (scope(held), scope(asked));
                let covered = covers(&all, &some);
                assert_eq!(covered, covers_by_the_rule(held, asked), "{all} {some}");
                // Who has a scope reaches at least what each scope that it covers reaches.
                let reaches = |action: &&String| covers(&some, action) && !covers(&all, action);
                let beyond = concrete.iter().find(reaches).filter(|_| covered);
                assert_eq!(beyond, None, "{all} {some}");
            }
        }
    }

    #[test]
    fn a_scope_has_a_product_and_whole_segments() {
        for good in ["psa:tickets.read", "psa:*", "hub:events.*", "cmdb:a-b.c_d"] {
            assert!(is_scope(good), "{good}");
        }
        for bad in [
            "", "psa", "psa:", ":read", "*:read", "psa:ti*", "psa:a..b", "PSA:read",
        ] {
            assert!(!is_scope(bad), "{bad}");
        }
    }
}
