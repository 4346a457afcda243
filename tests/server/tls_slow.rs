//! A client over TLS that reads less than the hub writes: what TLS, the socket and HTTP/2 hold back
//! arrives all the same, whole and in order.

use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tonic::transport::{Channel, Endpoint};
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::tls::Authority;

/// What the socket of a slow reader holds, bytes.
const SOCKET_BYTES: u32 = 4 << 10;
/// What the client lets the hub send before it has read anything, bytes: more than sockets hold.
const WINDOW_BYTES: u32 = 64 << 20;
/// Streams of one connection.
const STREAMS: usize = 20;
/// Questions of a stream, each with a large answer.
const QUESTIONS: usize = 100;

fn question() -> ServerReflectionRequest {
    let symbol = "hub.event_bus.v1.EventBus".to_owned();
    ServerReflectionRequest {
        message_request: Some(MessageRequest::FileContainingSymbol(symbol)),
        ..Default::default()
    }
}

/// The answers to so many questions on one stream.
async fn answers(channel: Channel, questions: usize) -> Vec<Vec<Vec<u8>>> {
    let mut client = ServerReflectionClient::new(channel);
    let questions = tokio_stream::iter((0..questions).map(|_| question()));
    let asked = client.server_reflection_info(questions).await;
    let mut stream = asked.unwrap().into_inner();
    let mut answers = Vec::new();
    while let Some(answer) = stream.message().await.unwrap() {
        match answer.message_response {
            Some(MessageResponse::FileDescriptorResponse(found)) => {
                answers.push(found.file_descriptor_proto);
            }
            other => panic!("{other:?}"),
        }
    }
    answers
}

#[tokio::test]
async fn whatever_does_not_fit_into_the_socket_arrives_as_it_is_read() {
    let authority = Authority::new();
    let process = authority.serve(&[]).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(SOCKET_BYTES).unwrap();
    let stream = socket.connect(process.addr()).await.unwrap();
    let stream = authority.secure(stream, &["h2"]).await;
    let mut stream = Some(TokioIo::new(stream));
    let connect = tower::service_fn(move |_| {
        let stream = stream.take();
        async { stream.ok_or_else(|| std::io::Error::other("the connection broke")) }
    });
    let channel = Endpoint::from_static("http://localhost")
        .initial_connection_window_size(WINDOW_BYTES)
        .initial_stream_window_size(WINDOW_BYTES)
        .connect_with_connector(connect)
        .await
        .unwrap();
    let expected = answers(channel.clone(), 1).await.remove(0);
    let asking = (0..STREAMS).map(|_| tokio::spawn(answers(channel.clone(), QUESTIONS)));
    for asked in asking.collect::<Vec<_>>() {
        let told = asked.await.unwrap();
        assert_eq!(told.len(), QUESTIONS);
        assert!(told.iter().all(|answer| *answer == expected));
    }
    let bytes: usize = expected.iter().map(Vec::len).sum();
    assert!(bytes * STREAMS * QUESTIONS > 20 << 20, "{bytes}");
}
