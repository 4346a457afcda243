//! ExplainAccess: why a request with a key was, or would be, refused.
//!
//! The checks come in the order in which a request is decided, so that the first one that fails is
//! the reason of the refusal. All are looked at. A call that was refused is explained by what was
//! stored of it (`then`) and by the present state (`now`). Nothing is changed and nothing counted.

mod codes;
mod fixes;
mod rights;
mod subject;

use std::sync::Arc;

use hub_core::auth::Caller;
use hub_core::clock::Micros;
use hub_core::error::{Error, Result};
use hub_core::explain::{Checklist, Conclusion, Finding, Progress, holds};
use hub_core::journal::TenantRef;
use hub_core::products::Products;
use hub_core::tenancy;
use hub_core::window;
use hub_proto::hub::explain::v1::{CheckResult, Explanation, Verdict};

use crate::decision::{self, Asked, ORDER, Snapshot, Step};
use crate::denials::Denial;
use crate::key::{Key, Record};
use crate::keys::Keys;
use crate::limits::Left;
use codes::KNOWN;
pub(crate) use rights::lacking;
use subject::{Form, Subject};
pub(crate) use subject::{Request, Whose};

/// The hub itself as a product: its own API decides a little differently.
const HUB: &str = "hub";

/// A question about a key that is known.
struct Case<'a> {
    keys: &'a Arc<Keys>,
    subject: &'a Subject,
    key: &'a Key,
    /// That of the key, or the one that the call named.
    tenant: Option<TenantRef>,
    record: Record,
    products: Arc<Products>,
    /// What the tenant may use, if there is one.
    usable: Option<Arc<tenancy::Snapshot>>,
    now: Micros,
}

/// What is found out by one check.
struct Look {
    now: CheckResult,
    detail: String,
    metadata: Vec<(&'static str, String)>,
}

impl Look {
    fn passed() -> Look {
        Look {
            now: CheckResult::Pass,
            detail: String::new(),
            metadata: Vec::new(),
        }
    }

    fn failed(error: &Error) -> Look {
        Look {
            now: CheckResult::Fail,
            detail: error.message().to_owned(),
            metadata: error.metadata().to_vec(),
        }
    }
}

/// Whether a refusal for this reason can be explained.
pub(crate) fn explains(reason: &str) -> bool {
    codes::of_reason(reason).is_some()
}

impl Keys {
    /// The answer. Errors: `KEY_NOT_FOUND`, `CALL_NOT_FOUND`, `SCOPE_MISSING`,
    /// `PRODUCT_NOT_FOUND`, `FIELD_INVALID`.
    pub(crate) async fn explain(
        self: &Arc<Self>,
        caller: &Caller,
        request: Request,
    ) -> Result<Explanation> {
        let now = self.core.clock.now();
        let products = self.core.tenancy.products().await?;
        if !request.product.is_empty() {
            products.require(&request.product)?;
        }
        let subject = self.subject(caller, request).await?;
        let mut checks = Checklist::new(&self.core.public_url, &caller.scopes);
        add_form(&mut checks, &subject);
        let Some(key) = &subject.key else {
            add_unknown(&mut checks);
            // Of no tenant it would be a key for all.
            let tenant = caller.tenant.as_ref();
            let made = tenant.and_then(|_| fixes::make_one(&subject.asked, &checks));
            return Ok(conclude(checks, &subject, made.into_iter().collect(), now));
        };
        let record = Record::read(key)?;
        let tenant = self.tenant_of_subject(caller, &subject, key).await?;
        let case = Case {
            keys: self,
            subject: &subject,
            key,
            usable: match &tenant {
                Some(tenant) => Some(self.core.tenancy.current(tenant).await?.1),
                None => None,
            },
            tenant,
            products,
            record,
            now,
        };
        let left = case.left().await;
        let mut fixes = Vec::new();
        for (step, code) in ORDER.iter().zip(codes::STEPS) {
            if *step == Step::Scope {
                case.add_operator(&mut checks, &mut fixes);
            }
            let look = case.look(*step);
            let failed = look.now == CheckResult::Fail;
            checks.add(case.finding(code, codes::title(code), look));
            if failed {
                fixes.extend(case.fixes(*step, &checks));
            }
        }
        case.add_rate(&mut checks, left.as_ref(), &mut fixes);
        case.add_rights(&mut checks, &mut fixes);
        case.add_now(&mut checks, left.as_ref());
        Ok(conclude(checks, &subject, fixes, now))
    }
}

impl Case<'_> {
    fn look(&self, step: Step) -> Look {
        let asked = &self.subject.asked;
        let unknown = |detail: &str| Look {
            now: CheckResult::Unknown,
            detail: detail.to_owned(),
            metadata: Vec::new(),
        };
        let of_product = matches!(
            step,
            Step::Subscription | Step::Product | Step::BaseUrl | Step::Scope
        );
        if of_product && asked.product.is_empty() {
            return unknown("Name the product to know.");
        }
        match step {
            Step::Subscription if self.names_no_tenant() => {
                return unknown(
                    "It is not known of which tenant it was: name one in x-hub-tenant.",
                );
            }
            Step::Address if asked.client.is_none() && !self.key.cidrs.is_empty() => {
                return unknown("Name the address of the client, client_ip, to know.");
            }
            Step::BaseUrl if asked.host.is_empty() => {
                return unknown("Name the host that received the request to know.");
            }
            Step::Scope if self.subject.action.is_empty() => {
                return unknown("Name the action to know.");
            }
            _ => {}
        }
        let revocation = self.key.revocation.as_ref();
        let revocation = revocation.filter(|_| step == Step::Revoked);
        match (self.check(step, asked), revocation) {
            (Ok(()), _) => Look::passed(),
            (Err(error), None) => Look::failed(&error),
            (Err(error), Some(revocation)) => {
                let mut look = Look::failed(&error);
                let (by, why) = (revocation.by.clone(), revocation.reason.clone());
                look.metadata.extend([("revokedBy", by), ("reason", why)]);
                look
            }
        }
    }

