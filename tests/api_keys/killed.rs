//! What keys were used for, after a process was killed.

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{ApiKey, GetApiKeyRequest};
use prost_types::Timestamp;

use super::limits::usage;
use super::verify::{tickets, told, verify};
use super::{create, new_key};
use crate::durability::load::client;
use crate::support::{Backend, Command, Tenant, TestProcess};

async fn allowed(admin: &Hub, key_id: &str) -> u64 {
    let buckets = usage(admin, key_id).await.buckets;
    buckets.iter().map(|bucket| bucket.allowed).sum()
}

async fn last_use(admin: &Hub, key_id: &str) -> Option<Timestamp> {
    let request = GetApiKeyRequest {
        key_id: key_id.to_owned(),
    };
    let shown = admin
        .api_keys()
        .get_api_key(request)
        .await
        .unwrap()
        .into_inner();
    shown.api_key.unwrap().last_use_time
}

both_databases! {
    async fn what_was_written_of_usage_survives_a_kill(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let operator_key = process.ready["operatorKey"].as_str().unwrap().to_owned();
        let operator = client(process.addr(), &operator_key);
        let tenant = Tenant::create(&operator).await;
        let verifier = ApiKey { all_tenants: true, ..new_key("backend", &["hub:keys.verify"]) };
        let verifier = create(&operator, verifier).await.unwrap().plaintext;
        let admin = client(process.addr(), &tenant.admin_key);
        let made = create(&admin, new_key("counted", &["psa:*"])).await.unwrap();
        let key_id = made.api_key.unwrap().key_id;
        for _ in 0..3 {
            let answer = verify(&client(process.addr(), &verifier), tickets(&made.plaintext)).await;
            assert_eq!(told(&answer.unwrap()), (200, ""));
        }
        // Told from the database: what is not written is in no answer.
        while allowed(&admin, &key_id).await < 3 || last_use(&admin, &key_id).await.is_none() {}
        let used = last_use(&admin, &key_id).await;
        for _ in 0..2 {
            verify(&client(process.addr(), &verifier), tickets(&made.plaintext)).await.unwrap();
        }
        process.kill().await;
        process.start_again().await;
        let admin = client(process.addr(), &tenant.admin_key);
        let after = allowed(&admin, &key_id).await;
        assert!((3..=5).contains(&after), "{after}");
        let time = |used: Option<Timestamp>| used.map(|at| (at.seconds, at.nanos));
        assert!(time(last_use(&admin, &key_id).await) >= time(used));
    }
}
