//! Page tokens of every list that there is: good for their list, tenant and filter, for 24 hours.

use std::time::Duration;

use prost_reflect::{DynamicMessage, Value};
use tonic::Code;

use super::contract::{Contract, Rpc};
use super::mutations::{damaged, sample};
use super::values::Generator;
use super::wire::{Call, Form, Heard, Wire};
use super::world::{Owner, World, bearer};
use crate::journal::random::{Random, Seed};
use crate::support::Backend;

const REFUSED: &str = "PAGE_TOKEN_INVALID";

/// Fields that say how much is shown of what is listed, not what is listed.
const NO_FILTERS: &[&str] = &["page_size", "page_token", "omit_data", "tenant_id"];

/// Lists of which each tenant has less than two things, each with the reason.
const SHORT: &[(&str, &str)] = &[];

/// Values that are tried for a field before it counts as one that takes none.
const TRIES: usize = 12;

/// A list and who asks for it.
struct Asker<'a> {
    rpc: &'a Rpc,
    key: String,
    wire: &'a mut Wire,
}

impl Asker<'_> {
    async fn ask(&mut self, mut request: DynamicMessage, size: i32, token: &str) -> Heard {
        request.set_field_by_name("page_size", Value::I32(size));
        request.set_field_by_name("page_token", Value::String(token.to_owned()));
        let call = Call {
            rpc: self.rpc.clone(),
            headers: vec![bearer(&self.key)],
            messages: vec![request],
            form: Form::Grpc,
        };
        self.wire.call(&call).await
    }

    /// The token behind the first thing that the request lists.
    async fn token(&mut self, request: &DynamicMessage) -> Option<String> {
        let heard = self.ask(request.clone(), 1, "").await;
        let answer = heard.messages.first()?;
        let token = answer
            .get_field_by_name("next_page_token")?
            .as_str()?
            .to_owned();
        (!token.is_empty()).then_some(token)
    }

    async fn is_refused(&mut self, request: &DynamicMessage, token: &str, why: &str) {
        let heard = self.ask(request.clone(), 1, token).await;
        let found = (heard.code, heard.reason.as_str());
        let method = self.rpc.policy.method;
        assert_eq!(
            found,
            (Code::InvalidArgument, REFUSED),
            "{method}, {why}: {token:?}"
        );
    }

    async fn is_taken(&mut self, request: &DynamicMessage, size: i32, token: &str) {
        let heard = self.ask(request.clone(), size, token).await;
        assert_eq!(heard.reason, "", "{}: {token}", self.rpc.policy.method);
    }
}

fn lists(contract: &Contract) -> Vec<&Rpc> {
    let short = |method| SHORT.iter().any(|(known, _)| *known == method);
    let lists: Vec<_> = contract
        .rpcs
        .iter()
        .filter(|rpc| rpc.built && rpc.pages() && !short(rpc.policy.method))
        .collect();
    assert!(!lists.is_empty());
    lists
}

/// Who may ask for a list in the name of a tenant.
fn key(world: &World, owner: &Owner, rpc: &Rpc) -> String {
    if rpc.policy.operator_only {
        world.hub.operator_key.clone()
    } else {
        owner.key(rpc).to_owned()
    }
}

/// The first token of each list, made for the first tenant.
async fn tokens(world: &World, wire: &mut Wire) -> Vec<(Rpc, String)> {
    let mut tokens = Vec::new();
    for rpc in lists(&world.contract) {
        let empty = DynamicMessage::new(rpc.input.clone());
        let mut asker = Asker {
            rpc,
            key: key(world, &world.one, rpc),
            wire,
        };
        let token = asker.token(&empty).await;
        let method = rpc.policy.method;
        let token = token.unwrap_or_else(|| panic!("{method} needs two things: see seeds.rs"));
        tokens.push((rpc.clone(), token));
    }
    tokens
}

