//! As much of Redis's protocol (RESP2) as the benchmarks speak.

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::Result;

/// What is read at once, at least.
const READ_BYTES: usize = 64 << 10;

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    input: BytesMut,
}

/// A reply, or the head of one that has elements.
#[derive(Debug, PartialEq)]
pub(crate) enum Reply {
    Text(Bytes),
    Nil,
    Array(usize),
}

impl Connection {
    pub(crate) async fn open(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Connection {
            stream,
            input: BytesMut::with_capacity(READ_BYTES),
        })
    }

    /// Sends encoded commands.
    pub(crate) async fn send(&mut self, commands: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(commands).await?)
    }

    /// Sends a command and takes its reply.
    pub(crate) async fn call(&mut self, parts: &[&[u8]]) -> Result<Reply> {
        self.send(&command(parts)).await?;
        self.reply().await
    }

    /// The next reply; elements of an array follow.
    pub(crate) async fn reply(&mut self) -> Result<Reply> {
        loop {
            if let Some(reply) = take(&mut self.input)? {
                return Ok(reply);
            }
            self.input.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.input).await? == 0 {
                return Err("Redis closed the connection".into());
            }
        }
    }

    /// The next reply, if it has arrived.
    pub(crate) fn arrived(&mut self) -> Result<Option<Reply>> {
        take(&mut self.input)
    }
}

/// Encodes a command.
pub(crate) fn command(parts: &[&[u8]]) -> Vec<u8> {
    let mut encoded = format!("*{}\r\n", parts.len()).into_bytes();
    for part in parts {
        encoded.extend_from_slice(format!("${}\r\n", part.len()).as_bytes());
        encoded.extend_from_slice(part);
        encoded.extend_from_slice(b"\r\n");
    }
    encoded
}

/// Takes a reply from the front, if it is there whole.
fn take(input: &mut BytesMut) -> Result<Option<Reply>> {
    let Some(end) = input.windows(2).position(|pair| pair == b"\r\n") else {
        return Ok(None);
    };
    let line = &input[..end];
    let kind = line.first().copied().unwrap_or_default();
    if kind == b'-' {
        return Err(format!("Redis: {}", String::from_utf8_lossy(line)).into());
    }
    if kind == b'+' || kind == b':' {
        let text = input.split_to(end + 2).freeze().slice(1..end);
        return Ok(Some(Reply::Text(text)));
    }
    let length: i64 = std::str::from_utf8(&line[1..])?.parse()?;
    let Ok(length) = usize::try_from(length) else {
        input.advance(end + 2);
        return Ok(Some(Reply::Nil));
    };
    match kind {
        b'*' => {
            input.advance(end + 2);
            Ok(Some(Reply::Array(length)))
        }
        b'$' if input.len() < end + 2 + length + 2 => Ok(None),
        b'$' => {
            input.advance(end + 2);
            let text = input.split_to(length).freeze();
            input.advance(2);
            Ok(Some(Reply::Text(text)))
        }
        _ => Err("Redis sent something else than a reply".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_taken_one_by_one_and_only_whole() {
        let mut input = BytesMut::from(&b"*2\r\n$3\r\na\r\n\r\n+OK\r\n$-1\r\n$4\r\nxy"[..]);
        assert_eq!(take(&mut input).unwrap(), Some(Reply::Array(2)));
        let text = |text: &'static [u8]| Some(Reply::Text(Bytes::from_static(text)));
        assert_eq!(take(&mut input).unwrap(), text(b"a\r\n"));
        assert_eq!(take(&mut input).unwrap(), text(b"OK"));
        assert_eq!(take(&mut input).unwrap(), Some(Reply::Nil));
        assert_eq!(take(&mut input).unwrap(), None);
        input.extend_from_slice(b"zz\r\n");
        assert_eq!(take(&mut input).unwrap(), text(b"xyzz"));
    }

    #[test]
    fn an_error_of_redis_is_an_error() {
        let mut input = BytesMut::from(&b"-ERR no\r\n"[..]);
        assert!(take(&mut input).is_err());
    }
}
