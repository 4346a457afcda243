//! A hub with two tenants that have the same things, and all that each knows of its own.

use hub_client::proto::hub::api_keys::v1::{ApiKey, CreateApiKeyRequest, WhoAmIRequest};
use hub_core::jobs::NewJob;
use prost_reflect::DynamicMessage;

use super::contract::{Contract, Rpc};
use super::seeds::{By, JOBS, READS, SEEDS, Seed};
use super::values::{Generator, Known};
use super::wire::{Call, Form, Heard, Wire};
use crate::journal::random::Random;
use crate::support::{Backend, Tenant, TestHub};

/// Requests that are made to find out what a tenant can see of its own, for each RPC that reads.
const LOOKS: usize = 8;

/// A tenant with everything in it.
pub struct Owner {
    pub tenant: Tenant,
    /// Key of the product `psa` that may do everything.
    pub product_key: String,
    /// Key of the product `portal` that may only read.
    pub reader_key: String,
    /// Text that only this tenant knows.
    pub mark: String,
    /// Ids of its keys that call.
    pub key_ids: Vec<String>,
    /// Texts without the mark.
    pub known: Known,
    /// Calls that succeeded and show what there is.
    pub looks: Vec<Call>,
    /// Everything that it asked for when its things were made.
    pub made_by: Vec<Call>,
}

/// The hub and its two tenants.
pub struct World {
    pub hub: TestHub,
    pub contract: Contract,
    pub one: Owner,
    pub other: Owner,
    /// Key of the product `psa` that serves all tenants.
    pub all_tenants_key: String,
}

/// The value of the header `authorization`.
pub fn bearer(key: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {key}"))
}

impl World {
    /// Makes it; the same seed makes the same requests.
    pub async fn make(backend: Backend, seed: u64) -> World {
        let hub = TestHub::options(backend).manual_clock().start().await;
        let contract = Contract::read();
        let mut wire = Wire::connect(hub.addr).await;
        let (tenant, stranger) = (hub.first_tenant().clone(), hub.tenant().await);
        let mut one = Owner::new(&hub, tenant, "ours").await;
        let mut other = Owner::new(&hub, stranger, "theirs").await;
        for owner in [&mut one, &mut other] {
            owner.learn_own_keys(&hub).await;
            owner.make_jobs(&hub).await;
            owner.plant(&contract, &mut wire).await;
            owner.look_around(&contract, &mut wire, seed).await;
        }
        let all_tenants_key = all_tenants_key(&hub).await;
        World {
            hub,
            contract,
            one,
            other,
            all_tenants_key,
        }
    }
}

async fn all_tenants_key(hub: &TestHub) -> String {
    let api_key = ApiKey {
        name: "psa backend".to_owned(),
        product: "psa".to_owned(),
        all_tenants: true,
        scopes: vec!["hub:*".to_owned(), "psa:*".to_owned()],
        ..ApiKey::default()
    };
    let request = CreateApiKeyRequest {
        api_key: Some(api_key),
        ..Default::default()
    };
    let operator = hub.client(&hub.operator_key);
    let made = operator.api_keys().create_api_key(request).await.unwrap();
    made.into_inner().plaintext
}

impl Owner {
    async fn new(hub: &TestHub, tenant: Tenant, name: &str) -> Owner {
        let admin = hub.client(&tenant.admin_key);
        let product_key = tenant.key(&admin, "psa", &["hub:*"]).await;
        let reads = [
            "hub:events.read",
            "hub:subscriptions.read",
            "hub:products.read",
        ];
        let reader_key = tenant.key(&admin, "portal", &reads).await;
        let mut known = Known::default();
        known.add("tenant_id", &tenant.id);
        let mark = format!("{name}{}", uuid::Uuid::new_v4().simple());
        Owner {
            tenant,
            product_key,
            reader_key,
            mark,
            key_ids: Vec::new(),
            known,
            looks: Vec::new(),
            made_by: Vec::new(),
        }
    }

    async fn learn_own_keys(&mut self, hub: &TestHub) {
        for key in [&self.tenant.admin_key, &self.product_key, &self.reader_key] {
            let asked = hub.client(key).api_keys().who_am_i(WhoAmIRequest {}).await;
            self.key_ids
                .push(asked.unwrap().into_inner().api_key.unwrap().key_id);
        }
    }

    async fn make_jobs(&mut self, hub: &TestHub) {
        let core = &hub.core;
        let tenant = core.tenancy.find(&self.tenant.id).await.unwrap();
        for number in 0..JOBS {
            let new = NewJob {
                kind: "test.waiting",
                resource: format!("{} {number}", self.mark),
                created_by: self.key_ids[0].clone(),
                ..NewJob::default()
            };
            let mut tx = core.db.begin().await.unwrap();
            let job = core.jobs.create(&mut tx, &tenant, new).await.unwrap();
            tx.commit().await.unwrap();
            self.known.add("job_id", &job.job_id);
        }
    }

    /// The key for an RPC.
    pub fn key(&self, rpc: &Rpc) -> &str {
        if rpc.policy.product_required {
            &self.product_key
        } else {
            &self.tenant.admin_key
        }
    }

