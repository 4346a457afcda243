//! Jobs through the API: how far they are, and what is done to them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hub_client::proto::hub::platform::v1::{
    ControlJobRequest, GetJobRequest, JobAction, ListAuditEntriesRequest, ListJobsRequest,
};
use hub_client::{Error, Transport};
use hub_core::clock::Clock;
use hub_core::jobs::{Chunk, Ended, Kind, NewJob, Next, Run, Working};
use hub_proto::hub::core::v1::{Job, JobState};
use hub_proto::hub::platform::v1::platform_client::PlatformClient;
use tokio::sync::Notify;
use tonic::Request;

use super::{Client, reason};
use crate::support::{Backend, TestHub};

const COUNT: &str = "test.count";
/// A kind that no process works on, so that its jobs stay as they are.
const WAITING: &str = "test.waiting";

/// Counts to its total, one item a chunk, as often as it is let.
#[derive(Default)]
struct Count {
    let_go: Notify,
    endless: AtomicBool,
    chunk_done: Notify,
}

impl Kind for Count {
    fn chunk<'a>(&'a self, run: &'a Run) -> Working<'a> {
        Box::pin(async move {
            if !self.endless.load(Ordering::SeqCst) {
                self.let_go.notified().await;
            }
            self.chunk_done.notify_one();
            let is_last = run.job().done + 1 == run.job().total;
            Ok(Ended::Unsaved(Chunk {
                done: 1,
                next: if is_last { Next::Finished } else { Next::More },
                ..Chunk::default()
            }))
        })
    }
}

/// A job of the first tenant. Whether this process is told of it is another matter.
async fn make(hub: &TestHub, kind: &'static str, total: i64) -> String {
    make_for(hub, &hub.first_tenant().id, new_job(kind, total)).await
}

async fn make_for(hub: &TestHub, tenant_id: &str, new: NewJob) -> String {
    let tenant = hub.core.tenancy.find(tenant_id).await.unwrap();
    let mut tx = hub.core.db.begin().await.unwrap();
    let job = hub.core.jobs.create(&mut tx, &tenant, new).await.unwrap();
    tx.commit().await.unwrap();
    job.job_id
}

fn new_job(kind: &'static str, total: i64) -> NewJob {
    NewJob {
        kind,
        resource: "sub_1".to_owned(),
        total,
        dry_run: true,
        created_by: "key_1".to_owned(),
        ..NewJob::default()
    }
}

/// Lets time go by, two seconds after two seconds, until something is so.
async fn in_time_of<T>(clock: &Clock, something: impl Future<Output = T>) -> T {
    tokio::pin!(something);
    loop {
        tokio::select! {
            done = &mut something => return done,
            () = tokio::task::yield_now() => clock.advance(Duration::from_secs(2)),
        }
    }
}

impl Client {
    async fn job(&self, job_id: &str) -> Result<Job, Error> {
        let request = GetJobRequest {
            job_id: job_id.to_owned(),
        };
        let answer = self.platform().get_job(request).await?;
        Ok(answer.into_inner().job.unwrap())
    }

    async fn control(&self, job_id: &str, action: JobAction) -> Result<Job, Error> {
        let request = ControlJobRequest {
            job_id: job_id.to_owned(),
            action: action.into(),
        };
        let answer = self.platform().control_job(request).await?;
        Ok(answer.into_inner().job.unwrap())
    }

    async fn jobs(&self, request: ListJobsRequest) -> Vec<String> {
        let answer = self.platform().list_jobs(request).await.unwrap();
        let jobs = answer.into_inner().jobs.into_iter();
        jobs.map(|job| job.job_id).collect()
    }

    /// The job once it is in a state.
    async fn job_in(&self, job_id: &str, state: JobState) -> Job {
        loop {
            let job = self.job(job_id).await.unwrap();
            if job.state() == state {
                return job;
            }
            tokio::task::yield_now().await;
        }
    }
}

fn of_states(states: &[JobState]) -> ListJobsRequest {
    ListJobsRequest {
        states: states.iter().map(|state| (*state).into()).collect(),
        ..ListJobsRequest::default()
    }
}

fn of_kind(kind: &str) -> ListJobsRequest {
    ListJobsRequest {
        kind: kind.to_owned(),
        ..ListJobsRequest::default()
    }
}