    /// A stream of all tenants was refused for one of them.
    fn names_no_tenant(&self) -> bool {
        let denial = self.subject.denial.as_ref();
        let inactive = |denial: &Denial| denial.reason == "SUBSCRIPTION_INACTIVE";
        self.tenant.is_none() && denial.is_some_and(inactive)
    }

    /// As it is decided: by `decision.rs`, or for the hub's own API by admission.
    fn check(&self, step: Step, asked: &Asked) -> Result<()> {
        let products = &*self.products;
        let product = products.require(&asked.product);
        let is_active = |slug: &str| {
            let tenant = self.usable.as_ref();
            let number = products.number(slug);
            tenant.is_none_or(|tenant| number.is_some_and(|number| tenant.is_active(number)))
        };
        if asked.product == HUB {
            match (step, self.key.product.as_deref()) {
                (Step::Product, _) => return Ok(()),
                (Step::Subscription, Some(own)) if !is_active(own) => {
                    return Err(tenancy::inactive(own));
                }
                (Step::Subscription, _) => return Ok(()),
                _ => {}
            }
        }
        let product = match (product, products.iter().next()) {
            (Ok(product), _) | (Err(_), Some(product)) => product,
            (Err(error), None) => return Err(error),
        };
        let snapshot = Snapshot {
            record: &self.record,
            product,
            products,
            is_active: is_active(&asked.product),
            now: self.now,
        };
        decision::check(step, snapshot, asked)
    }

    /// What was found, then and now. What is told of then is what the refusal said.
    fn finding(&self, code: &'static str, title: &str, look: Look) -> Finding {
        let title = format!("{title} ({})", self.key.key_id);
        let needs: &[&'static str] = match code {
            codes::ACTION => &[KNOWN, codes::PRODUCT],
            _ => &[KNOWN],
        };
        let then = self.then(code);
        let mut finding = match then {
            Some(_) => Finding::recorded(code, title),
            None => Finding::current(code, title),
        };
        finding = finding.then(then.unwrap_or(look.now)).now(look.now);
        let detail = match (then, look.now) {
            (Some(CheckResult::Fail), CheckResult::Pass) => "It was so then, and is not now.",
            _ => look.detail.as_str(),
        };
        finding = finding.needs(needs).detail(detail);
        if code == codes::SUBSCRIBED && self.key.tenant.is_none() {
            finding = finding.saw_resource("tenant", self.tenant_id());
        }
        for (name, value) in look.metadata {
            finding = finding.saw_text(name, value);
        }
        finding
    }

