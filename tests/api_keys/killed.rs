//! What keys were used for, after a process was killed.

use hub_client::Hub;
use hub_client::proto::hub::api_keys::v1::{ApiKey, GetApiKeyRequest};

use super::limits::usage;
use super::verify::{tickets, told, verify};
use super::{create, new_key};
use crate::support::{Backend, Command, Tenant, TestProcess};

fn client(process: &TestProcess, key: &str) -> Hub {
    let hub = Hub::builder(format!("http://{}", process.addr()));
    hub.api_key(key).connect_lazy().unwrap()
}

async fn allowed(admin: &Hub, key_id: &str) -> u64 {
    let buckets = usage(admin, key_id).await.buckets;
    buckets.iter().map(|bucket| bucket.allowed).sum()
}

both_databases! {
    async fn what_was_written_of_usage_survives_a_kill(backend: Backend) {
        let mut process = TestProcess::start(Command::Serve, backend, &[]).await;
        let operator_key = process.ready["operatorKey"].as_str().unwrap().to_owned();
        let operator = client(&process, &operator_key);
        let tenant = Tenant::create(&operator).await;
        let verifier = ApiKey { all_tenants: true, ..new_key("backend", &["hub:keys.verify"]) };
        let verifier = create(&operator, verifier).await.unwrap().plaintext;
        let admin = client(&process, &tenant.admin_key);
        let made = create(&admin, new_key("counted", &["psa:*"])).await.unwrap();
        let key_id = made.api_key.unwrap().key_id;
        for _ in 0..3 {
            let answer = verify(&client(&process, &verifier), tickets(&made.plaintext)).await;
            assert_eq!(told(&answer.unwrap()), (200, ""));
        }
        // Told from the database: what is not written is in no answer.
        while allowed(&admin, &key_id).await < 3 {}
        for _ in 0..2 {
            verify(&client(&process, &verifier), tickets(&made.plaintext)).await.unwrap();
        }
        process.kill().await;
        process.start_again().await;
        let admin = client(&process, &tenant.admin_key);
        let after = allowed(&admin, &key_id).await;
        assert!((3..=5).contains(&after), "{after}");
        let request = GetApiKeyRequest { key_id };
        let shown = admin.api_keys().get_api_key(request).await.unwrap().into_inner();
        assert!(shown.api_key.unwrap().last_use_time.is_some());
    }
}
