//! Who does a chunk: one process at a time, and another one when that is gone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hub_core::jobs::Action;
use hub_proto::hub::core::v1::JobState;

use super::{Gate, KIND, LEASE_END, Place, Trick};
use crate::support::Backend;

/// How long the owner of a chunk is believed without a sign.
const LEASE: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_micros(1);
const PROCESSES: usize = 3;

impl Place {
    /// Until when the owner of the only job is believed.
    async fn lease_end(&self) -> i64 {
        let row: (i64,) = self.process.store.db.query(LEASE_END).one().await.unwrap();
        row.0
    }

    /// The process ends in the middle of the next chunk, as by kill -9, and starts again.
    async fn kill_in_a_chunk(&mut self) {
        let gate = Arc::new(Gate::default());
        self.process.play([Trick::Wait(gate.clone())]);
        tokio::select! {
            _ = self.process.jobs.step() => panic!("the gate is closed"),
            () = gate.reached.notified() => {}
        }
        let next = self.another(500).await;
        let killed = std::mem::replace(&mut self.process, next);
        killed.kind.tricks.lock().unwrap().clear();
        drop(killed);
    }
}

both_databases! {
    async fn a_job_goes_on_from_the_last_finished_chunk_after_its_process_ended(backend: Backend) {
        let mut place = Place::new(backend).await;
        let job_id = place.job(1200).await;
        assert!(place.process.jobs.step().await.unwrap());
        place.kill_in_a_chunk().await;
        if backend == Backend::Postgres {
            // Another process may have it, until it has been silent for too long.
            assert_eq!(place.process.run_all().await, 0);
            place.clock.advance(LEASE - MOMENT);
            assert_eq!(place.process.run_all().await, 0);
            place.clock.advance(MOMENT);
        }
        assert_eq!(place.process.run_all().await, 2);
        assert_eq!(place.state(&job_id).await, JobState::Succeeded);
        place.assert_done(&job_id, 1200).await;
    }

    async fn a_job_in_which_five_processes_ended_is_given_up(backend: Backend) {
        let mut place = Place::new(backend).await;
        let (job_id, healthy) = (place.job(1200).await, place.job(0).await);
        assert_eq!(place.control(&healthy, Action::Pause).await, Some(JobState::Paused));
        for _ in 0..5 {
            place.kill_in_a_chunk().await;
            place.clock.advance(LEASE);
        }
        assert_eq!(place.process.run_all().await, 1);
        assert_eq!(place.state(&job_id).await, JobState::Failed);
        place.assert_done(&job_id, 0).await;
        place.control(&healthy, Action::Resume).await.unwrap();
        assert_eq!(place.process.run_all().await, 1);
        assert_eq!(place.state(&healthy).await, JobState::Succeeded);
    }

    async fn an_owner_that_was_believed_gone_stores_nothing_any_more(backend: Backend) {
        let place = Place::new(backend).await;
        let (job_id, gate) = (place.job(700).await, Arc::new(Gate::default()));
        place.process.play([Trick::Wait(gate.clone())]);
        let mut frozen = Box::pin(place.process.jobs.step());
        tokio::select! {
            _ = &mut frozen => panic!("the gate is closed"),
            () = gate.reached.notified() => {}
        }
        // From here on it is not asked to go on, as in a process that was stopped.
        place.clock.advance(LEASE);
        let other = place.another(500).await;
        assert!(other.jobs.step().await.unwrap());
        place.assert_done(&job_id, 500).await;
        gate.opened.notify_one();
        assert!(frozen.await.unwrap());
        place.assert_done(&job_id, 500).await;
        assert_eq!(place.state(&job_id).await, JobState::Running);
        assert_eq!(other.run_all().await, 1);
        place.assert_done(&job_id, 700).await;
    }

    async fn the_owner_of_a_long_chunk_keeps_it_by_its_signs(backend: Backend) {
        let place = Place::new(backend).await;
        let (job_id, gate) = (place.job(500).await, Arc::new(Gate::default()));
        place.process.play([Trick::Wait(gate.clone())]);
        let meanwhile = async {
            gate.reached.notified().await;
            for _ in 0..20 {
                // A sign is due every 10 s, and may come a little later.
                place.clock.advance(Duration::from_secs(5));
                while place.lease_end().await <= place.clock.now() + 10_000_000 {
                    tokio::task::yield_now().await;
                }
                assert_eq!(place.process.run_all().await, 0);
            }
            gate.opened.notify_one();
        };
        tokio::join!(async { assert!(place.process.jobs.step().await.unwrap()) }, meanwhile);
        assert_eq!(place.state(&job_id).await, JobState::Succeeded);
        place.assert_done(&job_id, 500).await;
    }

    async fn of_several_processes_one_at_a_time_does_a_job(backend: Backend) {
        let place = Place::new(backend).await;
        let job_id = place.job(120).await;
        let slow = place.another(3).await;
        let mut racing = tokio::task::JoinSet::new();
        for number in 0..PROCESSES {
            // On SQLite there is one process; its chunks race.
            let jobs = match backend {
                Backend::Sqlite => slow.jobs.clone(),
                Backend::Postgres if number == 0 => slow.jobs.clone(),
                Backend::Postgres => {
                    let other = place.another(3).await;
                    other.jobs.register(KIND, slow.kind.clone());
                    other.jobs
                }
            };
            let (checked, tenant) = (slow.jobs.clone(), place.tenant.clone());
            let job_id = job_id.clone();
            racing.spawn(async move {
                loop {
                    jobs.step().await.unwrap();
                    let job = checked.find(&tenant, &job_id).await.unwrap().unwrap();
                    if job.state == JobState::Succeeded {
                        return;
                    }
                }
            });
        }
        while let Some(ended) = racing.join_next().await {
            ended.unwrap();
        }
        place.assert_done(&job_id, 120).await;
        assert_eq!(slow.kind.order.lock().unwrap().len(), 40);
        assert_eq!(slow.kind.running_max.load(Ordering::SeqCst), 1);
    }
}
