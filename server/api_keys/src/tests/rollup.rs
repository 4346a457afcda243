//! Minutes, hours and days say the same, whenever they are rolled up and read.

use std::collections::BTreeMap;

use hub_core::storage::{Migrations, Sql, Tx};

use super::random::{Random, Seed};
use super::*;
use crate::cache::Known;
use crate::key::Record;
use crate::rollup::{CHUNK_ROWS, roll_up};
use crate::store::usage::{self as store, Hold, Span};
use crate::usage::{ALLOWED, Counted, DAY, HOUR, MINUTE};

const STEPS: usize = 120;
const FAMILIES: usize = 5;
const OUTCOMES: [&str; 3] = [ALLOWED, "RATE_LIMITED", "SCOPE_MISSING"];
const FIRST_TENANT: i64 = 1;
const SPANS: [i64; 3] = [MINUTE, HOUR, DAY];

/// Requests by start of the bucket and outcome.
type Buckets = BTreeMap<(i64, String), i64>;

fn record(hub: &TestKeys, family: usize) -> Arc<Known> {
    let family = format!("key_{family}");
    let key = crate::Key {
        key_id: family.clone(),
        tenant: Some(hub.tenant.clone()),
        family,
        ..crate::key::tests::key()
    };
    Known::new(Record::new(&key).unwrap())
}

async fn read(hub: &TestKeys, family: Option<usize>, span: &Span) -> Buckets {
    let family = family.map(|family| format!("key_{family}"));
    let rows = store::read(&hub.core.db, &hub.tenant, family.as_deref(), span).await;
    let rows = rows.unwrap().into_iter();
    rows.map(|(start, outcome, requests)| ((start, outcome), requests))
        .collect()
}

