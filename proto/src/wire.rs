//! Mirrors of messages on the hot path of the event bus: the same bytes on the wire, but events
//! stay encoded, so that a payload is never decoded, copied or re-encoded on its way through.
//!
//! On the wire `bytes` and a message field are alike: tag, length, content.

mod consume;

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{self, DecodeContext, WireType};
use prost::{DecodeError, Message};

pub use consume::{ConsumeResponse, LeasedEvent, LeasedEvents, PullResponse, consume_response};

/// `hub.event_bus.v1.PublishRequest` whose events are encoded [`CloudEventView`]s.
#[derive(Clone, PartialEq, Message)]
pub struct PublishRequest {
    /// Encoded `CloudEvent`s.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub events: Vec<Bytes>,
    /// Only check; nothing is stored.
    #[prost(bool, tag = "2")]
    pub validate_only: bool,
    /// Store each event on its own merit.
    #[prost(bool, tag = "3")]
    pub independent: bool,
}

/// `hub.event_bus.v1.PublishStreamRequest` whose events are encoded [`CloudEventView`]s.
#[derive(Clone, PartialEq, Message)]
pub struct PublishStreamRequest {
    /// The caller's number of this frame.
    #[prost(uint64, tag = "1")]
    pub frame: u64,
    /// Encoded `CloudEvent`s.
    #[prost(bytes = "bytes", repeated, tag = "2")]
    pub events: Vec<Bytes>,
    /// Read from the first frame: go on after a bad frame.
    #[prost(bool, tag = "3")]
    pub continue_on_error: bool,
    /// Whose events these are, for keys that serve all tenants.
    #[prost(string, tag = "4")]
    pub tenant_id: String,
    /// Store each event on its own merit.
    #[prost(bool, tag = "5")]
    pub independent: bool,
    /// Read from the first frame: ack only what is remarkable.
    #[prost(bool, tag = "6")]
    pub brief_results: bool,
}

/// `hub.event_bus.v1.SubscribeResponse` whose batch of events is encoded.
#[derive(Clone, PartialEq, Message)]
pub struct SubscribeResponse {
    /// What this frame says.
    #[prost(oneof = "subscribe_response::Frame", tags = "1, 2, 3, 4, 5, 6")]
    pub frame: Option<subscribe_response::Frame>,
}

/// Frames of [`SubscribeResponse`].
pub mod subscribe_response {
    use crate::hub::core::v1::{CaughtUp, Closing, Gap, Opened, Progress};

    /// What a frame says.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Frame {
        /// First frame.
        #[prost(message, tag = "1")]
        Opened(Opened),
        /// Events.
        #[prost(message, tag = "2")]
        Events(super::EventBatch),
        /// Heartbeat and watermark.
        #[prost(message, tag = "3")]
        Progress(Progress),
        /// What follows is live.
        #[prost(message, tag = "4")]
        CaughtUp(CaughtUp),
        /// Positions are missing.
        #[prost(message, tag = "5")]
        Gap(Gap),
        /// Last frame.
        #[prost(message, tag = "6")]
        Closing(Closing),
    }
}

const EVENTS_TAG: u32 = 1;
const CURSOR_TAG: u32 = 2;

/// `hub.event_bus.v1.EventBatch` whose records are encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventBatch {
    /// A run of `repeated EventRecord events = 1` entries, each with tag and length; see
    /// [`append_record`].
    pub records: Bytes,
    /// Position after them.
    pub cursor: String,
}

/// Appends an encoded `EventRecord` to a run for [`EventBatch::records`].
pub fn append_record(run: &mut BytesMut, record: &[u8]) {
    encoding::encode_key(EVENTS_TAG, WireType::LengthDelimited, run);
    encoding::encode_varint(record.len() as u64, run);
    run.extend_from_slice(record);
}

/// Bytes that [`append_record`] adds for a record of `len` bytes.
pub fn appended_len(len: usize) -> usize {
    encoding::key_len(EVENTS_TAG) + encoding::encoded_len_varint(len as u64) + len
}

