//! Frames as they are sent: events are encoded once, by the caller, and never again.

use bytes::{Buf, BufMut, Bytes};
use hub_proto::hub::event_bus::v1::{CloudEvent, PublishStreamResponse};
use hub_proto::wire::PublishStreamRequest;
use prost::Message;
use prost::encoding::{self, decode_varint};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic_prost::ProstDecoder;

/// Tag of `PublishStreamRequest.events`.
const EVENTS_TAG: u32 = 2;
/// What a frame has beside its events, rounded up.
pub(super) const FRAME_HEAD_BYTES: usize = 64;

/// An entry of `PublishStreamRequest.events`, with tag and length.
pub(super) fn encode_event(event: &CloudEvent) -> Bytes {
    let mut entry = Vec::with_capacity(encoding::message::encoded_len(EVENTS_TAG, event));
    encoding::message::encode(EVENTS_TAG, event, &mut entry);
    entry.into()
}

/// The entries of a run, in order; what is behind a damaged entry is dropped.
pub(super) fn split_events(run: &Bytes) -> Vec<Bytes> {
    let mut entries = Vec::new();
    let mut start = 0;
    while start < run.len() {
        let mut rest = &run[start..];
        // The tag is below 16, so its key is one byte.
        rest.advance(1);
        let Ok(length) = decode_varint(&mut rest) else {
            break;
        };
        let end = (run.len() - rest.len()).saturating_add(length as usize);
        if end > run.len() {
            break;
        }
        entries.push(run.slice(start..end));
        start = end;
    }
    entries
}

/// A frame: everything but the events, and the encoded run of events.
#[derive(Debug)]
pub(super) struct EncodedFrame {
    pub(super) head: PublishStreamRequest,
    pub(super) events: Bytes,
}

/// Sends [`EncodedFrame`]s as `PublishStreamRequest`s.
#[derive(Debug, Default)]
pub(super) struct FrameCodec;

impl Codec for FrameCodec {
    type Encode = EncodedFrame;
    type Decode = PublishStreamResponse;
    type Encoder = FrameEncoder;
    type Decoder = ProstDecoder<PublishStreamResponse>;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(BufferSettings::default())
    }
}

/// Encoder of [`FrameCodec`].
#[derive(Debug)]
pub(super) struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = EncodedFrame;
    type Error = Status;

    fn encode(&mut self, frame: EncodedFrame, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(frame.head.encoded_len() + frame.events.len());
        frame
            .head
            .encode(buffer)
            .map_err(|error| Status::internal(format!("A frame can't be encoded: {error}.")))?;
        buffer.put(frame.events);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // Small frames that wait are written together.
        BufferSettings::new(16 << 10, 64 << 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_events_is_split_where_it_was_joined() {
        let event = |id: &str, size: usize| {
            encode_event(&CloudEvent {
                id: id.into(),
                r#type: "x".repeat(size),
                ..Default::default()
            })
        };
        let entries = [event("1", 0), event("2", 300), event("3", 70_000)];
        let run = Bytes::from(entries.concat());
        assert_eq!(split_events(&run), entries);
    }

    #[test]
    fn a_frame_is_the_message_of_the_contract() {
        let event = CloudEvent {
            id: "1".into(),
            ..Default::default()
        };
        let head = PublishStreamRequest {
            frame: 7,
            independent: true,
            ..Default::default()
        };
        let mut sent = head.encode_to_vec();
        sent.extend_from_slice(&encode_event(&event));
        let received = PublishStreamRequest::decode(&sent[..]).unwrap();
        assert_eq!((received.frame, received.independent), (7, true));
        assert_eq!(received.events, [Bytes::from(event.encode_to_vec())]);
    }
}
