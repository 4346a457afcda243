//! Answers to "why": what the Explain RPCs of all domains share.
//!
//! A domain looks at its checks in their fixed order and adds a [`Finding`] for each to a
//! [`Checklist`]. What follows from the list is decided here, so that every domain says the same:
//! - A check is SKIPPED if one that it needs failed or was skipped itself.
//! - The primary cause is the earliest check that failed.
//! - What the caller may not see is REDACTED, and nothing else tells of it.
//! - The verdict is [`Checklist::verdict`].
//!
//! Each code has a page in `docs/checks`, which the server has at `/checks/<CODE>`.

use hub_proto::hub::explain::v1::evidence::Value as Seen;
use hub_proto::hub::explain::v1::{
    Check, CheckBasis, CheckResult, Evidence, Explanation, Fix, FixActor, Verdict,
};
use hub_proto::policy::method_policy;
use serde_json::Value as Json;

use crate::auth::{Scopes, TENANT_HEADER};
use crate::clock::{Micros, timestamp};

/// Longest text of a finding or fix, in bytes; the rest is cut.
const TEXT_BYTES_MAX: usize = 1024;

/// What a domain found out about one statement.
#[derive(Debug, Clone)]
pub struct Finding {
    check: Check,
    scope: Option<&'static str>,
}

impl Finding {
    /// About a statement, e.g. `Integration psa -> portal is enabled`.
    fn new(code: &'static str, basis: CheckBasis, title: impl Into<String>) -> Finding {
        let check = Check {
            code: code.to_owned(),
            title: cut(title.into()),
            basis: basis.into(),
            ..Check::default()
        };
        Finding { check, scope: None }
    }

    /// Known from what was stored when it happened.
    pub fn recorded(code: &'static str, title: impl Into<String>) -> Finding {
        Finding::new(code, CheckBasis::Recorded, title)
    }

    /// Known from the present state.
    pub fn current(code: &'static str, title: impl Into<String>) -> Finding {
        Finding::new(code, CheckBasis::Current, title)
    }

    /// Known from what a product told.
    pub fn reported(code: &'static str, title: impl Into<String>) -> Finding {
        Finding::new(code, CheckBasis::Reported, title)
    }

    /// Whether the statement held at the moment that is explained.
    #[must_use]
    pub fn then(mut self, result: CheckResult) -> Finding {
        self.check.result = result.into();
        self
    }

    /// Whether it holds now.
    #[must_use]
    pub fn now(mut self, result: CheckResult) -> Finding {
        self.check.result_now = result.into();
        self
    }

    /// The present state is all that there is: it stands for both.
    #[must_use]
    pub fn both(self, result: CheckResult) -> Finding {
        self.then(result).now(result)
    }

    /// One sentence with the values seen.
    #[must_use]
    pub fn detail(mut self, text: impl Into<String>) -> Finding {
        self.check.detail = cut(text.into());
        self
    }

    /// Codes of checks before this one without which it says nothing.
    #[must_use]
    pub fn needs(mut self, codes: &[&'static str]) -> Finding {
        self.check.needs = codes.iter().map(|code| (*code).to_owned()).collect();
        self
    }

    /// Scope without which the caller does not see it.
    #[must_use]
    pub fn visible_with(mut self, scope: &'static str) -> Finding {
        self.scope = Some(scope);
        self
    }

    /// A text that was seen; an empty one was not.
    #[must_use]
    pub fn saw_text(self, key: &str, value: impl Into<String>) -> Finding {
        match value.into() {
            empty if empty.is_empty() => self,
            text => self.saw(key, Seen::Text(cut(text))),
        }
    }

    /// A number that was seen.
    #[must_use]
    pub fn saw_number(self, key: &str, value: u64) -> Finding {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.saw(key, Seen::Number(value))
    }

    /// A time that was seen; 0 was not.
    #[must_use]
    pub fn saw_time(self, key: &str, value: Micros) -> Finding {
        match value {
            0 => self,
            at => self.saw(key, Seen::Time(timestamp(at))),
        }
    }

    /// A length of time that was seen.
    #[must_use]
    pub fn saw_span(self, key: &str, value: Micros) -> Finding {
        let span = prost_types::Duration {
            seconds: value.div_euclid(1_000_000),
            nanos: i32::try_from(value.rem_euclid(1_000_000) * 1000).unwrap_or(0),
        };
        self.saw(key, Seen::Span(span))
    }

    /// The id of something that was seen; an empty one was not.
    #[must_use]
    pub fn saw_resource(self, key: &str, id: impl Into<String>) -> Finding {
        match id.into() {
            empty if empty.is_empty() => self,
            id => self.saw(key, Seen::Resource(id)),
        }
    }

    fn saw(mut self, key: &str, value: Seen) -> Finding {
        self.check.evidence.push(Evidence {
            key: key.to_owned(),
            value: Some(value),
        });
        self
    }
}

/// PASS if a statement holds, else FAIL.
pub fn holds(statement: bool) -> CheckResult {
    match statement {
        true => CheckResult::Pass,
        false => CheckResult::Fail,
    }
}

/// How far what is explained has come, as its own state says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It did happen.
    Done,
    /// It goes on by itself, unless a check that fails now stops it.
    UnderWay,
    /// Nothing goes on.
    Standing,
}