both_databases! {
    async fn a_job_begins_at_once_and_tells_how_far_it_is(hub: TestHub) {
        let (admin, kind) = (Client::admin(&hub), Arc::new(Count::default()));
        hub.core.jobs.register(COUNT, kind.clone());
        let job_id = make(&hub, COUNT, 2).await;
        hub.core.jobs.wake();
        kind.let_go.notify_one();
        kind.chunk_done.notified().await;
        while admin.job(&job_id).await.unwrap().done < 1 {
            tokio::task::yield_now().await;
        }
        let job = admin.job(&job_id).await.unwrap();
        assert_eq!((&*job.kind, &*job.resource, &*job.created_by), (COUNT, "sub_1", "key_1"));
        assert_eq!((job.total, job.failed, job.dry_run), (2, 0, true));
        assert_eq!(job.state(), JobState::Running);
        assert!(job.create_time.is_some() && job.complete_time.is_none());
        kind.let_go.notify_one();
        let job = admin.job_in(&job_id, JobState::Succeeded).await;
        assert!(job.done == 2 && job.complete_time.is_some());
    }

    async fn an_action_is_audited_and_needs_its_state(hub: TestHub) {
        let admin = Client::admin(&hub);
        let job_id = make(&hub, WAITING, 2).await;
        for (action, state) in [
            (JobAction::Pause, JobState::Paused),
            (JobAction::Resume, JobState::Queued),
            (JobAction::Cancel, JobState::Cancelled),
        ] {
            let after = admin.control(&job_id, action).await.unwrap();
            assert_eq!(after.state(), state);
            assert_eq!(admin.job(&job_id).await.unwrap(), after);
        }
        for action in [JobAction::Pause, JobAction::Resume, JobAction::Confirm, JobAction::Cancel] {
            let refused = admin.control(&job_id, action).await.unwrap_err();
            assert_eq!(refused.reason(), Some("JOB_STATE_INVALID"), "{action:?}");
            assert_eq!(refused.metadata()["state"], "CANCELLED");
        }
        let of_job = ListAuditEntriesRequest { resource: job_id, ..Default::default() };
        let entries = admin.audit(of_job).await;
        let changes: Vec<&str> = entries.iter().map(|entry| &*entry.changes["state"]).collect();
        assert_eq!(
            changes,
            [
                "JOB_STATE_QUEUED -> JOB_STATE_CANCELLED",
                "JOB_STATE_PAUSED -> JOB_STATE_QUEUED",
                "JOB_STATE_QUEUED -> JOB_STATE_PAUSED",
            ]
        );
        assert_eq!(entries[0].action, "hub.platform.v1.Platform/ControlJob");
    }

    async fn pause_and_resume_reach_a_job_at_work(hub: TestHub) {
        let (admin, kind) = (Client::admin(&hub), Arc::new(Count::default()));
        hub.core.jobs.register(COUNT, kind.clone());
        let job_id = make(&hub, COUNT, 3).await;
        hub.core.jobs.wake();
        admin.job_in(&job_id, JobState::Running).await;
        assert_eq!(admin.control(&job_id, JobAction::Pause).await.unwrap().done, 0);
        // The chunk at work comes to its end, and no other begins.
        kind.let_go.notify_one();
        while admin.job(&job_id).await.unwrap().done < 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(admin.job(&job_id).await.unwrap().state(), JobState::Paused);
        kind.endless.store(true, Ordering::SeqCst);
        admin.control(&job_id, JobAction::Resume).await.unwrap();
        assert_eq!(admin.job_in(&job_id, JobState::Succeeded).await.done, 3);
    }

    async fn a_list_is_newest_first_and_filtered_by_kind_and_state(hub: TestHub) {
        let admin = Client::admin(&hub);
        let mut made = Vec::new();
        for kind in [WAITING, COUNT, WAITING, "webhooks.retry_deliveries"] {
            made.push(make(&hub, kind, 1).await);
        }
        made.reverse();
        admin.control(&made[1], JobAction::Cancel).await.unwrap();
        let all = admin.jobs(ListJobsRequest::default()).await;
        assert_eq!(all, made);
        assert_eq!(admin.jobs(of_kind("test.")).await, made[1..]);
        assert_eq!(admin.jobs(of_kind("test.w")).await, [&*made[1], &*made[3]]);
        assert_eq!(admin.jobs(of_kind("%")).await, [""; 0]);
        let cancelled = of_states(&[JobState::Cancelled]);
        assert_eq!(admin.jobs(cancelled).await, [&*made[1]]);
        let both = of_states(&[JobState::Cancelled, JobState::Queued]);
        assert_eq!(admin.jobs(both).await, made);
        assert_eq!(admin.jobs(of_states(&[JobState::Succeeded])).await, [""; 0]);
        for states in [vec![0], vec![1, 77]] {
            let request = ListJobsRequest { states, ..Default::default() };
            let refused = admin.platform().list_jobs(request).await;
            assert_eq!(reason(refused.map_err(Into::into)), "FIELD_INVALID");
        }
    }

    async fn pages_are_bound_to_their_filter_and_tenant(hub: TestHub) {
        let admin = Client::admin(&hub);
        let mut made = Vec::new();
        for _ in 0..5 {
            made.push(make(&hub, WAITING, 1).await);
        }
        made.reverse();
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListJobsRequest { page_size: 2, page_token, ..Default::default() };
            let page = admin.platform().list_jobs(request).await.unwrap().into_inner();
            found.extend(page.jobs.into_iter().map(|job| job.job_id));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
            let other = Client::new(&hub, &hub.tenant().await.admin_key);
            let same = ListJobsRequest { page_token: page_token.clone(), ..Default::default() };
            let of_kind = ListJobsRequest { kind: "test.".to_owned(), ..same.clone() };
            for (client, request) in [(&other, same), (&admin, of_kind)] {
                let refused = client.platform().list_jobs(request).await;
                assert_eq!(reason(refused.map_err(Into::into)), "PAGE_TOKEN_INVALID");
            }
        }
        assert_eq!(found, made);
    }

    async fn a_job_of_another_tenant_is_not_there(hub: TestHub) {
        let job_id = make(&hub, WAITING, 1).await;
        let other = hub.tenant().await;
        let of_other = make_for(&hub, &other.id, new_job(WAITING, 1)).await;
        let client = Client::new(&hub, &other.admin_key);
        assert_eq!(client.jobs(ListJobsRequest::default()).await, [&*of_other]);
        for named in [&*job_id, "job_0198c0de"] {
            let refused = client.job(named).await.unwrap_err();
            assert_eq!(refused.reason(), Some("JOB_NOT_FOUND"));
            assert_eq!(refused.metadata()["jobId"], named);
            let refused = client.control(named, JobAction::Cancel).await;
            assert_eq!(reason(refused), "JOB_NOT_FOUND");
        }
        assert_eq!(Client::admin(&hub).job(&job_id).await.unwrap().state(), JobState::Queued);
    }

    async fn a_server_that_stops_ends_its_chunk_and_the_next_one_goes_on(backend: Backend) {
        let mut hub = TestHub::options(backend).manual_clock().start().await;
        let kind = Arc::new(Count::default());
        hub.core.jobs.register(COUNT, kind.clone());
        // Between two chunks there is a second, so that none begins by itself.
        let slowly = NewJob { max_per_second: 1, ..new_job(COUNT, 3) };
        let job_id = make_for(&hub, &hub.first_tenant().id, slowly).await;
        hub.core.jobs.wake();
        Client::admin(&hub).job_in(&job_id, JobState::Running).await;
        tokio::join!(hub.stop(), async { kind.let_go.notify_one() });
        hub.restart().await;
        let admin = Client::admin(&hub);
        assert_eq!(admin.job(&job_id).await.unwrap().done, 1);
        kind.endless.store(true, Ordering::SeqCst);
        hub.core.jobs.register(COUNT, kind.clone());
        let ended = admin.job_in(&job_id, JobState::Succeeded);
        assert_eq!(in_time_of(&hub.clock, ended).await.done, 3);
    }

    async fn an_operator_names_the_tenant(hub: TestHub) {
        let job_id = make(&hub, WAITING, 1).await;
        let operator = Client::operator(&hub);
        assert_eq!(reason(operator.job(&job_id).await), "JOB_NOT_FOUND");
        assert_eq!(operator.jobs(ListJobsRequest::default()).await, [""; 0]);
        let mut platform: PlatformClient<Transport> = operator.platform();
        let named = |message| {
            let mut request = Request::new(message);
            let tenant = hub.first_tenant().id.parse().unwrap();
            request.metadata_mut().insert("x-hub-tenant", tenant);
            request
        };
        let listed = platform.list_jobs(named(ListJobsRequest::default())).await.unwrap();
        assert_eq!(listed.into_inner().jobs[0].job_id, job_id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_another_process_made_is_found_within_two_seconds() {
    let hub = TestHub::options(Backend::Postgres)
        .manual_clock()
        .start()
        .await;
    let kind = Arc::new(Count::default());
    kind.endless.store(true, Ordering::SeqCst);
    hub.core.jobs.register(COUNT, kind.clone());
    // Nobody wakes this process.
    let job_id = make(&hub, COUNT, 1).await;
    let admin = Client::admin(&hub);
    in_time_of(&hub.clock, admin.job_in(&job_id, JobState::Succeeded)).await;
}
