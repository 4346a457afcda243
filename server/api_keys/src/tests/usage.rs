//! What keys were used for, written by several processes at once.

use hub_core::storage::Sql;

use super::*;
use crate::Key;
use crate::cache::Known;
use crate::denials::Denial;
use crate::key::Record;
use crate::store::{
    self,
    usage::{Batch, Span},
};
use crate::usage::{ALLOWED, Counted, DAY, MINUTE, TOLD_AT_ONCE};

/// More than one transaction writes.
const KEYS: usize = 300;
const ROUNDS: u64 = 8;

/// As a look-up finds it.
fn looked_up(hub: &TestKeys, number: usize) -> Arc<Known> {
    let family = format!("key_{number}");
    let key = Key {
        key_id: family.clone(),
        tenant: Some(hub.tenant.clone()),
        family,
        ..crate::key::tests::key()
    };
    Known::new(Record::new(&key).unwrap())
}

fn records(hub: &TestKeys) -> Vec<Arc<Known>> {
    (0..KEYS).map(|number| looked_up(hub, number)).collect()
}

/// What was allowed to all keys of the tenant.
async fn allowed(hub: &TestKeys) -> u64 {
    let span = Span {
        length: DAY,
        since: 0,
        until: START + DAY,
    };
    let rows = store::usage::read(&hub.core.db, &hub.tenant, None, &span).await;
    let allowed = rows.unwrap().into_iter().filter(|row| row.1 == ALLOWED);
    allowed.map(|row| row.2.unsigned_abs()).sum()
}

both_databases! {
    async fn usage_is_written_while_denials_cannot_be(hub: TestKeys) {
        let record = &records(&hub)[0];
        hub.keys.usage.count(record, ALLOWED, 5, START);
        hub.keys.denials.note(&record.caller, Denial::default());
        let mut tx = hub.core.db.begin().await.unwrap();
        tx.query(Sql::same("drop table key_denials")).execute().await.unwrap();
        tx.commit().await.unwrap();
        hub.keys.write_counts().await.unwrap_err();
        assert_eq!(allowed(&hub).await, 5);
    }

    async fn what_could_not_be_written_is_counted_once_when_it_can(hub: TestKeys) {
        let record = &records(&hub)[0];
        let (usage, db) = (&hub.keys.usage, &hub.core.db);
        let rename = async |text| {
            let mut tx = db.begin().await.unwrap();
            tx.query(text).execute().await.unwrap();
            tx.commit().await.unwrap();
        };
        rename(Sql::same("alter table key_counts rename to gone")).await;
        for requests in [3, 4] {
            usage.count(record, ALLOWED, requests, START);
            usage.write(db, START).await.unwrap_err();
        }
        rename(Sql::same("alter table gone rename to key_counts")).await;
        usage.write(db, START).await.unwrap();
        usage.write(db, START).await.unwrap();
        assert_eq!(allowed(&hub).await, 7);
    }

    async fn a_key_that_was_looked_up_again_counts_whole(hub: TestKeys) {
        const LAST_USE: Sql = Sql::same("select use_time from key_uses where key_id = 'key_0'");
        let (before, again) = (records(&hub).remove(0), records(&hub).remove(0));
        let (usage, db) = (&hub.keys.usage, &hub.core.db);
        for (known, requests, at) in [(&before, 2, START + 9), (&again, 5, START + 4)] {
            usage.count(known, ALLOWED, requests, at);
            usage.count(known, "RATE_LIMITED", 1, at);
            usage.used(known, at);
        }
        usage.count(&again, ALLOWED, 11, START + MINUTE);
        usage.write(db, START).await.unwrap();
        assert_eq!(allowed(&hub).await, 18);
        let last_use: (i64,) = db.query(LAST_USE).one().await.unwrap();
        assert_eq!(last_use.0, START + 9);
    }

    async fn more_keys_than_are_written_at_once_count_each(hub: TestKeys) {
        let (usage, db, keys) = (&hub.keys.usage, &hub.core.db, TOLD_AT_ONCE + 1);
        for number in 0..keys {
            usage.count(&looked_up(&hub, number % KEYS), ALLOWED, 1, START);
        }
        usage.write(db, START).await.unwrap();
        assert_eq!(allowed(&hub).await, keys as u64);
    }

    async fn a_batch_that_is_sent_again_counts_once(hub: TestKeys) {
        let counted = Counted {
            tenant_no: hub.tenant.number(),
            family: "key_1".into(),
            span: MINUTE,
            start: START,
            outcome: ALLOWED.into(),
            requests: 5,
        };
        for (writer_id, number) in [("wrt_1", 1), ("wrt_1", 1), ("wrt_2", 1), ("wrt_1", 2)] {
            let batch = Batch { writer_id, number };
            let rows = vec![counted.clone()];
            store::usage::add(&hub.core.db, batch, rows, START).await.unwrap();
        }
        assert_eq!(allowed(&hub).await, 15);
    }

    async fn processes_write_what_they_counted_of_the_same_keys_at_once(hub: TestKeys) {
        let processes = [hub.keys.clone(), hub.other_process(), hub.other_process()];
        for _ in 0..ROUNDS {
            let writes = processes.each_ref().map(|keys| {
                for record in records(&hub) {
                    keys.usage.count(&record, ALLOWED, 1, START);
                    keys.usage.used(&record, START);
                }
                let (keys, db) = (keys.clone(), hub.core.db.clone());
                tokio::spawn(async move { keys.usage.write(&db, START).await })
            });
            for write in writes {
                write.await.unwrap().unwrap();
            }
        }
        assert_eq!(allowed(&hub).await, 3 * ROUNDS * KEYS as u64);
    }
}