/// The checks of an answer, in their order.
#[derive(Debug, Clone)]
pub struct Checklist {
    public_url: String,
    scopes: Scopes,
    checks: Vec<Check>,
    /// Of each, whether it is no obstacle any more, although it failed.
    overcome: Vec<bool>,
    /// How many of them are those of the list that this one branched from.
    inherited: usize,
}

/// What an answer says beside its checks.
#[derive(Debug, Clone)]
pub struct Conclusion {
    /// The answer in one sentence.
    pub summary: String,
    /// The answer in one word.
    pub verdict: Verdict,
    /// What to do, best first.
    pub fixes: Vec<Fix>,
    /// The moment that is explained.
    pub as_of: Micros,
    /// When to ask again, while it goes on.
    pub expect_by: Option<Micros>,
    /// The time.
    pub now: Micros,
}

impl Checklist {
    /// Empty, for a caller with these rights. The pages of checks are below `public_url`.
    pub fn new(public_url: &str, scopes: &Scopes) -> Checklist {
        Checklist {
            public_url: public_url.to_owned(),
            scopes: scopes.clone(),
            checks: Vec::new(),
            overcome: Vec::new(),
            inherited: 0,
        }
    }

    /// Adds the next check, and returns its results then and now as the caller sees them.
    pub fn add(&mut self, finding: Finding) -> (CheckResult, CheckResult) {
        let Finding { mut check, scope } = finding;
        check.doc_url = format!("{}/checks/{}", self.public_url, check.code);
        let hidden = scope.filter(|scope| !self.scopes.allow(scope));
        let missing = check.needs.iter().find(|code| !self.may_go_on(code));
        if let Some(scope) = hidden {
            check.result = CheckResult::Redacted.into();
            check.result_now = CheckResult::Redacted.into();
            check.detail = format!("Only a key with the scope {scope} sees it.");
            check.evidence.clear();
        } else if let Some(missing) = missing {
            check.result = CheckResult::Skipped.into();
            if check.detail.is_empty() {
                check.detail = format!("Not looked at: {missing} did not hold.");
            }
        }
        let results = (check.result(), check.result_now());
        self.checks.push(check);
        self.overcome.push(false);
        results
    }

    /// Whether what needs this check can be looked at.
    fn may_go_on(&self, code: &str) -> bool {
        let needed = self.checks.iter().rev().find(|check| check.code == code);
        debug_assert!(needed.is_some(), "{code} is needed and was not looked at");
        needed
            .is_none_or(|check| !matches!(check.result(), CheckResult::Fail | CheckResult::Skipped))
    }

    /// A list that goes on from this one, e.g. for one of several destinations.
    pub fn branch(&self) -> Checklist {
        Checklist {
            inherited: self.checks.len(),
            ..self.clone()
        }
    }

    /// Adds the checks that a branch of this list has beyond it.
    pub fn append(&mut self, branch: Checklist) {
        let own = branch.checks.into_iter().skip(branch.inherited);
        self.checks.extend(own);
        let own = branch.overcome.into_iter().skip(branch.inherited);
        self.overcome.extend(own);
    }

    /// It was let pass later, by a call, whatever was recorded of the checks so far.
    pub fn overcome(&mut self) {
        let checks = self.checks.iter().zip(&mut self.overcome);
        for (check, overcome) in checks {
            *overcome |= check.basis() == CheckBasis::Recorded;
        }
    }

    /// Takes over what a branch of this list has overcome of what they have in common.
    pub fn overcome_as(&mut self, branch: &Checklist) {
        let common = self.overcome.iter_mut().zip(&branch.overcome);
        common.for_each(|(own, of_branch)| *own = *of_branch);
    }

    /// How many checks there are.
    pub fn count(&self) -> usize {
        self.checks.len()
    }

    /// Whether the check at this place may be in the way; false if it was overcome.
    pub fn stands(&self, place: usize) -> bool {
        self.overcome.get(place).is_some_and(|overcome| !overcome)
    }

