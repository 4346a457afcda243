//! What people do to a job: pause, resume, confirm, cancel.

use hub_proto::hub::core::v1::JobState;

use super::{Job, store};
use crate::clock::Micros;
use crate::error::Result;
use crate::journal::TenantRef;
use crate::storage::Tx;

/// What ControlJob does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// RUNNING or QUEUED -> PAUSED.
    Pause,
    /// PAUSED -> QUEUED.
    Resume,
    /// NEEDS_CONFIRMATION -> QUEUED, and the guard is lifted.
    Confirm,
    /// Any unfinished state -> CANCELLED.
    Cancel,
}

/// What an action makes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Controlled {
    pub state: JobState,
    pub confirmed: bool,
}

/// A job of a tenant, locked until the transaction ends. Errors: `STORE_BUSY`.
pub async fn lock(tx: &mut Tx, tenant: &TenantRef, job_id: &str) -> Result<Option<Job>> {
    store::lock(tx, tenant, job_id).await
}

/// Does to a job that `tx` locked what an action says, and returns it as it is then; `None` if its
/// state does not allow the action. Call [`super::Jobs::wake`] after the commit. Errors:
/// `STORE_BUSY`.
pub async fn control(
    tx: &mut Tx,
    tenant: &TenantRef,
    job: &Job,
    action: Action,
    now: Micros,
) -> Result<Option<Job>> {
    let Some(controlled) = controlled(job.state, action) else {
        return Ok(None);
    };
    store::control(tx, tenant, &job.job_id, controlled, now).await?;
    lock(tx, tenant, &job.job_id).await
}

fn controlled(state: JobState, action: Action) -> Option<Controlled> {
    use JobState::{Cancelled, NeedsConfirmation, Paused, Queued, Running};
    let state = match (action, state) {
        (Action::Pause, Queued | Running) => Paused,
        (Action::Resume, Paused) | (Action::Confirm, NeedsConfirmation) => Queued,
        (Action::Cancel, Queued | Running | Paused | NeedsConfirmation) => Cancelled,
        _ => return None,
    };
    Some(Controlled {
        state,
        confirmed: action == Action::Confirm,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_needs_its_state() {
        use JobState::{Cancelled, Failed, NeedsConfirmation, Paused, Queued, Running, Succeeded};
        let states = [
            Queued,
            Running,
            Paused,
            NeedsConfirmation,
            Succeeded,
            Failed,
            Cancelled,
        ];
        let after = |action| states.map(|state| controlled(state, action).map(|one| one.state));
        let (paused, queued) = (Some(Paused), Some(Queued));
        let none = [None; 3];
        let four = |four: [Option<JobState>; 4]| [&four[..], &none[..]].concat();
        assert_eq!(after(Action::Pause)[..], four([paused, paused, None, None]));
        assert_eq!(after(Action::Resume)[..], four([None, None, queued, None]));
        assert_eq!(after(Action::Confirm)[..], four([None, None, None, queued]));
        assert_eq!(after(Action::Cancel)[..], four([Some(Cancelled); 4]));
        let lifted = controlled(NeedsConfirmation, Action::Confirm).unwrap();
        assert!(lifted.confirmed && !controlled(Paused, Action::Resume).unwrap().confirmed);
    }
}
