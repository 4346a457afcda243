use super::*;
use crate::hub::core::v1::Progress;
use crate::hub::event_bus::v1 as plain;
use plain::cloud_event::CloudEventAttributeValue;
use plain::cloud_event::cloud_event_attribute_value::Attr;

fn event(id: &str) -> plain::CloudEvent {
    let timestamp = prost_types::Timestamp {
        seconds: 7,
        nanos: 5,
    };
    let attributes = [
        ("flag", Attr::CeBoolean(true)),
        ("number", Attr::CeInteger(-5)),
        ("subject", Attr::CeString("ticket/42".to_owned())),
        ("raw", Attr::CeBytes(Bytes::from_static(b"\x00\xff"))),
        ("uri", Attr::CeUri("https://example.com".to_owned())),
        ("ref", Attr::CeUriRef("/a".to_owned())),
        ("time", Attr::CeTimestamp(timestamp)),
    ];
    plain::CloudEvent {
        id: id.to_owned(),
        source: "/psa".to_owned(),
        spec_version: "1.0".to_owned(),
        r#type: "ticket.created".to_owned(),
        attributes: attributes
            .into_iter()
            .map(|(name, attr)| {
                (
                    name.to_owned(),
                    CloudEventAttributeValue { attr: Some(attr) },
                )
            })
            .collect(),
        data: Some(plain::cloud_event::Data::TextData("{\"id\":42}".to_owned())),
    }
}

fn record(sequence: u64) -> plain::EventRecord {
    plain::EventRecord {
        sequence,
        event: Some(event(&sequence.to_string())),
        event_id: format!("evt_{sequence}"),
        ..Default::default()
    }
}

/// Both messages have the same bytes, and each decodes the bytes of the other.
fn assert_mirrors<P, M>(plain: &P, mirror: &M)
where
    P: Message + Default + PartialEq + std::fmt::Debug,
    M: Message + Default + PartialEq + std::fmt::Debug,
{
    assert_eq!(plain.encode_to_vec(), mirror.encode_to_vec());
    assert_eq!(plain.encoded_len(), mirror.encoded_len());
    assert_eq!(
        &P::decode(mirror.encode_to_vec().as_slice()).unwrap(),
        plain
    );
    assert_eq!(
        &M::decode(Bytes::from(plain.encode_to_vec())).unwrap(),
        mirror
    );
}

#[test]
fn publish_requests_have_the_same_bytes() {
    let events = vec![event("1"), event("2")];
    let encoded = events
        .iter()
        .map(|event| event.encode_to_vec().into())
        .collect();
    assert_mirrors(
        &plain::PublishRequest {
            events,
            validate_only: true,
            independent: true,
        },
        &PublishRequest {
            events: encoded,
            validate_only: true,
            independent: true,
        },
    );
}

#[test]
fn publish_stream_requests_have_the_same_bytes() {
    let events = vec![event("1"), plain::CloudEvent::default()];
    let encoded = events
        .iter()
        .map(|event| event.encode_to_vec().into())
        .collect();
    assert_mirrors(
        &plain::PublishStreamRequest {
            frame: 9,
            events,
            continue_on_error: true,
            independent: true,
            brief_results: true,
            tenant_id: "tnt_1".to_owned(),
        },
        &PublishStreamRequest {
            frame: 9,
            events: encoded,
            continue_on_error: true,
            independent: true,
            brief_results: true,
            tenant_id: "tnt_1".to_owned(),
        },
    );
}

#[test]
fn a_batch_of_encoded_records_has_the_same_bytes() {
    let records = vec![record(1), record(2), plain::EventRecord::default()];
    let mut run = BytesMut::new();
    let mut expected = 0;
    for record in &records {
        append_record(&mut run, &record.encode_to_vec());
        expected += appended_len(record.encoded_len());
    }
    assert_eq!(run.len(), expected);
    for cursor in ["", "after"] {
        let batch = EventBatch {
            records: run.clone().freeze(),
            cursor: cursor.to_owned(),
        };
        let events = plain::EventBatch {
            events: records.clone(),
            cursor: cursor.to_owned(),
        };
        assert_mirrors(&events, &batch);
        let frame = plain::subscribe_response::Frame::Events(events);
        assert_mirrors(
            &plain::SubscribeResponse { frame: Some(frame) },
            &SubscribeResponse {
                frame: Some(subscribe_response::Frame::Events(batch)),
            },
        );
    }
}

