//! How a domain passes a call on to the process that owns its work.

use tonic::Code;

use crate::auth::{Answer, Caller};
use crate::error::{CORE, Error};

/// What a generated client calls through. Each of its calls carries the credential of the caller
/// that it was made for (`internal.rs`).
pub type Channel = tower::util::BoxCloneSyncService<
    http::Request<tonic::body::Body>,
    http::Response<tonic::body::Body>,
    tonic::codegen::StdError,
>;

/// The other processes on the database; the server plugs in here.
pub trait Peers: Send + Sync {
    /// A channel to another process, for calls of this caller.
    ///
    /// Errors: `STORE_BUSY` if the process lives no more, if it has no room, or if the call was
    /// passed on once already.
    fn channel<'a>(&'a self, process_id: &'a str, caller: &'a Caller) -> Answer<'a, Channel>;
}

/// There are no others.
pub struct NoPeers;

impl Peers for NoPeers {
    fn channel<'a>(&'a self, _: &'a str, _: &'a Caller) -> Answer<'a, Channel> {
        Box::pin(async { Err(moving("owner_gone")) })
    }
}

/// The work of a call has no owner that could be reached (`STORE_BUSY`): it is about to get another
/// one. `cause` is one word for programs.
pub fn moving(cause: &'static str) -> Error {
    let message = "The work that the call needs is moving to another process of the hub. Send the \
                   call again.";
    Error::new(Code::Unavailable, CORE, "STORE_BUSY", message)
        .with("cause", cause)
        .retry_after(crate::processes::BEAT_INTERVAL)
}
