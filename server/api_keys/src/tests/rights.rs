//! Which keys a key may make out of others.

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

both_databases! {
    async fn a_backend_of_all_tenants_rotates_and_changes_those_of_its_own_product_only(
        hub: TestKeys
    ) {
        let psa = made(&hub, "psa", &["hub:*"]).await;
        let (of_psa, of_crm) = (made(&hub, "psa", &[]).await, made(&hub, "crm", &[]).await);
        let of_none = made(&hub, "", &[]).await;
        // Itself last: once it is rotated it ends, and nothing that it makes may last longer.
        for (target, may) in [(&of_psa, true), (&of_crm, false), (&of_none, false), (&psa, true)] {
            let new = NewValues { scopes: Some(texts(&["psa:*"])), ..NewValues::default() };
            let changed = hub.keys.update(&psa, &target.key_id, new).await.map(drop);
            for outcome in [changed, rotate(&hub, &psa, &target.key_id).await] {
                let reason = outcome.err().map(|error| error.reason());
                assert_eq!(reason, (!may).then_some("SCOPE_ESCALATION"), "{target:?}");
            }
        }
        let operator = caller(None, &["hub:*"]);
        rotate(&hub, &operator, &of_crm.key_id).await.unwrap();
    }
}
