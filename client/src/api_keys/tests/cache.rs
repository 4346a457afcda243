//! The cache by itself.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::cache::{Answer, Cache, DECISIONS_MAX};
use super::super::question::Question;
use super::*;

fn question(number: usize) -> Question {
    Question {
        key: format!("tos_{number}"),
        product: "psa".into(),
        action: "tickets.read".into(),
        host: String::new(),
        path: "/".into(),
        client: None,
    }
}

fn answer(cache: &Cache, told: VerifyApiKeyResponse, covers: u32, asked: Instant) -> Answer {
    Answer {
        told: Arc::new(told),
        covers,
        left: covers,
        asked,
        generation: cache.generation(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_decision_is_used_for_as_many_requests_as_it_covers() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.opened(1, now);
    let asked = answer(&cache, allowed("key_1", 1, 50), 3, now);
    cache.keep(Arc::new(question(1)), asked, now);
    let used = std::iter::from_fn(|| cache.take(&question(1), now));
    assert_eq!(
        used.map(|decision| decision.ahead).collect::<Vec<_>>(),
        [2, 1, 0]
    );
    assert!(cache.take(&question(2), now).is_none());
}

#[tokio::test(start_paused = true)]
async fn however_many_keys_come_so_many_decisions_are_kept() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.opened(1, now);
    for number in 0..2 * DECISIONS_MAX {
        let told = answer(&cache, allowed(&format!("key_{number}"), 1, 50), 1, now);
        cache.keep(Arc::new(question(number)), told, now);
        // The same again takes no more room.
        let told = answer(&cache, allowed(&format!("key_{number}"), 1, 50), 1, now);
        cache.keep(Arc::new(question(number)), told, now);
    }
    assert!(cache.len() <= DECISIONS_MAX);
    assert!(cache.take(&question(0), now).is_none());
    assert!(cache.take(&question(2 * DECISIONS_MAX - 1), now).is_some());
    cache.heard(now + Duration::from_secs(11));
    assert_eq!(cache.len(), 0, "what is old is forgotten");
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted_ahead_as_they_came_and_within_a_tenth_of_what_is_left() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.opened(1, now);
    let portion = |cache: &Cache, seconds: f64| {
        let later = now + Duration::from_secs_f64(seconds);
        cache.portion(&question(1), 100, later)
    };
    assert_eq!(portion(&cache, 0.0), 1, "nothing is known");
    let mut told = answer(&cache, allowed("key_1", 1, 95), 8, now);
    told.left = 2;
    cache.keep(Arc::new(question(1)), told, now);
    assert_eq!(portion(&cache, 4.0), 1, "6 in 4 s");
    assert_eq!(portion(&cache, 1.0), 6);
    assert_eq!(
        portion(&cache, 0.0),
        9,
        "twice as many, but not all that is left"
    );
    let told = answer(&cache, allowed("key_1", 1, 5), 1, now);
    cache.keep(Arc::new(question(1)), Answer { left: 0, ..told }, now);
    assert_eq!(portion(&cache, 0.0), 1);
}

#[tokio::test(start_paused = true)]
async fn a_frame_before_the_first_is_no_watch() {
    let (mut cache, now) = (Cache::default(), Instant::now());
    cache.heard(now);
    let told = answer(&cache, allowed("key_1", 1, 50), 3, now);
    cache.keep(Arc::new(question(1)), told, now);
    assert_eq!(cache.len(), 0);
}
