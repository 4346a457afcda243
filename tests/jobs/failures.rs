//! What becomes of a job whose chunk fails.

use std::time::Duration;

use hub_core::error::Error;
use hub_proto::hub::core::v1::JobState;

use super::{Place, Trick};
use crate::support::Backend;

both_databases! {
    async fn a_chunk_that_failed_left_nothing_and_comes_again(backend: Backend) {
        let place = Place::new(backend).await;
        let job_id = place.job(700).await;
        let defect = || Trick::Fail(Error::internal("on purpose"));
        place.process.play([defect(), Trick::Panic]);
        assert_eq!(place.process.run_all().await, 1);
        place.assert_done(&job_id, 0).await;
        place.clock.advance(Duration::from_secs(1));
        assert_eq!(place.process.run_all().await, 1);
        assert_eq!(place.state(&job_id).await, JobState::Running);
        place.clock.advance(Duration::from_secs(2));
        assert_eq!(place.process.run_all().await, 2);
        assert_eq!(place.state(&job_id).await, JobState::Succeeded);
        place.assert_done(&job_id, 700).await;
    }

    async fn a_database_that_is_busy_is_waited_for_without_end(backend: Backend) {
        let place = Place::new(backend).await;
        let job_id = place.job(1).await;
        for _ in 0..20 {
            place.process.play([Trick::Fail(Error::store_busy("The disk is full", "disk_full"))]);
            assert_eq!(place.process.run_all().await, 1);
            place.clock.advance(Duration::from_secs(5));
        }
        assert_eq!(place.process.run_all().await, 1);
        assert_eq!(place.state(&job_id).await, JobState::Succeeded);
        place.assert_done(&job_id, 1).await;
    }

    async fn five_defects_in_a_row_or_one_refusal_end_it(backend: Backend) {
        let place = Place::new(backend).await;
        let job_id = place.job(1).await;
        for failures in 1..=5 {
            assert_eq!(place.state(&job_id).await == JobState::Failed, failures > 5);
            place.process.play([Trick::Fail(Error::internal("on purpose"))]);
            assert_eq!(place.process.run_all().await, 1);
            place.clock.advance(Duration::from_secs(60));
        }
        let failed = place.get(&job_id).await;
        assert_eq!(failed.state, JobState::Failed);
        assert!(failed.complete_time.is_some() && failed.message.contains("5 times"));
        assert_eq!(place.process.run_all().await, 0);
        let refused = place.job(1).await;
        place.process.play([Trick::Fail(Error::field("filter", "is of nothing"))]);
        assert_eq!(place.process.run_all().await, 1);
        let refused = place.get(&refused).await;
        assert_eq!(refused.state, JobState::Failed);
        assert_eq!(refused.message, "filter is of nothing. Fix the field.");
    }
}