impl Message for EventBatch {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        buf.put_slice(&self.records);
        if !self.cursor.is_empty() {
            encoding::string::encode(CURSOR_TAG, &self.cursor, buf);
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl bytes::Buf,
        ctx: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            EVENTS_TAG => {
                let mut record = Bytes::new();
                encoding::bytes::merge(wire_type, &mut record, buf, ctx)?;
                // The run is not shared while decoding, so this appends in place.
                let run = std::mem::take(&mut self.records);
                let mut run = run
                    .try_into_mut()
                    .unwrap_or_else(|shared| BytesMut::from(&shared[..]));
                append_record(&mut run, &record);
                self.records = run.freeze();
                Ok(())
            }
            CURSOR_TAG => encoding::string::merge(wire_type, &mut self.cursor, buf, ctx),
            _ => encoding::skip_field(wire_type, tag, buf, ctx),
        }
    }

    fn encoded_len(&self) -> usize {
        let cursor = match self.cursor.is_empty() {
            true => 0,
            false => encoding::string::encoded_len(CURSOR_TAG, &self.cursor),
        };
        self.records.len() + cursor
    }

    fn clear(&mut self) {
        self.records.clear();
        self.cursor.clear();
    }
}

/// `hub.event_bus.v1.CloudEvent` with every part as a slice of the received bytes, for checks
/// without a copy. Strings are not known to be UTF-8 yet.
#[derive(Clone, PartialEq, Message)]
pub struct CloudEventView {
    /// Producer's id.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    /// Context, a URI-reference.
    #[prost(bytes = "bytes", tag = "2")]
    pub source: Bytes,
    /// Always "1.0".
    #[prost(bytes = "bytes", tag = "3")]
    pub spec_version: Bytes,
    /// What happened.
    #[prost(bytes = "bytes", tag = "4")]
    pub r#type: Bytes,
    /// Optional and extension attributes, in the order sent; a name can come twice.
    #[prost(message, repeated, tag = "5")]
    pub attributes: Vec<AttributeEntry>,
    /// The payload.
    #[prost(oneof = "cloud_event_view::Data", tags = "6, 7, 8")]
    pub data: Option<cloud_event_view::Data>,
}

/// Parts of [`CloudEventView`].
pub mod cloud_event_view {
    use bytes::Bytes;

    /// The payload.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Data {
        /// Any bytes.
        #[prost(bytes = "bytes", tag = "6")]
        BinaryData(Bytes),
        /// Text.
        #[prost(bytes = "bytes", tag = "7")]
        TextData(Bytes),
        /// An encoded `google.protobuf.Any`.
        #[prost(bytes = "bytes", tag = "8")]
        ProtoData(Bytes),
    }
}

/// An entry of the map of attributes.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeEntry {
    /// Name.
    #[prost(bytes = "bytes", tag = "1")]
    pub key: Bytes,
    /// Value; absent means a value without a type.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AttributeValue>,
}

/// A typed attribute value.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeValue {
    /// The value.
    #[prost(oneof = "attribute_value::Attr", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub attr: Option<attribute_value::Attr>,
}

/// Parts of [`AttributeValue`].
pub mod attribute_value {
    use bytes::Bytes;

    /// A value in one of the seven CloudEvents types.
    #[derive(Clone, PartialEq, prost::Oneof)]
    pub enum Attr {
        /// Boolean.
        #[prost(bool, tag = "1")]
        CeBoolean(bool),
        /// 32-bit integer.
        #[prost(int32, tag = "2")]
        CeInteger(i32),
        /// String.
        #[prost(bytes = "bytes", tag = "3")]
        CeString(Bytes),
        /// Bytes.
        #[prost(bytes = "bytes", tag = "4")]
        CeBytes(Bytes),
        /// Absolute URI.
        #[prost(bytes = "bytes", tag = "5")]
        CeUri(Bytes),
        /// URI-reference.
        #[prost(bytes = "bytes", tag = "6")]
        CeUriRef(Bytes),
        /// Timestamp.
        #[prost(message, tag = "7")]
        CeTimestamp(prost_types::Timestamp),
    }
}

#[cfg(test)]
mod tests;
