//! Anything at all, sent by one tenant: nothing of the other comes back, and nothing of it changes.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_reflect::{DynamicMessage, Value};

use super::contract::{Contract, Rpc};
use super::seeds::{HEALING, SEEDS};
use super::values::{Generator, Known};
use super::wire::{Call, Form, Heard, Wire};
use super::world::{Owner, World, bearer};
use crate::journal::random::Random;

/// Calls of each RPC that does something, and of each that does not yet.
const CALLS: usize = 48;
const CALLS_UNBUILT: usize = 2;
/// Rounds between which the attacker's own tenant is put in order.
const ROUNDS: usize = 6;

/// Refusals that tell of what the caller did before.
const OF_BEFORE: &[&str] = &[
    "EVENT_ID_REUSED",
    "REQUEST_ID_REUSED",
    "SUBSCRIPTION_EXISTS",
];

/// Who attacks, and what must stay unknown.
pub struct Attack<'a> {
    pub contract: &'a Contract,
    pub attacker: &'a Owner,
    pub victim: &'a Owner,
    /// Key of all tenants; every call with it names the attacker's.
    pub all_tenants_key: Option<&'a str>,
    pub random: Random,
    own: Known,
    sent: Known,
    /// Never sent, so it is never heard again by itself.
    unsent: BTreeSet<String>,
    /// The attacker wrote the victim's name into something of its own, where it may hear it again.
    has_named_victim: bool,
}

/// What was found.
#[derive(Default)]
pub struct Report {
    pub calls: usize,
    /// What was heard that must not be, by method.
    pub leaks: BTreeMap<&'static str, Vec<String>>,
    /// Reasons heard by method, to see that calls come further than the first check.
    pub outcomes: BTreeMap<&'static str, BTreeMap<String, usize>>,
}

/// Ids, cursors and tokens, which the hub makes: nobody else has the same.
pub fn is_made(text: &str) -> bool {
    let id = text.split_once('_').is_some_and(|(prefix, rest)| {
        let lower = prefix.bytes().all(|b| b.is_ascii_lowercase());
        prefix.len() == 3 && lower && rest.len() >= 13
    });
    let token = text.len() >= 30
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
        && text.bytes().any(|b| b.is_ascii_uppercase());
    id || token
}

impl<'a> Attack<'a> {
    /// Half of what the victim knows is used in calls, the other half must never be heard.
    pub fn new(world: &'a World, attacker: &'a Owner, victim: &'a Owner, seed: u64) -> Self {
        let is_self = attacker.tenant.id == victim.tenant.id;
        // What both know is of the hub, e.g. the operator who made both.
        let shared: BTreeSet<&String> = world.one.known.all().collect();
        let theirs = victim
            .known
            .all()
            .filter(|text| is_self || !shared.contains(text));
        let made: BTreeSet<String> = theirs.filter(|text| is_made(text)).cloned().collect();
        let kept = made
            .iter()
            .enumerate()
            .filter(|(at, text)| **text != victim.tenant.id && (is_self || at % 2 == 1));
        let unsent: BTreeSet<String> = kept.map(|(_, text)| text.clone()).collect();
        let mut sent = victim.known.clone();
        // Ids are within other texts too, as in those of the hub's own events: what was sent that
        // way may be heard again.
        let names = |text: &str| unsent.iter().any(|id| text.contains(id.as_str()));
        sent.retain(|text| is_self || !names(text));
        // A key that ends itself attacks no more.
        let mut own = attacker.known.clone();
        own.retain(|text| !attacker.key_ids.iter().any(|id| id == text));
        // What is deleted by chance is not the one subscription that other calls are about.
        let needed = attacker.made("sub_").last().map(|id| (*id).clone());
        own.retain(|text| Some(text) != needed.as_deref());
        if is_self {
            sent = own.clone();
        }
        Attack {
            contract: &world.contract,
            attacker,
            victim,
            all_tenants_key: (!is_self).then_some(world.all_tenants_key.as_str()),
            random: Random::new(seed, 3),
            own,
            sent,
            unsent,
            has_named_victim: false,
        }
    }

