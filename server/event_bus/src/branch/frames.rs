//! What processes tell each other on a branch. Of no contract: processes of neighbouring versions
//! understand each other, nobody else sends them.

use hub_proto::hub::event_bus::v1::{AckBatch, AckResults};
use hub_proto::wire::{ConsumeResponse, LeasedEvents};

/// Path of the stream.
pub(crate) const PATH: &str = "/hub.internal.v1.Branches/Serve";

/// From the process that has the consumer.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Asked {
    #[prost(oneof = "asked::Frame", tags = "1, 2, 3")]
    pub(crate) frame: Option<asked::Frame>,
}

/// Frames of [`Asked`].
pub(crate) mod asked {
    /// What a frame asks for.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Frame {
        /// First frame.
        #[prost(message, tag = "1")]
        Enter(super::Enter),
        /// Deliver some events now.
        #[prost(message, tag = "2")]
        Turn(super::Turn),
        /// Settles or extends leases.
        #[prost(message, tag = "3")]
        Acks(super::AckBatch),
    }
}

/// Who consumes.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Enter {
    /// Name of the subscriptions.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Name of the consumer.
    #[prost(string, tag = "2")]
    pub(crate) member: String,
    /// Acks are answered once they are durable, each of them.
    #[prost(bool, tag = "3")]
    pub(crate) confirm_acks: bool,
}

/// Credit for once.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Turn {
    /// Counts from 1.
    #[prost(uint64, tag = "1")]
    pub(crate) number: u64,
    /// Most events.
    #[prost(uint64, tag = "2")]
    pub(crate) events: u64,
    /// Most bytes of them.
    #[prost(uint64, tag = "3")]
    pub(crate) bytes: u64,
}

/// From the process that has the subscriptions.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Said {
    #[prost(oneof = "said::Frame", tags = "1, 2, 3, 4, 5, 6")]
    pub(crate) frame: Option<said::Frame>,
}

/// Frames of [`Said`].
pub(crate) mod said {
    /// What a frame says.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub(crate) enum Frame {
        /// How things are, behind everything that was said before.
        #[prost(message, tag = "1")]
        Standing(super::Standing),
        /// Events with their leases.
        #[prost(message, tag = "2")]
        Events(super::LeasedEvents),
        /// For the consumer, as it is: a gap, or the state of a subscription.
        #[prost(message, tag = "3")]
        Told(super::ConsumeResponse),
        /// Whether everything here is settled.
        #[prost(bool, tag = "4")]
        CaughtUp(bool),
        /// Answers to acks.
        #[prost(message, tag = "5")]
        AckResults(super::AckResults),
        /// A subscription is not at work here any more.
        #[prost(message, tag = "6")]
        Left(super::Left),
    }
}

/// How a branch stands.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(crate) struct Standing {
    /// The last turn that is over.
    #[prost(uint64, tag = "1")]
    pub(crate) turn: u64,
    /// Subscriptions that have something to deliver.
    #[prost(uint64, tag = "2")]
    pub(crate) waiting: u64,
    /// Events that are leased and not settled.
    #[prost(uint64, tag = "3")]
    pub(crate) events: u64,
    /// Bytes of them.
    #[prost(uint64, tag = "4")]
    pub(crate) bytes: u64,
}

/// A subscription that has left; without id, one that may have.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Left {
    /// Number of its tenant.
    #[prost(int64, tag = "1")]
    pub(crate) tenant: i64,
    /// Its id.
    #[prost(string, tag = "2")]
    pub(crate) subscription_id: String,
    /// Something is left to do for it.
    #[prost(bool, tag = "3")]
    pub(crate) behind: bool,
}
