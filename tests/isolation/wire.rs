//! Calls as anyone could make them: any bytes, any headers, as gRPC or as JSON, and everything that
//! comes back.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use prost_reflect::DynamicMessage;
use tokio::net::TcpStream;
use tonic::Status;
use tonic_types::StatusExt;

use super::contract::Rpc;

/// A stream that says nothing for so long has said all that it has to say now.
const SILENCE: Duration = Duration::from_millis(60);
/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection.
pub struct Wire {
    addr: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

/// How a call is put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Grpc,
    Json,
}

/// A call, ready to be sent.
#[derive(Clone)]
pub struct Call {
    pub rpc: Rpc,
    pub headers: Vec<(&'static str, String)>,
    pub messages: Vec<DynamicMessage>,
    pub form: Form,
}

/// All that came back.
pub struct Heard {
    /// Empty if the call succeeded.
    pub reason: String,
    pub code: tonic::Code,
    /// What can be decoded of a gRPC answer.
    pub messages: Vec<DynamicMessage>,
    /// The other side has ended it.
    pub ended: bool,
    /// Everything, with encoded headers decoded; what is no text is left out.
    pub text: String,
}

impl Wire {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> Wire {
        let stream = TcpStream::connect(addr).await.unwrap();
        // Headers and body are two writes: the second would wait for the first's acknowledgement.
        stream.set_nodelay(true).unwrap();
        let executor = TokioExecutor::new();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(executor, TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        Wire { addr, sender }
    }

    /// Sends a call and hears it to the end, or until nothing more comes.
    pub async fn call(&mut self, call: &Call) -> Heard {
        let request = call.request(self.addr);
        let sent = self.sender.send_request(request);
        let response = tokio::time::timeout(PATIENCE, sent).await;
        let response = response
            .unwrap_or_else(|_| panic!("no answer to {}", call.shown()))
            .unwrap();
        let (head, mut body) = response.into_parts();
        let streams = call.rpc.policy.server_streaming;
        let (mut data, mut trailers, mut ended) = (BytesMut::new(), HeaderMap::new(), false);
        loop {
            let wait = if streams { SILENCE } else { PATIENCE };
            let Ok(next) = tokio::time::timeout(wait, body.frame()).await else {
                break;
            };
            match next {
                None => {
                    ended = true;
                    break;
                }
                Some(Err(error)) => panic!("{}: {error}", call.rpc.policy.method),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => data.extend_from_slice(&bytes),
                    Err(frame) => trailers = frame.into_trailers().unwrap_or_default(),
                },
            }
            if streams && data.len() > 1 << 20 {
                break;
            }
        }
        let mut heard = Heard::new(call, [&head.headers, &trailers], &data);
        heard.ended = ended;
        heard
    }
}

impl Call {
    fn request(&self, addr: SocketAddr) -> Request<Full<Bytes>> {
        let mut body = BytesMut::new();
        for message in &self.messages {
            let encoded = match self.form {
                Form::Grpc => crate::support::frame(&message.encode_to_vec()),
                Form::Json => serde_json::to_vec(message).unwrap().into(),
            };
            body.extend_from_slice(&encoded);
        }
        let content = match self.form {
            Form::Grpc => "application/grpc",
            Form::Json => "application/json",
        };
        let mut request = Request::post(format!("http://{addr}/{}", self.rpc.policy.method))
            .header(header::CONTENT_TYPE, content)
            .header(header::TE, "trailers");
        for (name, value) in &self.headers {
            request = request.header(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        request.body(Full::new(body.freeze())).unwrap()
    }

    /// The call as a person reads it.
    pub fn shown(&self) -> String {
        let messages: Vec<_> = self.messages.iter().map(shown).collect();
        format!(
            "{} {:?} {}",
            self.rpc.policy.method,
            self.headers,
            messages.join(" ")
        )
    }

    /// Everything that the call says; who hears it again learns nothing.
    pub fn said(&self) -> String {
        let mut said = Vec::new();
        for (_, value) in &self.headers {
            said.extend_from_slice(value.as_bytes());
            said.push(b'\n');
        }
        for message in &self.messages {
            said.extend_from_slice(&message.encode_to_vec());
        }
        String::from_utf8_lossy(&said).into_owned()
    }
}

/// A message as JSON with its names in order, or as it is where it has none.
pub fn shown(message: &DynamicMessage) -> String {
    let value = serde_json::to_value(message);
    value.map_or_else(|_| format!("{message:?}"), |value| value.to_string())
}

impl Heard {
    fn new(call: &Call, heads: [&HeaderMap; 2], data: &[u8]) -> Heard {
        let mut everything = data.to_vec();
        for (name, value) in heads.into_iter().flatten() {
            everything.extend_from_slice(format!("\n{name}: ").as_bytes());
            everything.extend_from_slice(value.as_bytes());
            let decoded = STANDARD_NO_PAD
                .decode(value)
                .or_else(|_| STANDARD.decode(value));
            everything.extend_from_slice(&decoded.unwrap_or_default());
        }
        let mut heard = Heard {
            reason: String::new(),
            code: tonic::Code::Ok,
            messages: Vec::new(),
            ended: false,
            text: String::from_utf8_lossy(&everything).into_owned(),
        };
        match call.form {
            Form::Json => heard.read_json(data),
            Form::Grpc => heard.read_grpc(call, heads, data),
        }
        heard
    }

    fn read_grpc(&mut self, call: &Call, heads: [&HeaderMap; 2], data: &[u8]) {
        let status = heads.into_iter().find_map(Status::from_header_map);
        if let Some(status) = status.filter(|status| status.code() != tonic::Code::Ok) {
            self.code = status.code();
            let info = status.get_details_error_info();
            self.reason = info.map(|info| info.reason).unwrap_or_default();
            self.text.push_str(status.message());
            self.text
                .push_str(&String::from_utf8_lossy(status.details()));
        }
        let mut rest = data;
        while let Some((prefix, behind)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
            let Some(message) = behind.get(..length) else {
                break;
            };
            let message = DynamicMessage::decode(call.rpc.output.clone(), message).unwrap();
            self.messages.push(message);
            rest = &behind[length..];
        }
    }

    fn read_json(&mut self, data: &[u8]) {
        let answer: serde_json::Value = serde_json::from_slice(data).unwrap_or_default();
        if answer.get("code").is_some_and(serde_json::Value::is_string) {
            self.code = tonic::Code::Unknown;
            let reason = &answer["details"][0]["debug"]["reason"];
            self.reason = reason.as_str().unwrap_or_default().to_owned();
        }
        // Text as it is meant: `\u00e9` and `\/` hide nothing.
        self.text.push_str(&answer.to_string());
    }

    /// Whether a text is in the answer.
    pub fn contains(&self, text: &str) -> bool {
        self.text.contains(text)
    }
}
