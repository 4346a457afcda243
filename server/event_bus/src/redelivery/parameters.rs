//! What a job of redelivery stores of itself.

use hub_core::auth::{Caller, Origin, Scopes};
use hub_core::error::{Error, Result};
use hub_core::jobs::Job;
use hub_core::journal::TenantRef;
use hub_proto::hub::event_bus::v1::RedeliverRequest;
use prost::Message;

use crate::visibility::Viewer;

/// What is done: whose job it is, and what the call asked for.
pub(super) struct Parameters {
    product: String,
    sees_all: bool,
    pub(super) request: RedeliverRequest,
}

/// Where the next chunk begins. Not so many entries into a page: a page of events in some state
/// changes with what the job does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Progress {
    /// Before this sequence; of ids: after so many.
    pub(super) before: Option<u64>,
    /// Subscriptions up to this id have the first event of the chunk already; empty = none.
    pub(super) after: String,
}

impl Parameters {
    pub(super) fn of(caller: &Caller, request: &RedeliverRequest) -> Parameters {
        let viewer = Viewer::of(caller);
        Parameters {
            product: viewer.product().unwrap_or_default().to_owned(),
            sees_all: viewer.sees_all(),
            request: request.clone(),
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.sees_all), self.product.len() as u8];
        bytes.extend_from_slice(self.product.as_bytes());
        bytes.extend_from_slice(&self.request.encode_to_vec());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Parameters> {
        let damaged = || Error::internal("the parameters of a redelivery are damaged");
        let [sees_all, length, rest @ ..] = bytes else {
            return Err(damaged());
        };
        let (product, request) = rest
            .split_at_checked(usize::from(*length))
            .ok_or_else(damaged)?;
        Ok(Parameters {
            product: String::from_utf8(product.to_vec()).map_err(Error::internal)?,
            sees_all: *sees_all == 1,
            request: RedeliverRequest::decode(request).map_err(Error::internal)?,
        })
    }

    /// Who the job works for: it sees what its caller saw.
    pub(super) fn caller(&self, job: &Job, tenant: &TenantRef) -> Caller {
        let all = self.sees_all.then(|| "hub:events.read_all".to_owned());
        Caller {
            key_id: job.created_by.as_str().into(),
            tenant: Some(tenant.clone()),
            product: Some(self.product.as_str().into()).filter(|_| !self.product.is_empty()),
            scopes: Scopes::new(all),
            all_tenants: false,
            origin: Origin::of_nothing(),
        }
    }
}

impl Progress {
    pub(super) fn encode(&self) -> Vec<u8> {
        let before = self.before.map_or(0, |before| before + 1);
        let mut bytes = before.to_be_bytes().to_vec();
        bytes.extend_from_slice(self.after.as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Progress> {
        if bytes.is_empty() {
            return Ok(Progress::default());
        }
        let damaged = || Error::internal("the progress of a redelivery is damaged");
        let (before, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        let after = match rest {
            // The version before counted entries here.
            [0, ..] => "",
            rest => std::str::from_utf8(rest).map_err(|_| damaged())?,
        };
        Ok(Progress {
            before: u64::from_be_bytes(*before).checked_sub(1),
            after: after.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_job_stores_of_itself_is_read_again() {
        for progress in [
            Progress::default(),
            Progress {
                before: Some(0),
                after: String::new(),
            },
            Progress {
                before: Some(7),
                after: "sub_1".to_owned(),
            },
        ] {
            assert_eq!(Progress::decode(&progress.encode()).unwrap(), progress);
        }
        assert_eq!(Progress::decode(&[]).unwrap(), Progress::default());
        assert!(Progress::decode(&[1, 2]).is_err());
        let older = [[0, 0, 0, 0, 0, 0, 0, 8], [0, 0, 0, 0, 0, 0, 0, 3]];
        let older = Progress::decode(older.as_flattened()).unwrap();
        assert_eq!((older.before, older.after.as_str()), (Some(7), ""));
        let parameters = Parameters {
            product: "portal".to_owned(),
            sees_all: true,
            request: RedeliverRequest {
                event_ids: vec!["evt_1".to_owned()],
                ..RedeliverRequest::default()
            },
        };
        let read = Parameters::decode(&parameters.encode()).unwrap();
        assert_eq!(read.product, "portal");
        assert!(read.sees_all && read.request == parameters.request);
        assert!(Parameters::decode(&[0, 9, 1]).is_err());
    }
}
