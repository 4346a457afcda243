//! Mirrors of what hands out leases: the events in them stay encoded.

use bytes::Bytes;
use prost::Message;
use prost_types::Timestamp;

/// `hub.event_bus.v1.ConsumeResponse` whose leased events are encoded.
#[derive(Clone, PartialEq, Message)]
pub struct ConsumeResponse {
    /// What this frame says.
    #[prost(oneof = "consume_response::Frame", tags = "1, 2, 3, 4, 5, 6, 7, 8")]
    pub frame: Option<consume_response::Frame>,
    /// With a key that serves all tenants: whose gap or state this is.
    #[prost(string, tag = "9")]
    pub tenant_id: String,
}

/// Frames of [`ConsumeResponse`].
pub mod consume_response {
    use crate::hub::core::v1::{CaughtUp, Closing, Gap, Opened, Progress};
    use crate::hub::event_bus::v1::{AckResults, SubscriptionState};

    /// What a frame says.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Frame {
        /// First frame.
        #[prost(message, tag = "1")]
        Opened(Opened),
        /// Events with their leases.
        #[prost(message, tag = "2")]
        Events(super::LeasedEvents),
        /// Heartbeat.
        #[prost(message, tag = "3")]
        Progress(Progress),
        /// The backlog is worked off.
        #[prost(message, tag = "4")]
        CaughtUp(CaughtUp),
        /// Positions were lost to retention.
        #[prost(message, tag = "5")]
        Gap(Gap),
        /// Last frame.
        #[prost(message, tag = "6")]
        Closing(Closing),
        /// Answers to acks.
        #[prost(message, tag = "7")]
        AckResults(AckResults),
        /// The subscription's state changed.
        #[prost(enumeration = "SubscriptionState", tag = "8")]
        State(i32),
    }
}

/// `hub.event_bus.v1.LeasedEvents`.
#[derive(Clone, PartialEq, Message)]
pub struct LeasedEvents {
    /// In order within each key.
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<LeasedEvent>,
    /// Position of the newest one.
    #[prost(string, tag = "2")]
    pub cursor: String,
}

/// `hub.event_bus.v1.LeasedEvent` whose record is an encoded `EventRecord`.
#[derive(Clone, PartialEq, Message)]
pub struct LeasedEvent {
    /// Names this lease in acks.
    #[prost(string, tag = "1")]
    pub lease_id: String,
    /// The encoded event.
    #[prost(bytes = "bytes", tag = "2")]
    pub record: Bytes,
    /// 1 for the first attempt.
    #[prost(uint32, tag = "3")]
    pub attempt: u32,
    /// End of the lease.
    #[prost(message, optional, tag = "4")]
    pub lease_until: Option<Timestamp>,
    /// Error of the attempt before.
    #[prost(string, tag = "5")]
    pub previous_error: String,
    /// True if it was delivered before, or skipped.
    #[prost(bool, tag = "6")]
    pub redelivery: bool,
}

/// `hub.event_bus.v1.PullResponse` whose leased events are encoded.
#[derive(Clone, PartialEq, Message)]
pub struct PullResponse {
    /// At most 1 MiB in all.
    #[prost(message, repeated, tag = "1")]
    pub events: Vec<LeasedEvent>,
    /// Matching events not settled.
    #[prost(uint64, tag = "2")]
    pub backlog: u64,
    /// State of the subscription.
    #[prost(
        enumeration = "crate::hub::event_bus::v1::SubscriptionState",
        tag = "3"
    )]
    pub state: i32,
}