    /// Empty if it is about no tenant.
    fn tenant_id(&self) -> &str {
        self.tenant.as_ref().map_or("", TenantRef::id)
    }

    /// What the recorded refusal says of a check: those before passed, those after were not
    /// reached.
    fn then(&self, code: &'static str) -> Option<CheckResult> {
        let denial = self.subject.denial.as_ref()?;
        let refused = codes::of_reason(&denial.reason)?;
        let place = |code: &str| codes::DECIDED.iter().position(|known| *known == code);
        Some(match place(code).cmp(&place(refused)) {
            std::cmp::Ordering::Less => CheckResult::Pass,
            std::cmp::Ordering::Equal => CheckResult::Fail,
            std::cmp::Ordering::Greater => CheckResult::Unknown,
        })
    }

    /// The hub's own API refused it because of a check, and not in the last minute: what it counted
    /// then does not count any more.
    fn is_over(&self, code: &str) -> bool {
        let denial = self.subject.denial.as_ref();
        let refused = |denial: &&Denial| codes::of_reason(&denial.reason) == Some(code);
        let denial = denial.filter(refused);
        self.subject.asked.product == HUB
            && denial.is_some_and(|denial| self.now - denial.time > window::LENGTH)
    }

    async fn left(&self) -> Option<(Left, bool)> {
        let limits = self.keys.limits(&self.record, self.tenant.as_ref()).await;
        let taken = self.keys.take(&limits, self.subject.cost(), true).await;
        taken.left.map(|left| (left, taken.denied.is_none()))
    }

    fn add_rate(
        &self,
        checks: &mut Checklist,
        left: Option<&(Left, bool)>,
        fixes: &mut Vec<hub_proto::hub::explain::v1::Fix>,
    ) {
        let look = match left {
            _ if self.is_over(codes::RATE) => Look {
                now: CheckResult::Pass,
                detail: "The minute in which it was refused is over.".to_owned(),
                metadata: Vec::new(),
            },
            _ if self.subject.asked.product == HUB => Look {
                now: CheckResult::Unknown,
                detail: "The limit of the hub's own API is told by x-ratelimit-remaining in every \
                         answer."
                    .to_owned(),
                metadata: Vec::new(),
            },
            None => Look {
                now: CheckResult::Pass,
                detail: "The key has no limit, and the call names no tenant.".to_owned(),
                metadata: Vec::new(),
            },
            Some((left, fits)) => Look {
                now: holds(*fits),
                detail: match (left.remaining, left.limit, self.subject.cost()) {
                    (remaining, limit, 0 | 1) => {
                        format!("{remaining} of {limit} requests are left.")
                    }
                    (remaining, limit, cost) => format!(
                        "{remaining} of {limit} requests are left, and it counts as {cost}."
                    ),
                },
                metadata: vec![
                    ("limit", left.limit.to_string()),
                    ("remaining", left.remaining.to_string()),
                    (
                        "limited_key",
                        left.key_id.as_deref().unwrap_or_default().to_owned(),
                    ),
                ],
            },
        };
        let failed = look.now == CheckResult::Fail;
        let finding = self.finding(codes::RATE, codes::title(codes::RATE), look);
        let at = left.map_or(0, |(left, _)| left.reset_at);
        checks.add(finding.saw_time("reset_at", at));
        if let Some((left, _)) = left.filter(|_| failed) {
            fixes.extend(self.rate_fixes(left, checks));
        }
    }