#[test]
fn other_frames_have_the_same_bytes() {
    let progress = Progress {
        sequence: 3,
        cursor: "c".to_owned(),
        ..Default::default()
    };
    let frame = plain::subscribe_response::Frame::Progress(progress.clone());
    assert_mirrors(
        &plain::SubscribeResponse { frame: Some(frame) },
        &SubscribeResponse {
            frame: Some(subscribe_response::Frame::Progress(progress)),
        },
    );
}

#[test]
fn every_frame_of_the_contract_is_mirrored() {
    use plain::subscribe_response::Frame;
    let frames = [
        Frame::Opened(Default::default()),
        Frame::Events(Default::default()),
        Frame::Progress(Default::default()),
        Frame::CaughtUp(Default::default()),
        Frame::Gap(Default::default()),
        Frame::Closing(Default::default()),
    ];
    for frame in frames {
        let plain = plain::SubscribeResponse { frame: Some(frame) };
        let mirror = SubscribeResponse::decode(plain.encode_to_vec().as_slice()).unwrap();
        assert_mirrors(&plain, &mirror);
        assert!(mirror.frame.is_some());
    }
}

#[test]
fn a_view_of_an_event_has_the_same_bytes() {
    let event = event("1");
    let bytes = Bytes::from(event.encode_to_vec());
    let view = CloudEventView::decode(bytes.clone()).unwrap();
    assert_mirrors(&event, &view);
    assert_eq!(view.id, "1");
    assert_eq!(view.attributes.len(), event.attributes.len());
    assert!(
        bytes.as_ptr_range().contains(&view.source.as_ptr()),
        "the view copies nothing"
    );
}

#[test]
fn a_view_shows_every_kind_of_payload() {
    use plain::cloud_event::Data;
    let any = prost_types::Any {
        type_url: "t/x".to_owned(),
        value: vec![1, 2],
    };
    let payloads = [
        Data::BinaryData(Bytes::from_static(b"\x00")),
        Data::TextData("text".to_owned()),
        Data::ProtoData(any),
    ];
    for data in payloads {
        let event = plain::CloudEvent {
            data: Some(data),
            ..event("1")
        };
        let view = CloudEventView::decode(event.encode_to_vec().as_slice()).unwrap();
        assert_mirrors(&event, &view);
        assert!(view.data.is_some());
    }
}

#[test]
fn leased_events_have_the_same_bytes() {
    let until = Some(prost_types::Timestamp {
        seconds: 9,
        nanos: 1,
    });
    let plain_event = |sequence: u64| plain::LeasedEvent {
        lease_id: format!("1-{sequence}-1-1"),
        record: Some(record(sequence)),
        attempt: 2,
        lease_until: until,
        previous_error: "refused".to_owned(),
        redelivery: true,
    };
    let mirror_event = |sequence: u64| LeasedEvent {
        lease_id: format!("1-{sequence}-1-1"),
        record: record(sequence).encode_to_vec().into(),
        attempt: 2,
        lease_until: until,
        previous_error: "refused".to_owned(),
        redelivery: true,
    };
    let (cursor, tenant_id) = ("c".to_owned(), "tnt_1".to_owned());
    assert_mirrors(
        &plain::ConsumeResponse {
            frame: Some(plain::consume_response::Frame::Events(
                plain::LeasedEvents {
                    events: vec![plain_event(1), plain_event(2)],
                    cursor: cursor.clone(),
                },
            )),
            tenant_id: tenant_id.clone(),
        },
        &ConsumeResponse {
            frame: Some(consume_response::Frame::Events(LeasedEvents {
                events: vec![mirror_event(1), mirror_event(2)],
                cursor,
            })),
            tenant_id,
        },
    );
    assert_mirrors(
        &plain::PullResponse {
            events: vec![plain_event(7)],
            backlog: 3,
            state: 2,
        },
        &PullResponse {
            events: vec![mirror_event(7)],
            backlog: 3,
            state: 2,
        },
    );
}

#[test]
fn every_frame_of_a_consume_stream_is_known_to_the_mirror() {
    use plain::consume_response::Frame;
    let frames = [
        Frame::Opened(Default::default()),
        Frame::Progress(Default::default()),
        Frame::CaughtUp(Default::default()),
        Frame::Gap(Default::default()),
        Frame::Closing(Default::default()),
        Frame::AckResults(Default::default()),
        Frame::State(6),
    ];
    for frame in frames {
        let plain = plain::ConsumeResponse {
            frame: Some(frame),
            tenant_id: String::new(),
        };
        let mirror = ConsumeResponse::decode(plain.encode_to_vec().as_slice()).unwrap();
        assert_mirrors(&plain, &mirror);
        assert!(mirror.frame.is_some());
    }
}
