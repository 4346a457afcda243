//! As much of NATS's protocol as the benchmarks speak.

use bytes::{Buf, Bytes, BytesMut};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Result;

/// What is read at once, at least.
const READ_BYTES: usize = 64 << 10;
const CONNECT: &[u8] = b"CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\
    \"no_responders\":true,\"lang\":\"rust\",\"version\":\"0.1.0\",\"protocol\":1}\r\nPING\r\n";

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    input: BytesMut,
    /// Subject of answers to this connection.
    pub(crate) inbox: String,
}

/// A message that was received.
#[derive(Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) reply: Option<Bytes>,
    pub(crate) headers: Bytes,
    pub(crate) payload: Bytes,
}

#[derive(Debug, PartialEq)]
enum Operation {
    Message(Message),
    Ping,
    Other,
}

impl Connection {
    /// Connects and subscribes to an inbox of its own.
    pub(crate) async fn open(port: u16, name: &str) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let mut connection = Connection {
            stream,
            input: BytesMut::with_capacity(READ_BYTES),
            inbox: format!("_INBOX.{name}"),
        };
        let subscribe = format!("SUB {} 1\r\nPING\r\n", connection.inbox);
        connection.send(CONNECT).await?;
        connection.send(subscribe.as_bytes()).await?;
        // INFO and the answers to both PINGs.
        for _ in 0..3 {
            connection.operation().await?;
        }
        Ok(connection)
    }

    pub(crate) async fn send(&mut self, operations: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(operations).await?)
    }

    /// Asks JetStream for something.
    pub(crate) async fn call(&mut self, subject: &str, request: &Value) -> Result<Value> {
        let publish = publish(subject, &self.inbox, request.to_string().as_bytes());
        self.send(&publish).await?;
        let answer: Value = serde_json::from_slice(&self.message().await?.payload)?;
        match answer.get("error") {
            Some(error) => Err(format!("NATS, {subject}: {error}").into()),
            None => Ok(answer),
        }
    }

    /// The next message.
    pub(crate) async fn message(&mut self) -> Result<Message> {
        loop {
            match self.operation().await? {
                Operation::Message(message) => return Ok(message),
                Operation::Ping => self.send(b"PONG\r\n").await?,
                Operation::Other => {}
            }
        }
    }

    /// The next message, if it has arrived.
    pub(crate) fn arrived(&mut self) -> Result<Option<Message>> {
        loop {
            match take(&mut self.input)? {
                Some(Operation::Message(message)) => return Ok(Some(message)),
                Some(Operation::Ping | Operation::Other) => {}
                None => return Ok(None),
            }
        }
    }

    async fn operation(&mut self) -> Result<Operation> {
        loop {
            if let Some(operation) = take(&mut self.input)? {
                return Ok(operation);
            }
            self.input.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err("NATS closed the connection".into());
            }
        }
    }
}

/// Encodes a message that asks for an answer.
pub(crate) fn publish(subject: &str, reply: &str, payload: &[u8]) -> Vec<u8> {
    let mut encoded = format!("PUB {subject} {reply} {}\r\n", payload.len()).into_bytes();
    encoded.extend_from_slice(payload);
    encoded.extend_from_slice(b"\r\n");
    encoded
}

/// Adds a message with headers to `out`; without `reply` nobody answers.
pub(crate) fn publish_with_headers(
    out: &mut Vec<u8>,
    subject: &str,
    reply: &str,
    headers: &str,
    payload: &[u8],
) {
    let total = headers.len() + payload.len();
    let head = format!("HPUB {subject} {reply} {} {total}\r\n", headers.len());
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(headers.as_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// Takes an operation from the front, if it is there whole.
fn take(input: &mut BytesMut) -> Result<Option<Operation>> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let line = std::str::from_utf8(&input[..end])?;
    let mut words = line.split(' ');
    let with_headers = match words.next() {
        Some("MSG") => false,
        Some("HMSG") => true,
        Some("PING") => {
            input.advance(end + 2);
            return Ok(Some(Operation::Ping));
        }
        Some("-ERR") => return Err(format!("NATS: {line}").into()),
        _ => {
            input.advance(end + 2);
            return Ok(Some(Operation::Other));
        }
    };
    // MSG subject sid [reply] bytes; HMSG subject sid [reply] bytes-of-headers bytes.
    let words: Vec<&str> = words.collect();
    let sizes = 1 + usize::from(with_headers);
    if words.len() < 2 + sizes {
        return Err(format!("NATS sent {line:?}").into());
    }
    let total: usize = words[words.len() - 1].parse()?;
    let headers: usize = match with_headers {
        true => words[words.len() - 2].parse()?,
        false => 0,
    };
    if input.len() < end + 2 + total + 2 {
        return Ok(None);
    }
    let reply = (words.len() == 3 + sizes).then(|| Bytes::copy_from_slice(words[2].as_bytes()));
    input.advance(end + 2);
    let headers = input.split_to(headers).freeze();
    let payload = input.split_to(total - headers.len()).freeze();
    input.advance(2);
    Ok(Some(Operation::Message(Message {
        reply,
        headers,
        payload,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_taken_only_whole() {
        let mut input = BytesMut::from(&b"PING\r\nMSG a 1 b 3\r\nx\r\n\r\nHMSG a 1 2 4\r\nhhp"[..]);
        assert_eq!(take(&mut input).unwrap(), Some(Operation::Ping));
        let message = |reply: Option<&'static str>, headers, payload| {
            Some(Operation::Message(Message {
                reply: reply.map(|reply| Bytes::from_static(reply.as_bytes())),
                headers: Bytes::from_static(headers),
                payload: Bytes::from_static(payload),
            }))
        };
        assert_eq!(take(&mut input).unwrap(), message(Some("b"), b"", b"x\r\n"));
        assert_eq!(take(&mut input).unwrap(), None);
        input.extend_from_slice(b"p\r\n");
        assert_eq!(take(&mut input).unwrap(), message(None, b"hh", b"pp"));
    }

    #[test]
    fn a_message_with_headers_has_both_sizes() {
        let mut out = Vec::new();
        publish_with_headers(&mut out, "s", "r", "NATS/1.0\r\n\r\n", b"xyz");
        assert_eq!(out, b"HPUB s r 12 15\r\nNATS/1.0\r\n\r\nxyz\r\n");
    }
}