    /// Calls everything that `wanted` names.
    pub async fn run(&mut self, wire: &mut Wire, wanted: impl Fn(&Rpc) -> bool) -> Report {
        let mut report = Report::default();
        let contract = self.contract;
        for _ in 0..ROUNDS {
            for rpc in contract.rpcs.iter().filter(|rpc| wanted(rpc)) {
                let calls = if rpc.built {
                    CALLS / ROUNDS
                } else {
                    CALLS_UNBUILT / ROUNDS
                };
                let calls = calls.max(usize::from(!rpc.built && self.random.percent(30)));
                for _ in 0..calls {
                    self.strike(rpc, wire, &mut report).await;
                }
            }
            self.heal(wire).await;
        }
        report
    }

    /// One call, and the same with ids of nobody: both must be answered alike.
    async fn strike(&mut self, rpc: &Rpc, wire: &mut Wire, report: &mut Report) {
        let call = self.call(rpc);
        let ghost = self.ghost(&call);
        let of_nobody = match &ghost {
            Some(ghost) => Some(wire.call(ghost).await),
            None => None,
        };
        let heard = wire.call(&call).await;
        let mut told = of_nobody.and_then(|of_nobody| differs(&heard, &of_nobody));
        if let Some(ghost) = ghost.as_ref().filter(|_| told.is_some() && !rpc.reads()) {
            // Perhaps the first of the two changed what the second one met: so does this one.
            told = told.and(differs(&heard, &wire.call(ghost).await));
        }
        report.calls += 1 + usize::from(ghost.is_some());
        let code = format!("{:?}", heard.code);
        let outcome = if heard.reason.is_empty() {
            code
        } else {
            heard.reason.clone()
        };
        let outcomes = report.outcomes.entry(rpc.policy.method).or_default();
        *outcomes.entry(outcome).or_default() += 1;
        let name = &self.victim.tenant.id;
        self.has_named_victim |= call.messages.iter().any(|message| says(message, name));
        let mut found = self.heard_of_victim(&call, &heard);
        found.extend(told);
        if !found.is_empty() {
            let leaks = report.leaks.entry(rpc.policy.method).or_default();
            leaks.push(format!("{found:?} answers {}", call.shown()));
        }
    }

    fn heard_of_victim(&self, call: &Call, heard: &Heard) -> Vec<String> {
        let name = Some(&self.victim.tenant.id).filter(|_| !self.has_named_victim);
        let texts = self.unsent.iter().chain([&self.victim.mark]).chain(name);
        let said = call.said();
        texts
            .filter(|text| heard.contains(text) && !said.contains(text.as_str()))
            .cloned()
            .collect()
    }

    /// Puts the attacker's own switches back, so that its calls go on to get somewhere.
    async fn heal(&self, wire: &mut Wire) {
        for (method, json) in HEALING {
            let rpc = self.contract.rpc(method);
            if rpc.built {
                let message = self.attacker.filled(rpc, json, 1);
                wire.call(&self.attacker.call(rpc, message)).await;
            }
        }
    }

    /// A call of an RPC.
    pub fn call(&mut self, rpc: &Rpc) -> Call {
        let count = if rpc.policy.client_streaming {
            1 + self.random.below(3)
        } else {
            1
        };
        let messages: Vec<_> = (0..count).map(|_| self.message(rpc)).collect();
        let streams = rpc.policy.client_streaming || rpc.policy.server_streaming;
        let json = !streams && self.random.percent(30) && serde_json::to_vec(&messages[0]).is_ok();
        let form = if json { Form::Json } else { Form::Grpc };
        let headers = self.headers(rpc);
        Call {
            rpc: rpc.clone(),
            headers,
            messages,
            form,
        }
    }

    fn message(&mut self, rpc: &Rpc) -> DynamicMessage {
        let seeds: Vec<_> = SEEDS
            .iter()
            .filter(|seed| seed.method == rpc.policy.method)
            .collect();
        let planted = (!seeds.is_empty() && self.random.percent(70)).then(|| {
            let seed = seeds[self.random.below(seeds.len())];
            let number = 1 + self.random.below(9);
            self.attacker.filled(rpc, seed.json, number)
        });
        let mut generator = Generator {
            contract: self.contract,
            random: self.random.clone(),
            own: &self.own,
            foreign: &self.sent,
        };
        let message = match planted {
            Some(mut message) => {
                for _ in 0..generator.random.below(3) {
                    generator.vary(&mut message);
                }
                message
            }
            None => generator.message(&rpc.input, 0),
        };
        self.random = generator.random;
        message
    }