both_databases! {
    async fn a_page_token_that_was_changed_is_refused(backend: Backend) {
        let seed = Seed::choose();
        let world = World::make(backend, seed.0).await;
        let mut wire = Wire::connect(world.hub.addr).await;
        let mut random = Random::new(seed.0, 5);
        for (rpc, token) in tokens(&world, &mut wire).await {
            let empty = DynamicMessage::new(rpc.input.clone());
            let key = key(&world, &world.one, &rpc);
            let mut asker = Asker { rpc: &rpc, key, wire: &mut wire };
            for size in [1, 7] {
                asker.is_taken(&empty, size, &token).await;
            }
            for other in sample(damaged(&token, &mut random), &mut random) {
                asker.is_refused(&empty, &other, "damaged").await;
            }
        }
    }

    async fn a_page_token_is_good_for_its_list_and_tenant_only(backend: Backend) {
        let seed = Seed::choose();
        let world = World::make(backend, seed.0).await;
        let mut wire = Wire::connect(world.hub.addr).await;
        let tokens = tokens(&world, &mut wire).await;
        for (rpc, token) in &tokens {
            let empty = DynamicMessage::new(rpc.input.clone());
            for (other, of_other) in tokens.iter().filter(|(other, _)| other.name() != rpc.name()) {
                let mut asker = Asker { rpc, key: key(&world, &world.one, rpc), wire: &mut wire };
                asker.is_refused(&empty, of_other, other.name()).await;
            }
            if !rpc.policy.operator_only {
                let key = key(&world, &world.other, rpc);
                let mut asker = Asker { rpc, key, wire: &mut wire };
                asker.is_refused(&empty, token, "of another tenant").await;
            }
            for cursor in world.one.known.of("cursor").iter().take(3) {
                let mut asker = Asker { rpc, key: key(&world, &world.one, rpc), wire: &mut wire };
                asker.is_refused(&empty, cursor, "a cursor").await;
            }
        }
    }

    async fn a_page_token_is_good_for_its_filter_only(backend: Backend) {
        let seed = Seed::choose();
        let world = World::make(backend, seed.0).await;
        let mut wire = Wire::connect(world.hub.addr).await;
        for (rpc, token) in tokens(&world, &mut wire).await {
            let key = key(&world, &world.one, &rpc);
            let mut asker = Asker { rpc: &rpc, key, wire: &mut wire };
            let (mut tried, mut refused) = (0, 0);
            for request in filtered(&world, &rpc, seed.0) {
                tried += 1;
                // The filter itself is taken; it is the token that is of another one.
                if asker.ask(request.clone(), 1, "").await.reason.is_empty() {
                    asker.is_refused(&request, &token, "of another filter").await;
                    refused += 1;
                }
                if let Some(of_filter) = asker.token(&request).await {
                    asker.is_taken(&request, 3, &of_filter).await;
                    let empty = DynamicMessage::new(rpc.input.clone());
                    asker.is_refused(&empty, &of_filter, "of a filter").await;
                }
            }
            assert!(tried == 0 || refused > 0, "no filter of {} is taken", rpc.policy.method);
        }
    }

    async fn a_page_token_is_good_for_24_hours(backend: Backend) {
        let seed = Seed::choose();
        let world = World::make(backend, seed.0).await;
        let mut wire = Wire::connect(world.hub.addr).await;
        let tokens = tokens(&world, &mut wire).await;
        for (wait, good) in [(86_400, true), (1, false), (86_400 * 30, false)] {
            world.hub.clock.advance(Duration::from_secs(wait));
            for (rpc, token) in &tokens {
                let empty = DynamicMessage::new(rpc.input.clone());
                let mut asker = Asker { rpc, key: key(&world, &world.one, rpc), wire: &mut wire };
                if good {
                    asker.is_taken(&empty, 1, token).await;
                } else {
                    asker.is_refused(&empty, token, "too old").await;
                }
            }
        }
    }
}

/// Requests with one field of the filter set, several for each.
fn filtered(world: &World, rpc: &Rpc, seed: u64) -> Vec<DynamicMessage> {
    let mut generator = Generator {
        contract: &world.contract,
        random: Random::new(seed, 9),
        own: &world.one.known,
        foreign: &world.one.known,
    };
    let mut requests: Vec<DynamicMessage> = Vec::new();
    for field in rpc
        .input
        .fields()
        .filter(|field| !NO_FILTERS.contains(&field.name()))
    {
        for _ in 0..TRIES {
            let mut request = DynamicMessage::new(rpc.input.clone());
            request.set_field(&field, generator.value(&field, 1));
            let says_something = request.fields().any(|(_, value)| !is_empty(value));
            if says_something && !requests.contains(&request) {
                requests.push(request);
            }
        }
    }
    requests
}

/// Whether a value is as good as none.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Message(message) => message.fields().all(|(_, value)| is_empty(value)),
        Value::List(values) => values.is_empty(),
        Value::Map(entries) => entries.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(set) => !set,
        _ => false,
    }
}
