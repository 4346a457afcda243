//! What a call of the hub's own API needs beyond the scope of its RPC: to be an operator's, or to
//! give no right that its key lacks.

use hub_core::auth::{self, ADMINISTRATOR, covers, is_scope};
use hub_core::error::Error;
use hub_core::explain::Checklist;
use hub_proto::hub::explain::v1::{CheckResult, Fix, FixActor};
use hub_proto::policy::method_policy;

use super::{Case, HUB, Look, codes};
use crate::error;

/// Before the slug of a product for which a key does not speak.
const PRODUCT: &str = "product ";

/// The rights that a key lacks, as they are kept.
enum Lacking<'a> {
    Scopes(Vec<&'a str>),
    Product(&'a str),
    /// What is told to people only, or was too long to be kept whole.
    Other(&'a str),
}

/// What is kept of a refusal that named this.
pub(crate) fn lacking<'a>(reason: &str, named: impl Fn(&str) -> Option<&'a str>) -> String {
    match reason {
        "OPERATOR_ONLY" => named("method").unwrap_or_default().to_owned(),
        "SCOPE_ESCALATION" => match (named("product"), named("missingScopes")) {
            (Some(product), _) => format!("{PRODUCT}{product}"),
            (None, Some(scopes)) => scopes.to_owned(),
            (None, None) => named("scope").unwrap_or_default().to_owned(),
        },
        _ => String::new(),
    }
}

impl<'a> Lacking<'a> {
    fn read(text: &'a str) -> Self {
        if let Some(product) = text.strip_prefix(PRODUCT) {
            return Lacking::Product(product);
        }
        let scopes: Vec<&str> = text.split(' ').collect();
        match scopes.iter().all(|scope| is_scope(scope)) {
            true => Lacking::Scopes(scopes),
            false => Lacking::Other(text),
        }
    }
}

impl Case<'_> {
    pub(super) fn add_operator(&self, checks: &mut Checklist, fixes: &mut Vec<Fix>) {
        let look = self.operator();
        if look.now == CheckResult::Fail {
            let title = format!(
                "Let an operator of the hub call {}",
                self.operators_method()
            );
            fixes.push(Checklist::advice(FixActor::Operator, title));
        }
        checks.add(self.finding(codes::OPERATOR, codes::title(codes::OPERATOR), look));
    }

    pub(super) fn add_rights(&self, checks: &mut Checklist, fixes: &mut Vec<Fix>) {
        let look = self.rights();
        if look.now != CheckResult::Pass {
            fixes.push(self.have_rights(checks));
        }
        checks.add(self.finding(codes::RIGHTS, codes::title(codes::RIGHTS), look));
    }

    /// Whether both hold now.
    pub(super) fn beyond(&self) -> [CheckResult; 2] {
        [self.operator().now, self.rights().now]
    }

    /// The method that is called, if it is for operators only; else empty.
    fn operators_method(&self) -> &str {
        match &self.subject.denial {
            Some(denial) if denial.reason == "OPERATOR_ONLY" => return &denial.lacking,
            _ => {}
        }
        let path = self.subject.asked.path.trim_start_matches('/');
        let policy = method_policy(&format!("/{path}"));
        let policy = policy.filter(|policy| policy.operator_only);
        policy.map_or("", |policy| policy.method)
    }

    fn operator(&self) -> Look {
        match self.operators_method() {
            "" => Look::passed(),
            _ if self.subject.asked.product != HUB => Look::passed(),
            _ if self.record.caller.is_operator() => Look::passed(),
            method => Look::failed(&auth::operator_only(method)),
        }
    }

    /// Which rights a call gives is known of calls only that were refused for it.
    fn lacked(&self) -> Option<Lacking<'_>> {
        let denial = self.subject.denial.as_ref();
        let denial = denial.filter(|denial| denial.reason == "SCOPE_ESCALATION");
        denial.map(|denial| Lacking::read(&denial.lacking))
    }

    /// Those of the lacking scopes that the key lacks now too.
    fn missing<'a>(&self, scopes: &[&'a str]) -> Vec<&'a str> {
        let held = &self.record.caller.scopes;
        let has = |scope: &str| {
            held.is_administrator() || held.list().iter().any(|held| covers(held, scope))
        };
        scopes.iter().copied().filter(|scope| !has(scope)).collect()
    }

    fn rights(&self) -> Look {
        let caller = &self.record.caller;
        let is_administrator = caller.scopes.is_administrator();
        let fails = |error: Option<Error>| match error {
            Some(error) => Look::failed(&error),
            None => Look::passed(),
        };
        match self.lacked() {
            None => Look::passed(),
            Some(Lacking::Scopes(scopes)) => {
                let missing = self.missing(&scopes);
                fails((!missing.is_empty()).then(|| error::scopes_escalation(&missing)))
            }
            Some(Lacking::Product(product)) => {
                let speaks = is_administrator || caller.product.as_deref() == Some(product);
                fails((!speaks).then(|| error::product_escalation(product)))
            }
            Some(Lacking::Other(right)) => {
                let is_free = self.key.expire_time.is_none() && self.key.cidrs.is_empty();
                match caller.is_operator() && is_free {
                    true => Look::passed(),
                    // It takes the whole call to know.
                    false => Look {
                        now: CheckResult::Unknown,
                        ..Look::failed(&error::escalation(right))
                    },
                }
            }
        }
    }

    /// The scopes that are missing, or another key.
    fn have_rights(&self, checks: &Checklist) -> Fix {
        let missing = match self.lacked() {
            Some(Lacking::Scopes(scopes)) => self.missing(&scopes),
            _ => Vec::new(),
        };
        // Nobody is advised to make one key more an administrator's.
        if missing.is_empty() || missing.contains(&ADMINISTRATOR) {
            let title = "Make the call with a key that has itself what it gives or ends, such as \
                         an administrator's";
            return Checklist::advice(FixActor::Caller, title.to_owned());
        }
        let what = format!("Give {} to", missing.join(" "));
        let mut scopes = self.key.scopes.clone();
        scopes.extend(missing.into_iter().map(str::to_owned));
        self.with(&what, "scopes", scopes, checks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(reason: &str, named: &[(&str, &'static str)]) -> String {
        let find = |key: &str| {
            let mut named = named.iter();
            named
                .find(|(name, _)| *name == key)
                .map(|(_, value)| *value)
        };
        lacking(reason, find)
    }

    #[test]
    fn what_is_kept_of_a_refusal_is_read_as_the_rights_that_it_named() {
        let escalation = |named: &[(&str, &'static str)]| kept("SCOPE_ESCALATION", named);
        let scopes = escalation(&[("scope", "psa:a"), ("missingScopes", "psa:a psa:b.*")]);
        assert!(matches!(
            Lacking::read(&scopes),
            Lacking::Scopes(scopes) if scopes == ["psa:a", "psa:b.*"]
        ));
        let product = escalation(&[("scope", "psa:*"), ("product", "psa")]);
        assert!(matches!(Lacking::read(&product), Lacking::Product("psa")));
        let cut = escalation(&[("missingScopes", "psa:a psa:b…")]);
        assert!(
            matches!(Lacking::read(&cut), Lacking::Other(_)),
            "a part is no scope"
        );
        let told = escalation(&[("scope", "keys of all tenants")]);
        assert!(matches!(
            Lacking::read(&told),
            Lacking::Other("keys of all tenants")
        ));
        assert_eq!(
            kept("OPERATOR_ONLY", &[("method", "a/B of a tenant")]),
            "a/B of a tenant"
        );
        assert_eq!(kept("SCOPE_MISSING", &[("missingScope", "psa:a")]), "");
    }
}
