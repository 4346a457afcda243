//! Decisions, and what is kept of them.

use super::*;
use crate::decision::Asked;
use crate::verify::Question;

/// May a key read tickets of PSA?
pub fn tickets(key: &Created) -> Question {
    Question {
        key: key.plaintext.expose().to_owned(),
        asked: Asked {
            product: "psa".into(),
            scope: "psa:tickets.read".into(),
            host: String::new(),
            path: String::new(),
            client: None,
        },
        cost: 1,
        dry_run: false,
    }
}

both_databases! {
    async fn of_a_refusal_the_path_is_kept_without_its_query(hub: TestKeys) {
        let key = hub.create(&["crm:*"]).await;
        for (path, kept) in [("/t?key=secret", "/t"), ("/t#secret", "/t"), ("?secret", "")] {
            let mut question = tickets(&key);
            question.asked.path = path.to_owned();
            let verdict = hub.keys.verify(&hub.administrator(), &question).await.unwrap();
            assert_eq!(verdict.refusal.unwrap().reason(), "PRODUCT_MISMATCH");
            hub.keys.write_counts().await.unwrap();
            let denial = hub.keys.denials.find(&hub.core.db, &verdict.call_id).await.unwrap();
            assert_eq!(denial.unwrap().path, kept);
        }
    }
}