    fn headers(&mut self, rpc: &Rpc) -> Vec<(&'static str, String)> {
        let owner = self.attacker;
        let key = match self.random.below(100) {
            0..10 => &owner.reader_key,
            10..25 if self.all_tenants_key.is_some() => {
                let key = self.all_tenants_key.unwrap_or_default();
                return vec![bearer(key), ("x-hub-tenant", owner.tenant.id.clone())];
            }
            25..30 => return vec![("x-hub-tenant", self.victim.tenant.id.clone())],
            30..55 => &owner.product_key,
            _ => owner.key(rpc),
        };
        let mut headers = vec![bearer(key)];
        let (own, foreign) = (owner.tenant.id.clone(), self.victim.tenant.id.clone());
        match self.random.below(100) {
            0..60 => {}
            60..75 => headers.push(("x-hub-tenant", own)),
            75..88 => headers.push(("x-hub-tenant", foreign)),
            88..92 => headers.extend([("x-hub-tenant", own), ("x-hub-tenant", foreign)]),
            92..96 => headers.extend([("x-hub-tenant", foreign), ("x-hub-tenant", own)]),
            _ => headers.push(("x-hub-tenant", "tnt_none".to_owned())),
        }
        headers
    }

    /// The same call with ids that nobody has in place of the victim's; none if it has none.
    fn ghost(&mut self, call: &Call) -> Option<Call> {
        let mut ghost = call.clone();
        let mut replaced = 0;
        for message in &mut ghost.messages {
            replaced += self.unname(message);
        }
        for (_, value) in &mut ghost.headers {
            if *value == self.victim.tenant.id && self.attacker.tenant.id != *value {
                *value = of_nobody(value);
                replaced += 1;
            }
        }
        (replaced > 0 && self.attacker.tenant.id != self.victim.tenant.id).then_some(ghost)
    }

    fn unname(&self, message: &mut DynamicMessage) -> usize {
        let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
        let fields = fields.iter();
        fields
            .map(|field| self.unname_value(message.get_field_mut(field)))
            .sum()
    }

    fn unname_value(&self, value: &mut Value) -> usize {
        match value {
            Value::String(text) if is_made(text) && self.sent.all().any(|known| known == text) => {
                *text = of_nobody(text);
                1
            }
            Value::Message(inner) => self.unname(inner),
            Value::List(values) => values
                .iter_mut()
                .map(|value| self.unname_value(value))
                .sum(),
            _ => 0,
        }
    }
}

fn says(message: &DynamicMessage, text: &str) -> bool {
    String::from_utf8_lossy(&message.encode_to_vec()).contains(text)
}

/// An id of the same form that nobody has.
fn of_nobody(text: &str) -> String {
    let turned = |c: char| match c {
        '0'..='7' => char::from(c as u8 + 1),
        '8' | '9' => '0',
        'a'..='g' => char::from(c as u8 + 1),
        other => other,
    };
    // What the prefix says stays, and so does the length.
    let (start, end) = text.split_at(text.len() - 8);
    let turned: String = end.chars().map(turned).collect();
    let last = if turned.ends_with('z') { 'y' } else { 'z' };
    format!("{start}{}{last}", &turned[..7])
}

/// Whether the answer tells the victim's id from one of nobody.
fn differs(heard: &Heard, of_nobody: &Heard) -> Option<String> {
    let (known, unknown) = (heard.reason.as_str(), of_nobody.reason.as_str());
    let of_before = OF_BEFORE.contains(&known) || OF_BEFORE.contains(&unknown);
    let alike = known == unknown && heard.code == of_nobody.code;
    let problem = format!("{known:?} for the victim's, {unknown:?} for nobody's");
    (!alike && !of_before).then_some(problem)
}

impl Report {
    /// Fails with all that was found.
    pub fn is_clean(&self) {
        let found: Vec<String> = self
            .leaks
            .iter()
            .map(|(method, leaks)| {
                let shown: Vec<_> = leaks.iter().take(3).cloned().collect();
                format!("{method}, {} times:\n  {}", leaks.len(), shown.join("\n  "))
            })
            .collect();
        assert!(
            found.is_empty(),
            "one tenant hears of another:\n{}",
            found.join("\n")
        );
    }

    /// How often a call of a method succeeded.
    pub fn succeeded(&self, method: &str) -> usize {
        let outcomes = self.outcomes.get(method);
        outcomes
            .and_then(|outcomes| outcomes.get("Ok"))
            .copied()
            .unwrap_or_default()
    }
}