/// Requests as they were made: when, of which family, with which outcome.
#[derive(Default)]
struct Made(Vec<(i64, usize, &'static str, u32)>);

impl Made {
    fn buckets(&self, family: Option<usize>, span: &Span) -> Buckets {
        let mut buckets = Buckets::new();
        for (at, of, outcome, requests) in &self.0 {
            let start = at - at.rem_euclid(span.length);
            let asked = family.is_none_or(|family| family == *of);
            if asked && (span.since..span.until).contains(&start) {
                *buckets.entry((start, (*outcome).to_owned())).or_default() += i64::from(*requests);
            }
        }
        buckets
    }
}

both_databases! {
    async fn any_order_of_counts_and_rounds_leads_to_the_same_sums(hub: TestKeys) {
        let (seed, mut made) = (Seed::choose(), Made::default());
        eprintln!("HUB_TEST_SEED={}", seed.0);
        let mut random = Random::new(seed.0, 1);
        let (usage, db, mut now) = (&hub.keys.usage, &hub.core.db, START);
        for _ in 0..STEPS {
            now += [0, MINUTE / 2, MINUTE, 20 * MINUTE, 7 * HOUR][random.below(5)];
            for _ in 0..random.below(8) {
                // Now and then it was long under way.
                let late = [0, 0, 0, MINUTE, HOUR, 2 * DAY][random.below(6)];
                let (family, requests) = (random.below(FAMILIES), 1 + random.below(9) as u32);
                let outcome = OUTCOMES[random.below(3)];
                usage.count(&record(&hub, family), outcome, requests, now - late);
                made.0.push((now - late, family, outcome, requests));
            }
            usage.write(db, now).await.unwrap();
            match random.below(4) {
                0 => roll_up(db, now, 1 + random.below(5), || true).await.unwrap(),
                // A process that ends after the first transaction.
                1 => roll_up(db, now, 1 + random.below(5), || false).await.unwrap(),
                _ => {}
            }
            let length = SPANS[random.below(3)];
            let since = now - [0, HOUR, 3 * DAY, 20 * DAY][random.below(4)];
            let until = now + 1 - [0, 0, 90 * MINUTE][random.below(3)];
            let span = Span { length, since: since - since.rem_euclid(length), until };
            let family = random.percent(70).then(|| random.below(FAMILIES));
            let told = read(&hub, family, &span).await;
            assert_eq!(told, made.buckets(family, &span), "{family:?} {span:?}");
        }
    }

    async fn processes_that_count_and_roll_up_at_once_count_each_request_once(hub: TestKeys) {
        let processes = [hub.keys.clone(), hub.other_process(), hub.other_process()];
        let rounds = 12;
        for round in 0..rounds {
            let works = processes.each_ref().map(|keys| {
                let minute = START + round * 25 * MINUTE;
                for family in 0..FAMILIES {
                    keys.usage.count(&record(&hub, family), ALLOWED, 1, minute);
                }
                let (keys, db) = (keys.clone(), hub.core.db.clone());
                // Their minute is over: some come before it is rolled up, some after.
                let now = minute + 2 * MINUTE;
                tokio::spawn(async move {
                    let (written, rolled_up) =
                        tokio::join!(keys.usage.write(&db, now), roll_up(&db, now, 3, || true));
                    written.and(rolled_up)
                })
            });
            for work in works {
                work.await.unwrap().unwrap();
            }
        }
        for length in SPANS {
            let span = Span { length, since: START, until: START + DAY };
            let sum: i64 = read(&hub, None, &span).await.values().sum();
            assert_eq!(sum, 3 * rounds * FAMILIES as i64, "{length}");
        }
    }

    async fn what_is_not_rolled_up_yet_is_not_removed(hub: TestKeys) {
        let (usage, db) = (&hub.keys.usage, &hub.core.db);
        usage.count(&record(&hub, 1), ALLOWED, 3, START);
        usage.write(db, START).await.unwrap();
        let later = START + 30 * DAY;
        crate::sweep::sweep(db, later, || true).await.unwrap();
        let day = Span { length: DAY, since: START, until: START + DAY };
        let expected = Buckets::from([((START, String::new()), 3)]);
        assert_eq!(read(&hub, Some(1), &day).await, expected);
        roll_up(db, later, CHUNK_ROWS, || true).await.unwrap();
        crate::sweep::sweep(db, later, || true).await.unwrap();
        assert_eq!(read(&hub, Some(1), &day).await, expected);
        let minutes = Span { length: MINUTE, ..day };
        assert_eq!(read(&hub, Some(1), &minutes).await, Buckets::new());
    }
}

/// On SQLite a transaction ends with its process, and there is no other one.
#[tokio::test]
async fn a_process_frozen_in_a_roll_up_does_not_keep_others_from_writing() {
    let hub = TestKeys::open(true).await;
    let mut frozen = store::begin(&hub.core.db).await.unwrap();
    store::hold_marks(&mut frozen, Hold::Alone).await.unwrap();
    writes_in_spite_of(&hub, frozen).await;
}

#[tokio::test]
async fn a_process_frozen_in_a_batch_does_not_keep_others_from_writing() {
    let hub = TestKeys::open(true).await;
    let mut frozen = store::begin(&hub.core.db).await.unwrap();
    let count = Counted {
        tenant_no: hub.tenant.number(),
        family: "key_1".into(),
        span: MINUTE,
        start: START,
        outcome: ALLOWED.into(),
        requests: 1,
    };
    store::add_rows(&mut frozen, &[count]).await.unwrap();
    writes_in_spite_of(&hub, frozen).await;
}

/// Another process has a transaction that goes on no more.
async fn writes_in_spite_of(hub: &TestKeys, frozen: Tx) {
    let (db, usage) = (&hub.core.db, &hub.keys.usage);
    usage.count(&record(hub, 1), ALLOWED, 1, START);
    // It waits for a lock, for longer than PostgreSQL leaves the other one alone.
    usage.write(db, START).await.unwrap();
    let span = Span {
        length: MINUTE,
        since: 0,
        until: START + MINUTE,
    };
    assert_eq!(read(hub, Some(1), &span).await.len(), 1);
    assert!(frozen.commit().await.is_err());
}

/// Tables of the version that added each count to all three spans.
const BEFORE: usize = 9;
const OLD_COUNTS: Sql = Sql::same(
    "insert into key_usage (tenant_no, family, span, start_time, outcome, requests)
     select $1, 'key_1', s.span, $2 - $2 % s.span, '', 5
     from (select cast(60000000 as bigint) as span union all select 3600000000
           union all select 86400000000) s where true
     on conflict (tenant_no, family, span, start_time, outcome) do update
     set requests = key_usage.requests + excluded.requests",
);
const OLD_KEY: Sql = Sql::same(
    "insert into api_keys (key_id, tenant_no, tenant_id, hash, hint, name, scopes, cidrs, labels,
       requests_per_minute, create_time, created_by, family, last_use_time, version)
     values ('key_1', $1, 'tnt_1', $2, '', '', '[]', '[]', '{}', 0, 0, 'hub', 'key_1', $3, 1)",
);

/// Counts and the last use are there after the upgrade, and what is counted since in the same
/// minute is added to them.
async fn upgraded(postgres: bool) {
    let now = START + 90 * MINUTE;
    let hub = TestKeys::migrated(postgres, async |db: &Db| {
        let all = migrations();
        let before = Migrations {
            sqlite: &all.sqlite[..BEFORE],
            postgres: &all.postgres[..BEFORE],
            ..all
        };
        db.migrate(&hub_core::journal::migrations()).await.unwrap();
        db.migrate(&before).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        for at in [now - HOUR, now] {
            let counts = tx.query(OLD_COUNTS).bind(FIRST_TENANT).bind(at);
            counts.execute().await.unwrap();
        }
        let key = tx.query(OLD_KEY).bind(FIRST_TENANT);
        let key = key.bind(vec![7_u8; 32]).bind(now);
        key.execute().await.unwrap();
        tx.commit().await.unwrap();
    })
    .await;
    assert_eq!(hub.tenant.number(), FIRST_TENANT);
    let (db, usage) = (&hub.core.db, &hub.keys.usage);
    let (key, _) = crate::store::by_id(db, "key_1").await.unwrap().unwrap();
    assert_eq!(key.last_use_time, Some(now));
    usage.count(&record(&hub, 1), ALLOWED, 2, now);
    usage.count(&record(&hub, 1), ALLOWED, 4, now + HOUR);
    usage.write(db, now).await.unwrap();
    for rolled_up in [false, true] {
        if rolled_up {
            roll_up(db, now + DAY, CHUNK_ROWS, || true).await.unwrap();
        }
        for (length, expected) in [
            (MINUTE, vec![5, 7, 4]),
            (HOUR, vec![5, 7, 4]),
            (DAY, vec![16]),
        ] {
            let span = Span {
                length,
                since: START,
                until: START + DAY,
            };
            let told = read(&hub, Some(1), &span).await;
            assert_eq!(
                told.into_values().collect::<Vec<_>>(),
                expected,
                "{length} {rolled_up}"
            );
        }
    }
}

#[tokio::test]
async fn counts_of_the_version_before_are_there_after_the_upgrade_on_sqlite() {
    upgraded(false).await;
}

#[tokio::test]
async fn counts_of_the_version_before_are_there_after_the_upgrade_on_postgres() {
    upgraded(true).await;
}
