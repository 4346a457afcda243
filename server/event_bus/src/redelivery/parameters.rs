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
    /// Of ids: so many are done. Of a filter: events up to this sequence are.
    pub(super) done: u64,
    /// Of a filter: events from this sequence on came after the job; 0 = the job has not begun.
    pub(super) end: u64,
    /// Of a filter: events of the log that the next page looks at; 0 = as many as the first.
    pub(super) width: u64,
    /// The place of an event that some of its subscriptions have already; 0 = of none.
    pub(super) of: u64,
    /// Those up to this id have it.
    pub(super) after: String,
}

/// The first byte of progress. The build before had the first of eight bytes of a sequence here.
const VERSION: u8 = 1;

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
        let mut bytes = vec![VERSION];
        for number in [self.done, self.end, self.width, self.of] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(self.after.as_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8], of_ids: bool) -> Result<Progress> {
        let damaged = || Error::internal("the progress of a redelivery is damaged");
        let Some((version, mut rest)) = bytes.split_first() else {
            return Ok(Progress::default());
        };
        if *version == 0 {
            return Progress::older(bytes, of_ids).ok_or_else(damaged);
        }
        let mut numbers = [0; 4];
        for number in &mut numbers {
            let (bytes, after) = rest.split_first_chunk::<8>().ok_or_else(damaged)?;
            *number = u64::from_be_bytes(*bytes);
            rest = after;
        }
        let [done, end, width, of] = numbers;
        Ok(Progress {
            done,
            end,
            width,
            of,
            after: std::str::from_utf8(rest).map_err(|_| damaged())?.to_owned(),
        })
    }

    /// Of a job that the build before began: it worked from the newest event back.
    fn older(bytes: &[u8], of_ids: bool) -> Option<Progress> {
        let (before, rest) = bytes.split_first_chunk::<8>()?;
        let before = u64::from_be_bytes(*before).saturating_sub(1);
        let after = match rest {
            // An even older one counted entries here.
            [0, ..] => "",
            rest => std::str::from_utf8(rest).ok()?,
        };
        Some(match of_ids {
            true => Progress {
                done: before,
                of: before + 1,
                after: after.to_owned(),
                ..Progress::default()
            },
            false => Progress {
                end: before,
                ..Progress::default()
            },
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
                done: 7,
                end: 1 << 60,
                width: 9,
                of: 8,
                after: "sub_1".to_owned(),
            },
        ] {
            assert_eq!(
                Progress::decode(&progress.encode(), false).unwrap(),
                progress
            );
        }
        assert_eq!(Progress::decode(&[], true).unwrap(), Progress::default());
        assert!(Progress::decode(&[1, 2], false).is_err());
        assert!(Progress::decode(&[0, 2], false).is_err());
        let older = [&[0, 0, 0, 0, 0, 0, 0, 8][..], b"sub_1"].concat();
        let of_ids = Progress::decode(&older, true).unwrap();
        assert_eq!(
            (of_ids.done, of_ids.of, of_ids.after.as_str()),
            (7, 8, "sub_1")
        );
        // What is before 7 is still to be done, and the oldest of it comes next.
        let of_filter = Progress::decode(&older, false).unwrap();
        assert_eq!(
            (of_filter.done, of_filter.end, &*of_filter.after),
            (0, 7, "")
        );
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