    /// A call by this tenant.
    pub fn call(&self, rpc: &Rpc, message: DynamicMessage) -> Call {
        Call {
            rpc: rpc.clone(),
            headers: vec![bearer(self.key(rpc))],
            messages: vec![message],
            form: Form::Grpc,
        }
    }

    /// A request of a table, with the values of this tenant in its places.
    pub fn filled(&self, rpc: &Rpc, json: &str, number: usize) -> DynamicMessage {
        let mut text = json
            .replace("$MARK", &self.mark)
            .replace("$N", &number.to_string());
        text = text.replace("$UUID", &uuid::Uuid::new_v4().to_string());
        for prefix in ["key_", "evt_", "sub_", "tnt_", "whe_", "job_", "ent_"] {
            let known = self.made(prefix);
            let from_end = |at: usize| known.len().checked_sub(at).and_then(|at| known.get(at));
            let ends = [
                ("", known.last()),
                ("other_", from_end(2)),
                ("spare_", from_end(3)),
                ("first_", known.first()),
            ];
            for (end, id) in ends {
                if let Some(id) = id {
                    text = text.replace(&format!("\"${end}{prefix}\""), &format!("{id:?}"));
                }
            }
        }
        let mut reader = serde_json::Deserializer::from_str(&text);
        let read = DynamicMessage::deserialize(rpc.input.clone(), &mut reader);
        read.unwrap_or_else(|error| panic!("{}: {error}: {text}", rpc.policy.method))
    }

    /// Its ids with a prefix, the newest last: those that were made, if there are such, and not
    /// those that follow from other ids.
    pub fn made(&self, prefix: &str) -> Vec<&String> {
        let mut all = self.known.with_prefix(prefix);
        // Events that tell of a thing have its id and more as their own.
        all.retain(|id| !id.contains('.'));
        let now = hub_core::id::new("now");
        let since = &now["now_".len()..][..2];
        let made = all
            .iter()
            .filter(|id| id[prefix.len()..].starts_with(since));
        let made: Vec<&String> = made.copied().collect();
        if made.is_empty() { all } else { made }
    }

    async fn plant(&mut self, contract: &Contract, wire: &mut Wire) {
        for seed in SEEDS {
            let rpc = contract.rpc(seed.method);
            for number in 1..=seed.times {
                if rpc.built {
                    self.plant_one(rpc, seed, number, wire).await;
                }
            }
        }
    }

    async fn plant_one(&mut self, rpc: &Rpc, seed: &Seed, number: usize, wire: &mut Wire) {
        let mut call = self.call(rpc, self.filled(rpc, seed.json, number));
        if seed.by == By::Product {
            call.headers = vec![bearer(&self.product_key)];
        }
        let heard = wire.call(&call).await;
        let said = &heard.text;
        assert_eq!(
            heard.code,
            tonic::Code::Ok,
            "the seed of {} is refused: {said}",
            seed.method
        );
        self.hear(&heard);
        // The newest id is the one that was just made, not the one that this call is made with.
        call.messages
            .iter()
            .for_each(|message| self.known.take(message));
        self.known.retain(|text| !text.contains(self.mark.as_str()));
        self.made_by.push(call);
    }

    /// Keeps what an answer names, without what only this tenant knows.
    fn hear(&mut self, heard: &Heard) {
        heard
            .messages
            .iter()
            .for_each(|message| self.known.take(message));
        let mark = self.mark.clone();
        self.known.retain(|text| !text.contains(&mark));
    }

    /// Asks everything that reads, and keeps the calls that show something.
    async fn look_around(&mut self, contract: &Contract, wire: &mut Wire, seed: u64) {
        for rpc in contract.rpcs.iter().filter(|rpc| rpc.built && rpc.reads()) {
            for message in self.look_requests(contract, rpc, seed) {
                let call = self.call(rpc, message);
                let heard = wire.call(&call).await;
                if heard.code == tonic::Code::Ok {
                    self.hear(&heard);
                    // What goes on may say a little more the next time.
                    if heard.ended {
                        self.looks.push(call);
                    }
                }
            }
        }
    }

    fn look_requests(&self, contract: &Contract, rpc: &Rpc, seed: u64) -> Vec<DynamicMessage> {
        let of_rpc = READS
            .iter()
            .filter(|(method, _)| *method == rpc.policy.method);
        let mut requests: Vec<_> = of_rpc.map(|(_, json)| self.filled(rpc, json, 1)).collect();
        let empty = DynamicMessage::new(rpc.input.clone());
        if rpc.pages() {
            let mut one = empty.clone();
            one.set_field_by_name("page_size", prost_reflect::Value::I32(1));
            requests.push(one);
        }
        requests.push(empty);
        let mut generator = Generator {
            contract,
            random: Random::new(seed, 7),
            own: &self.known,
            foreign: &self.known,
        };
        let generated = (0..LOOKS).map(|_| generator.message(&rpc.input, 0));
        requests.extend(generated);
        requests
    }
}
