//! Pausing, resuming, confirming and cancelling, between chunks and in the middle of one.

use std::sync::Arc;

use hub_core::jobs::Action;
use hub_proto::hub::core::v1::JobState;

use super::{Gate, Place, Trick};
use crate::support::Backend;

both_databases! {
    async fn a_paused_job_rests_and_goes_on_where_it_was(backend: Backend) {
        let place = Place::new(backend).await;
        let job_id = place.job(1200).await;
        assert!(place.process.jobs.step().await.unwrap());
        assert_eq!(place.control(&job_id, Action::Pause).await, Some(JobState::Paused));
        assert_eq!(place.process.run_all().await, 0);
        assert_eq!(place.control(&job_id, Action::Pause).await, None);
        assert_eq!(place.control(&job_id, Action::Confirm).await, None);
        assert_eq!(place.control(&job_id, Action::Resume).await, Some(JobState::Queued));
        assert_eq!(place.control(&job_id, Action::Resume).await, None);
        assert_eq!(place.process.run_all().await, 2);
        assert_eq!(place.state(&job_id).await, JobState::Succeeded);
        place.assert_done(&job_id, 1200).await;
        for action in [Action::Pause, Action::Resume, Action::Confirm, Action::Cancel] {
            assert_eq!(place.control(&job_id, action).await, None, "{action:?}");
        }
    }

    async fn a_cancelled_job_ends_and_what_was_done_stays_done(backend: Backend) {
        let place = Place::new(backend).await;
        let (waiting, begun) = (place.job(700).await, place.job(700).await);
        assert_eq!(place.control(&waiting, Action::Cancel).await, Some(JobState::Cancelled));
        assert!(place.process.jobs.step().await.unwrap());
        assert_eq!(place.control(&begun, Action::Cancel).await, Some(JobState::Cancelled));
        assert_eq!(place.process.run_all().await, 0);
        place.assert_done(&waiting, 0).await;
        place.assert_done(&begun, 500).await;
        assert_eq!(place.get(&begun).await.complete_time, Some(place.clock.now()));
    }

    async fn a_chunk_at_work_comes_to_its_end_before_a_pause(backend: Backend) {
        let place = Place::new(backend).await;
        let (job_id, gate) = (place.job(1200).await, Arc::new(Gate::default()));
        place.process.play([Trick::Wait(gate.clone())]);
        let meanwhile = async {
            gate.reached.notified().await;
            assert_eq!(place.control(&job_id, Action::Pause).await, Some(JobState::Paused));
            assert_eq!(place.process.run_all().await, 0);
            // Resumed, it still is at work: nobody begins a second chunk.
            assert_eq!(place.control(&job_id, Action::Resume).await, Some(JobState::Queued));
            assert_eq!(place.process.run_all().await, 0);
            assert_eq!(place.control(&job_id, Action::Pause).await, Some(JobState::Paused));
            gate.opened.notify_one();
        };
        tokio::join!(async { assert!(place.process.jobs.step().await.unwrap()) }, meanwhile);
        assert_eq!(place.state(&job_id).await, JobState::Paused);
        place.assert_done(&job_id, 500).await;
        place.control(&job_id, Action::Resume).await.unwrap();
        assert_eq!(place.process.run_all().await, 2);
        place.assert_done(&job_id, 1200).await;
        assert_eq!(place.process.kind.running_max.load(std::sync::atomic::Ordering::SeqCst), 1);
    }

    async fn a_job_that_is_cancelled_in_its_last_chunk_stays_cancelled(backend: Backend) {
        for (action, after) in [
            (Action::Cancel, JobState::Cancelled),
            // Nothing is left to be resumed.
            (Action::Pause, JobState::Succeeded),
        ] {
            let place = Place::new(backend).await;
            let (job_id, gate) = (place.job(300).await, Arc::new(Gate::default()));
            place.process.play([Trick::Wait(gate.clone())]);
            let meanwhile = async {
                gate.reached.notified().await;
                place.control(&job_id, action).await.unwrap();
                gate.opened.notify_one();
            };
            tokio::join!(async { assert!(place.process.jobs.step().await.unwrap()) }, meanwhile);
            assert_eq!(place.state(&job_id).await, after);
            place.assert_done(&job_id, 300).await;
        }
    }

    async fn a_guard_waits_for_somebody_to_confirm_and_is_lifted_for_that_job(backend: Backend) {
        let place = Place::new(backend).await;
        let job_id = place.job(700).await;
        assert!(place.process.jobs.step().await.unwrap());
        place.process.play([Trick::Guard]);
        assert_eq!(place.process.run_all().await, 1);
        let asking = place.get(&job_id).await;
        assert_eq!(asking.state, JobState::NeedsConfirmation);
        assert_eq!((&*asking.message, asking.done), ("too many", 500));
        assert_eq!(place.control(&job_id, Action::Pause).await, None);
        assert_eq!(place.control(&job_id, Action::Resume).await, None);
        assert_eq!(place.control(&job_id, Action::Confirm).await, Some(JobState::Queued));
        assert_eq!(place.get(&job_id).await.message, "");
        place.process.play([Trick::Guard, Trick::Guard]);
        assert_eq!(place.process.run_all().await, 1);
        assert_eq!(place.state(&job_id).await, JobState::Succeeded);
        place.assert_done(&job_id, 700).await;
        place.process.kind.tricks.lock().unwrap().clear();
        let refused = place.job(700).await;
        place.process.play([Trick::Guard]);
        assert_eq!(place.process.run_all().await, 1, "another job has its own guard");
        assert_eq!(place.control(&refused, Action::Cancel).await, Some(JobState::Cancelled));
    }
}
