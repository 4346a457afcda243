//! Appends that a publisher sends in a row, without waiting for the one before.

use hub_core::clock::Clock;
use hub_core::journal::{self, Append, Row};
use hub_core::limits::Limits;

use super::property::{poisoned, refuse};
use super::store::{Store, batch, event};
use crate::support::{Backend, Database};

both_databases! {
    async fn nothing_of_a_row_is_stored_behind_what_was_not(backend: Backend) {
        let database = Database::new(backend).await;
        let store = Store::open(&database, Limits::default(), Clock::system()).await;
        let tenant = store.tenant("tenant").await;
        refuse(&database).await;
        let log = store.journal.log(&tenant).await.unwrap();
        let row = Row::default();
        let in_row = |event| Append { row: Some(row.clone()), ..batch(&log, vec![event]) };
        // All of them wait for the same commit.
        let mut held = store.db.begin().await.unwrap();
        journal::lock_head(&mut held, &tenant).await.unwrap();
        let mut waiting = Vec::new();
        for append in [
            in_row(event("before")),
            in_row(poisoned("refused")),
            in_row(event("behind")),
            batch(&log, vec![event("of another")]),
        ] {
            waiting.push(store.journal.submit(append).await.unwrap());
        }
        drop(held);
        let mut reasons = Vec::new();
        for pending in waiting {
            reasons.push(pending.wait().await.map_or_else(|error| error.reason(), |_| "OK"));
        }
        assert_eq!(reasons, ["OK", "INTERNAL", "STORE_BUSY", "OK"]);
        let late = store.journal.append(in_row(event("behind"))).await.unwrap_err();
        assert_eq!(late.reason(), "STORE_BUSY", "a row that has ended does not go on");
        let again = store.append(&log, vec![event("behind")]).await;
        assert_eq!(again.position.seq, 3, "it was not stored before");
        store.close().await;
    }
}