    /// The earliest check that failed and was not overcome; its needs did not.
    pub fn primary_cause(&self) -> Option<&Check> {
        self.standing()
            .find(|check| check.result() == CheckResult::Fail)
    }

    /// Those that may be in the way.
    fn standing(&self) -> impl Iterator<Item = &Check> {
        let checks = self.checks.iter().zip(&self.overcome);
        checks.filter_map(|(check, overcome)| (!overcome).then_some(check))
    }

    /// The answer in one word:
    /// - WORKING: it is done, whatever a check says.
    /// - BLOCKED: a check fails now. One that held then counts only where another one failed, so
    ///   that it has to be tried again: what was decided stays decided.
    /// - IN_PROGRESS: it goes on.
    /// - FIXED_SINCE: a check failed then, and would pass now.
    /// - INCONCLUSIVE: none of these.
    pub fn verdict(&self, progress: Progress) -> Verdict {
        let failed_then = self.primary_cause().is_some();
        let stands_in_the_way = |check: &Check| match (check.result(), check.result_now()) {
            (CheckResult::Fail, now) => now != CheckResult::Pass,
            (CheckResult::Pass, CheckResult::Fail) => failed_then,
            (_, now) => now == CheckResult::Fail,
        };
        if progress == Progress::Done {
            Verdict::Working
        } else if self.standing().any(stands_in_the_way) {
            Verdict::Blocked
        } else if progress == Progress::UnderWay {
            Verdict::InProgress
        } else if failed_then {
            Verdict::FixedSince
        } else {
            Verdict::Inconclusive
        }
    }

    /// The whole answer.
    pub fn answer(self, conclusion: Conclusion) -> Explanation {
        let primary_cause = self.primary_cause().map(|check| check.code.clone());
        Explanation {
            verdict: conclusion.verdict.into(),
            summary: cut(conclusion.summary),
            primary_cause: primary_cause.unwrap_or_default(),
            checks: self.checks,
            fixes: conclusion.fixes,
            as_of: Some(timestamp(conclusion.as_of)),
            evaluate_time: Some(timestamp(conclusion.now)),
            expect_by: conclusion.expect_by.map(timestamp),
        }
    }

    /// A fix that a call makes: `method` as its policy names it, e.g.
    /// `hub.platform.v1.Platform/SetIntegration`, and its complete request.
    pub fn fix(&self, actor: FixActor, title: String, method: &'static str, request: Json) -> Fix {
        let policy = method_policy(&format!("/{method}"));
        debug_assert!(policy.is_some(), "there is no method {method}");
        Fix {
            title: cut(title),
            actor: actor.into(),
            rpc: method.to_owned(),
            cli: self.command_line(method, &request, None),
            request: Some(structure(request)),
            required_scope: policy.map_or_else(String::new, |policy| policy.scope.to_owned()),
            affects: 0,
            destructive: false,
        }
    }

    /// A fix that only an operator of the hub can make: his call names the tenant.
    pub fn fix_in_tenant(
        &self,
        tenant_id: &str,
        title: String,
        method: &'static str,
        request: Json,
    ) -> Fix {
        let cli = self.command_line(method, &request, Some(tenant_id));
        Fix {
            cli,
            ..self.fix(FixActor::Operator, title, method, request)
        }
    }

    /// A fix for which there is no call.
    pub fn advice(actor: FixActor, title: String) -> Fix {
        Fix {
            title: cut(title),
            actor: actor.into(),
            ..Fix::default()
        }
    }

    /// For a shell with the key in `HUB_KEY`; of a tenant that the key does not name.
    fn command_line(&self, method: &str, request: &Json, tenant_id: Option<&str>) -> String {
        let json = request.to_string().replace('\'', r"'\''");
        let named = tenant_id.map(|id| format!(" -H '{TENANT_HEADER}: {id}'"));
        format!(
            "curl -sS{} -H \"authorization: Bearer $HUB_KEY\" \
             -H 'content-type: application/json' -d '{json}' {}/{method}",
            named.unwrap_or_default(),
            self.public_url
        )
    }
}

/// An object of JSON as a message.
fn structure(json: Json) -> prost_types::Struct {
    let fields = match json {
        Json::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    prost_types::Struct {
        fields: fields
            .into_iter()
            .map(|(name, json)| (name, value(json)))
            .collect(),
    }
}

fn value(json: Json) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Json::String(value) => Kind::StringValue(value),
        Json::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.into_iter().map(value).collect(),
        }),
        object => Kind::StructValue(structure(object)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// Shortens on a character boundary, and shows that it did.
fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
