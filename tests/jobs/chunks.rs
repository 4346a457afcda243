//! How a job is worked off: in chunks, in turn, at its speed, and what is kept of it.

use std::collections::BTreeMap;
use std::time::Duration;

use hub_core::clock::micros;
use hub_core::jobs::{Action, Chunk, ItemError, KEPT, Next, UNFINISHED_MAX};
use hub_proto::hub::core::v1::JobState;

use super::{Place, START, Trick};
use crate::support::Backend;

/// The shortest time that a clock tells.
const MOMENT: Duration = Duration::from_micros(1);

fn failed_items(numbers: std::ops::Range<usize>) -> Vec<ItemError> {
    let error = |number| ItemError {
        resource: format!("evt_{number}"),
        reason: "EVENT_NOT_FOUND".to_owned(),
        message: "There is no such event.".to_owned(),
    };
    numbers.map(error).collect()
}

both_databases! {
    async fn a_job_is_worked_off_in_chunks_and_each_item_is_done_once(backend: Backend) {
        let place = Place::new(backend).await;
        let job_id = place.job(1200).await;
        assert_eq!(place.state(&job_id).await, JobState::Queued);
        assert!(place.process.jobs.step().await.unwrap());
        let first = place.get(&job_id).await;
        assert_eq!((first.state, first.done, first.total), (JobState::Running, 500, 1200));
        assert_eq!(first.complete_time, None);
        assert_eq!(place.process.run_all().await, 2);
        let last = place.get(&job_id).await;
        assert_eq!(last.state, JobState::Succeeded);
        assert_eq!(last.complete_time, Some(START));
        assert_eq!((&*last.created_by, &*last.resource), ("key_1", "sub_1"));
        place.assert_done(&job_id, 1200).await;
    }

    async fn a_speed_limit_is_kept_also_by_another_process(backend: Backend) {
        let place = Place::new(backend).await;
        let job_id = place.job_of(&place.tenant, 250, 100).await.unwrap();
        assert_eq!(place.process.run_all().await, 1, "100 items, then a pause of a second");
        place.clock.advance(Duration::from_secs(1) - MOMENT);
        let process = place.another(500).await;
        assert_eq!(process.run_all().await + place.process.run_all().await, 0);
        place.clock.advance(MOMENT);
        assert_eq!(process.run_all().await, 1);
        assert_eq!(place.get(&job_id).await.done, 200);
        place.clock.advance(Duration::from_secs(1));
        assert_eq!(place.process.run_all().await, 1);
        place.assert_done(&job_id, 250).await;
    }

    async fn tenants_take_turns_and_so_do_the_jobs_of_each(backend: Backend) {
        let place = Place::new(backend).await;
        let other = place.process.store.tenant("other").await;
        let mut jobs = Vec::new();
        for _ in 0..3 {
            jobs.push(place.job(1500).await);
        }
        let late = place.job_of(&other, 1500, 0).await.unwrap();
        for _ in 0..6 {
            assert!(place.process.jobs.step().await.unwrap());
            place.clock.advance(MOMENT);
        }
        let order = std::mem::take(&mut *place.process.kind.order.lock().unwrap());
        let of_other = order.iter().filter(|job_id| **job_id == late).count();
        assert_eq!(of_other, 3, "one busy tenant takes half of the turns: {order:?}");
        for job_id in jobs {
            assert!(order.contains(&job_id), "{job_id} waits behind the others: {order:?}");
        }
    }

    async fn outcomes_add_up_and_the_first_twenty_failures_stay(backend: Backend) {
        let place = Place::new(backend).await;
        let job_id = place.job(60).await;
        let say = |errors: std::ops::Range<usize>, next| Trick::Say(Chunk {
            done: 30,
            failed: errors.len() as i64,
            counters: BTreeMap::from([("missing".to_owned(), errors.len() as i64)]),
            errors: failed_items(errors),
            next,
            ..Chunk::default()
        });
        place.process.play([say(0..15, Next::More), say(15..45, Next::Finished)]);
        assert_eq!(place.process.run_all().await, 2);
        let job = place.get(&job_id).await;
        assert_eq!((job.state, job.done, job.failed), (JobState::Succeeded, 60, 45));
        assert_eq!(job.counters, BTreeMap::from([("missing".to_owned(), 45)]));
        assert_eq!(job.errors, failed_items(0..20));
    }

    async fn a_tenant_has_a_hundred_unfinished_jobs_at_most(backend: Backend) {
        let place = Place::new(backend).await;
        let first = place.job(1).await;
        for _ in 1..UNFINISHED_MAX {
            place.job(1).await;
        }
        let refused = place.job_of(&place.tenant, 1, 0).await.unwrap_err();
        assert_eq!(refused.reason(), "QUOTA_EXCEEDED");
        let other = place.process.store.tenant("other").await;
        place.job_of(&other, 1, 0).await.unwrap();
        place.control(&first, Action::Cancel).await.unwrap();
        place.job(1).await;
    }

    async fn a_job_is_kept_for_thirty_days_after_its_end(backend: Backend) {
        let place = Place::new(backend).await;
        let ended = place.job(1).await;
        place.process.run_all().await;
        let unfinished = place.job(1).await;
        let kept = Duration::from_micros(KEPT.unsigned_abs());
        place.clock.advance(kept - MOMENT);
        place.process.jobs.sweep().await.unwrap();
        assert_eq!(place.state(&ended).await, JobState::Succeeded);
        place.clock.advance(MOMENT);
        place.process.jobs.sweep().await.unwrap();
        let gone = place.process.jobs.find(&place.tenant, &ended).await.unwrap();
        assert_eq!(gone, None);
        assert_eq!(place.state(&unfinished).await, JobState::Queued);
        assert_eq!(micros(kept), 30 * 24 * 3600 * 1_000_000);
    }
}