    /// Whether this process knows all changes, and what it would decide now.
    fn add_now(&self, checks: &mut Checklist, left: Option<&(Left, bool)>) {
        let ttl = self.keys.core.limits.key_cache_ttl;
        let is_old = |at: Micros| self.now - at >= hub_core::clock::micros(ttl);
        let settled = is_old(self.key.update_time.unwrap_or(self.key.create_time));
        let detail = match settled {
            // Not up to which epoch: that tells how often the keys of others change.
            true => "All verifiers know the key as it is.".to_owned(),
            false => format!(
                "The key was changed less than {} s ago: a verifier may not know it yet.",
                ttl.as_secs()
            ),
        };
        let result = match settled {
            true => CheckResult::Pass,
            false => CheckResult::Unknown,
        };
        let title = codes::title(codes::PROPAGATED);
        let finding = Finding::current(codes::PROPAGATED, title).both(result);
        checks.add(finding.needs(&[KNOWN]).detail(detail));
        let fits = left.is_none_or(|(_, fits)| *fits) || self.subject.asked.product == HUB;
        let looks = ORDER.map(|step| self.look(step).now);
        let beyond = self.beyond();
        let fails = |looks: &[CheckResult]| looks.contains(&CheckResult::Fail);
        let result = match fits {
            false => CheckResult::Fail,
            true if fails(&looks) || fails(&beyond) => CheckResult::Fail,
            true if beyond.contains(&CheckResult::Unknown) || self.names_no_tenant() => {
                CheckResult::Unknown
            }
            _ if self.subject.asked.product.is_empty() || self.subject.action.is_empty() => {
                CheckResult::Unknown
            }
            _ => CheckResult::Pass,
        };
        let title = codes::title(codes::WOULD_PASS_NOW);
        let finding = Finding::current(codes::WOULD_PASS_NOW, title).both(result);
        checks.add(finding.needs(&[KNOWN]));
    }
}

/// Whether a key was presented, is whole, and is known.
fn add_form(checks: &mut Checklist, subject: &Subject) {
    let finding = |code: &'static str, result, detail: &str| {
        let finding = match subject.denial {
            Some(_) => Finding::recorded(code, codes::title(code)),
            None => Finding::current(code, codes::title(code)),
        };
        finding.both(result).detail(detail)
    };
    let (form, known) = (subject.form, subject.key.is_some());
    let detail = match form {
        Form::Missing => "The key is empty. Send `authorization: Bearer tos_…`.",
        _ => "",
    };
    checks.add(finding(
        codes::PRESENTED,
        holds(form != Form::Missing),
        detail,
    ));
    let detail = match form {
        Form::Malformed => "Length, alphabet or checksum is wrong: it was not copied whole.",
        _ => "",
    };
    let whole = finding(codes::WELL_FORMED, holds(form == Form::Whole), detail);
    checks.add(whole.needs(&[codes::PRESENTED]));
    let detail = match known {
        true => "",
        false => "There is no such key. Check which hub and which tenant it was made for.",
    };
    checks.add(finding(KNOWN, holds(known), detail).needs(&[codes::WELL_FORMED]));
}

/// Of a key that is not known nothing more is told.
fn add_unknown(checks: &mut Checklist) {
    let rest = codes::DECIDED.into_iter();
    for code in rest.chain([codes::PROPAGATED, codes::WOULD_PASS_NOW]) {
        let finding = Finding::current(code, codes::title(code)).needs(&[KNOWN]);
        checks.add(finding.then(CheckResult::Unknown));
    }
}

fn conclude(
    checks: Checklist,
    subject: &Subject,
    mut fixes: Vec<hub_proto::hub::explain::v1::Fix>,
    now: Micros,
) -> Explanation {
    let cause = checks.primary_cause().cloned();
    let complete = !subject.asked.product.is_empty() && !subject.action.is_empty();
    let progress = match (&cause, &subject.denial) {
        (None, None) if complete => Progress::Done,
        _ => Progress::Standing,
    };
    let verdict = checks.verdict(progress);
    if let Some(cause) = &cause {
        let of_form = fixes::of_form(&cause.code);
        fixes.splice(0..0, of_form);
    }
    if verdict == Verdict::FixedSince {
        fixes.insert(0, fixes::again());
    }
    // Several checks may call for the same.
    fixes.dedup();
    let scope = &subject.asked.scope;
    let summary = match (&cause, verdict) {
        (_, Verdict::FixedSince) => {
            "It was refused then; the same request would be allowed now.".to_owned()
        }
        (Some(cause), _) if cause.detail.is_empty() => format!("{} does not hold.", cause.title),
        (Some(cause), _) => cause.detail.clone(),
        (None, Verdict::Working) => format!("A request that needs {scope} would be allowed."),
        (None, _) => "Nothing stands in the way that is known; name product and action.".to_owned(),
    };
    let denial = subject.denial.as_ref();
    checks.answer(Conclusion {
        summary,
        verdict,
        fixes,
        as_of: denial.map_or(now, |denial| denial.time),
        expect_by: None,
        now,
    })
}

/// `CALL_NOT_FOUND`.
fn call_not_found(call_id: &str) -> Error {
    crate::error::call_not_found(call_id)
}
