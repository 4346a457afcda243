//! Which keys a key may make out of others.

use std::sync::Arc;

use hub_core::auth::Origin;

use super::*;
use crate::rotate::{GRACE, Rotation};
use crate::update::NewValues;

async fn made(hub: &TestKeys, product: &str, scopes: &[&str]) -> Caller {
    let new = NewKey {
        scopes: texts(scopes),
        product: product.to_owned(),
        all_tenants: true,
        ..named(product)
    };
    let operator = caller(None, &["hub:*"]);
    let created = hub.keys.create(&operator, new, None).await.unwrap();
    hub.authenticate(&created.first().unwrap()).await.unwrap()
}

async fn rotate(hub: &TestKeys, by: &Caller, key_id: &str) -> Result<()> {
    let rotation = Rotation {
        key_id: key_id.to_owned(),
        grace: GRACE,
        retry: None,
    };
    hub.keys.rotate(by, rotation).await.map(drop)
}

/// A caller as admission leaves it with an RPC that needs a scope.
fn admitted(caller: Caller, scope: &'static str) -> Caller {
    let origin = Origin {
        client_ip: Some([10, 0, 0, 1].into()),
        scope,
        ..Origin::default()
    };
    Caller {
        origin: Arc::new(origin),
        ..caller
    }
}

both_databases! {
    async fn a_stream_that_asks_again_goes_on_while_its_key_has_the_scope_that_it_needs(
        hub: TestKeys
    ) {
        let created = hub.create(&["hub:*"]).await;
        let caller = admitted(hub.authenticate(&created).await.unwrap(), "hub:events.read");
        let change = async |scopes: &[&str]| {
            let new = NewValues { scopes: Some(texts(scopes)), ..NewValues::default() };
            hub.keys.update(&hub.administrator(), &caller.key_id, new).await.unwrap();
        };
        change(&["hub:events.*"]).await;
        let now = hub.keys.recheck(&caller).await.unwrap();
        assert_eq!(now.scopes.list(), ["hub:events.*"]);
        assert_eq!((&now.tenant, &now.origin), (&caller.tenant, &caller.origin));
        change(&["hub:events.publish"]).await;
        let refused = hub.keys.recheck(&caller).await.unwrap_err();
        assert_eq!(refused.reason(), "SCOPE_MISSING");
        assert!(refused.metadata().contains(&("missingScope", "hub:events.read".to_owned())));
        assert!(refused.metadata().contains(&("heldScopes", "hub:events.publish".to_owned())));
        hub.keys.recheck(&admitted(caller.clone(), "")).await.unwrap();
        change(&["hub:events.read"]).await;
        hub.keys.recheck(&caller).await.unwrap();
    }

    async fn a_stream_that_asks_again_ends_if_its_key_may_not_be_used_from_there_any_more(
        hub: TestKeys
    ) {
        let created = hub.create(&["hub:*"]).await;
        let caller = admitted(hub.authenticate(&created).await.unwrap(), "hub:events.read");
        for (block, expected) in [("10.0.0.0/8", None), ("192.0.2.0/24", Some("IP_NOT_ALLOWED"))] {
            let new = NewValues { cidrs: Some(texts(&[block])), ..NewValues::default() };
            hub.keys.update(&hub.administrator(), &caller.key_id, new).await.unwrap();
            let refused = hub.keys.recheck(&caller).await.err().map(|error| error.reason());
            assert_eq!(refused, expected, "{block}");
        }
    }

    async fn a_backend_of_all_tenants_has_a_hand_in_those_of_its_own_product_only(
        hub: TestKeys
    ) {
        let psa = made(&hub, "psa", &["hub:*"]).await;
        let (of_psa, of_crm) = (made(&hub, "psa", &[]).await, made(&hub, "crm", &[]).await);
        let of_none = made(&hub, "", &[]).await;
        // Itself last: once it is rotated it ends, and nothing that it makes may last longer.
        for (target, may) in [(&of_psa, true), (&of_crm, false), (&of_none, false), (&psa, true)] {
            let new = NewValues { scopes: Some(texts(&["psa:*"])), ..NewValues::default() };
            let changed = hub.keys.update(&psa, &target.key_id, new).await.map(drop);
            let limited = hub.keys.limit_key(&psa, &target.key_id, 7).await.map(drop);
            for outcome in [changed, limited, rotate(&hub, &psa, &target.key_id).await] {
                let reason = outcome.err().map(|error| error.reason());
                assert_eq!(reason, (!may).then_some("SCOPE_ESCALATION"), "{target:?}");
            }
        }
        for (target, may) in [(&of_crm, false), (&of_none, false), (&of_psa, true)] {
            let revoked = hub.keys.revoke(&psa, &target.key_id, "").await;
            let reason = revoked.err().map(|error| error.reason());
            assert_eq!(reason, (!may).then_some("SCOPE_ESCALATION"), "{target:?}");
        }
        let operator = caller(None, &["hub:*"]);
        rotate(&hub, &operator, &of_crm.key_id).await.unwrap();
    }
}
