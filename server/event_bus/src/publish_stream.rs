//! PublishStream: frames in, acknowledgements out, without waiting for each other.
//!
//! Every frame is one batch, handed to the journal in the order sent. What was committed
//! meanwhile is acknowledged in one frame. The stream's own task does it all: no hand-over to
//! another thread stands between a frame and the journal's queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use futures_util::{FutureExt, StreamExt};
use hub_core::auth::{Authenticator, Caller};
use hub_core::clock::{Micros, micros, timestamp};
use hub_core::error::{Error, Result};
use hub_core::id;
use hub_core::journal::{Position, Row};
use hub_core::module::Core;
use hub_proto::hub::core::v1::{Closing, ClosingReason, Opened, Progress};
use hub_proto::hub::event_bus::v1::publish_stream_response::Frame;
use hub_proto::hub::event_bus::v1::{
    PublishAck, PublishRejected, PublishResult, PublishStreamResponse, PublishWindow,
};
use hub_proto::wire::PublishStreamRequest;
use tonic::{Status, Streaming};

use crate::publish::{self, Publisher, Stored};
use crate::routing::Configurations;

/// Frames that may wait for their commit.
const WINDOW_FRAMES: u32 = 64;
/// Bytes of frames that may wait for their commit.
const WINDOW_BYTES: u32 = 4 << 20;

/// An open stream.
pub struct PublishSession {
    core: Core,
    authenticator: Arc<dyn Authenticator>,
    caller: Caller,
    configurations: Configurations,
    product: Arc<str>,
    inbound: Streaming<PublishStreamRequest>,
    publisher: Option<Publisher>,
    unacked: FuturesOrdered<BoxFuture<'static, Done>>,
    unacked_bytes: usize,
    options: Option<Options>,
    row: Row,
    last_frame: u64,
    acked_through: u64,
    position: Option<Position>,
    ready: VecDeque<Frame>,
    input: Input,
    spoke_at: Micros,
    /// When the key was last seen to work.
    checked_at: Micros,
    ends_at: Micros,
}

/// What the first frame says for all.
#[derive(Clone, Copy)]
struct Options {
    continue_on_error: bool,
    brief_results: bool,
}

enum Input {
    Open,
    /// Nothing more is read; what was read is still answered, then this ends the stream.
    Ended(End),
}

/// How a stream ends.
enum End {
    /// The client is done, or everything was said.
    Quiet,
    Closing(Closing),
    Failed(Status),
}

/// A frame that was decided.
struct Done {
    frame: u64,
    bytes: usize,
    publisher: Option<Publisher>,
    result: Result<Stored>,
}

impl PublishSession {
    /// Begins a stream for an admitted caller.
    pub fn new(
        core: Core,
        authenticator: Arc<dyn Authenticator>,
        configurations: Configurations,
        caller: Caller,
        inbound: Streaming<PublishStreamRequest>,
    ) -> Result<Self> {
        let product = caller.product()?.clone();
        let now = core.clock.now();
        let ends_at = now + micros(crate::stream_age(&core));
        Ok(PublishSession {
            core,
            authenticator,
            caller,
            configurations,
            product,
            inbound,
            publisher: None,
            unacked: FuturesOrdered::new(),
            unacked_bytes: 0,
            options: None,
            row: Row::default(),
            last_frame: 0,
            acked_through: 0,
            position: None,
            ready: VecDeque::new(),
            input: Input::Open,
            spoke_at: now,
            checked_at: now,
            ends_at,
        })
    }

    /// Sends Opened and the window first.
    pub async fn open(&mut self) -> Result<()> {
        let session_id = id::new("ses");
        let mut opened = Opened {
            session_id,
            cursor: String::new(),
            head_sequence: 0,
            heartbeat_interval: prost_types::Duration::try_from(
                self.core.limits.heartbeat_interval,
            )
            .ok(),
        };
        if let Some(tenant) = self.caller.tenant.clone() {
            let log = self.core.journal.log(&tenant).await?;
            let publisher = Publisher {
                product: self.product.clone(),
                log,
                configurations: self.configurations.clone(),
            };
            opened.head_sequence = publisher.log.head().seq;
            opened.cursor = publish::cursor(&self.core, &publisher, publisher.log.head());
            self.publisher = Some(publisher);
        }
        self.ready.push_back(Frame::Opened(opened));
        self.ready.push_back(Frame::Window(PublishWindow {
            max_unacked_frames: WINDOW_FRAMES,
            max_unacked_bytes: WINDOW_BYTES,
        }));
        Ok(())
    }

    /// The next frame to send; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<PublishStreamResponse, Status>> {
        loop {
            if let Some(frame) = self.ready.pop_front() {
                self.spoke_at = self.core.clock.now();
                return Some(Ok(PublishStreamResponse { frame: Some(frame) }));
            }
            if let Input::Ended(end) = &mut self.input
                && self.unacked.is_empty()
            {
                match std::mem::replace(end, End::Quiet) {
                    End::Quiet => return None,
                    End::Failed(status) => return Some(Err(status)),
                    End::Closing(closing) => self.ready.push_back(Frame::Closing(closing)),
                }
            } else if let Err(error) = self.step().await {
                self.end(End::Failed(error.into()));
            }
        }
    }

    fn end(&mut self, end: End) {
        self.input = Input::Ended(end);
    }

    async fn step(&mut self) -> Result<()> {
        let now = self.core.clock.now();
        self.check_key(now).await?;
        let beat_at = crate::beat_at(&self.core, self.spoke_at, now);
        let open = matches!(self.input, Input::Open);
        let takes = open
            && self.unacked.len() < WINDOW_FRAMES as usize
            && self.unacked_bytes < WINDOW_BYTES as usize;
        tokio::select! {
            biased;
            Some(done) = self.unacked.next() => self.acknowledge(done),
            () = self.core.draining.cancelled(), if open => {
                self.close(ClosingReason::Draining, Duration::from_millis(500));
            }
            frame = self.inbound.message(), if takes => match frame {
                Ok(Some(frame)) => self.take(frame).await?,
                Ok(None) => self.end(End::Quiet),
                Err(status) => self.end(End::Failed(status)),
            },
            () = self.core.clock.sleep_until(beat_at) => {
                self.check_key(self.core.clock.now()).await?;
                self.beat();
            }
            () = self.core.clock.sleep_until(self.ends_at), if open => {
                self.close(ClosingReason::MaxAge, Duration::ZERO);
            }
        }
        Ok(())
    }

    fn close(&mut self, reason: ClosingReason, wait: Duration) {
        self.end(End::Closing(Closing {
            reason: reason as i32,
            reconnect_after: prost_types::Duration::try_from(wait).ok(),
            cursor: self.cursor(),
        }));
    }

    async fn take(&mut self, frame: PublishStreamRequest) -> Result<()> {
        let options = *self.options.get_or_insert(Options {
            continue_on_error: frame.continue_on_error,
            brief_results: frame.brief_results,
        });
        let number = frame.frame;
        if number == 0 || (self.last_frame != 0 && number != self.last_frame + 1) {
            let expected = format!("must be {} (the last frame plus 1)", self.last_frame + 1);
            return Err(Error::field("frame", expected));
        }
        self.last_frame = number;
        let bytes = frame.events.iter().map(bytes::Bytes::len).sum();
        let done = move |publisher, result| Done {
            frame: number,
            bytes,
            publisher,
            result,
        };
        let core = self.core.clone();
        // Who goes on after errors takes later frames without the earlier ones.
        let row = (!options.continue_on_error).then(|| self.row.clone());
        let submitted = match self.submit(frame, row).await {
            Ok((publisher, submitted)) => async move {
                let result = submitted.stored(&core).await;
                done(Some(publisher), result)
            }
            .boxed(),
            Err(problem) => {
                if !options.continue_on_error {
                    self.end(End::Quiet);
                }
                async move { done(None, Err(problem)) }.boxed()
            }
        };
        self.unacked_bytes += bytes;
        self.unacked.push_back(submitted);
        Ok(())
    }

    async fn submit(
        &mut self,
        frame: PublishStreamRequest,
        row: Option<Row>,
    ) -> Result<(Publisher, publish::Submitted)> {
        let publisher = self.publisher_of(&frame.tenant_id).await?;
        let configuration = self.configurations.current(publisher.log.tenant()).await?;
        let checked =
            publish::check(&publisher, configuration, frame.events, frame.independent).await?;
        let submitted = checked.submit(&self.core, &publisher, row).await?;
        Ok((publisher, submitted))
    }

    /// A key of a tenant publishes for that tenant only; a key without tenant names it per frame.
    async fn publisher_of(&mut self, tenant_id: &str) -> Result<Publisher> {
        if let Some(publisher) = &self.publisher
            && (tenant_id.is_empty() || publisher.log.tenant().id() == tenant_id)
        {
            return Ok(publisher.clone());
        }
        if self.caller.tenant.is_some() {
            return Err(hub_core::tenancy::not_found(tenant_id));
        }
        if tenant_id.is_empty() {
            self.caller.tenant()?;
        }
        let tenant = self.core.tenancy.find(tenant_id).await?;
        let log = self.core.journal.log(&tenant).await?;
        let publisher = Publisher {
            product: self.product.clone(),
            log,
            configurations: self.configurations.clone(),
        };
        self.publisher = Some(publisher.clone());
        Ok(publisher)
    }

    /// Answers a decided frame and all that are decided behind it.
    fn acknowledge(&mut self, first: Done) {
        let mut results = None;
        let mut next = Some(first);
        while let Some(done) = next {
            self.fold(done, &mut results);
            next = self.unacked.next().now_or_never().flatten();
        }
        self.flush(&mut results);
    }

    /// Adds one frame to the acknowledgement under way.
    fn fold(&mut self, done: Done, results: &mut Option<Vec<PublishResult>>) {
        self.unacked_bytes -= done.bytes;
        let options = self.options;
        let brief = options.is_some_and(|options| options.brief_results);
        match done.result {
            Ok(stored) => {
                // Without the other results only the acknowledgement's bounds say which frame an
                // error is of.
                let alone = brief && stored.results.iter().any(|result| result.error.is_some());
                if alone {
                    self.flush(results);
                }
                self.acked_through = done.frame;
                if let Some(appended) = stored.appended {
                    self.position = Some(appended.position);
                }
                if let Some(publisher) = done.publisher {
                    self.publisher = Some(publisher);
                }
                let told = |result: &PublishResult| {
                    !brief
                        || result.error.is_some()
                        || result.duplicate
                        || !result.warnings.is_empty()
                };
                let list = results.get_or_insert_default();
                let first = list.len();
                list.extend(stored.results.into_iter().filter(told));
                if let Some(publisher) = &self.publisher {
                    publish::write_ids(publisher.log.tenant(), &mut list[first..]);
                }
                if alone {
                    self.flush(results);
                }
            }
            Err(problem) if options.is_some_and(|options| options.continue_on_error) => {
                self.flush(results);
                self.acked_through = done.frame;
                self.ready.push_back(Frame::Rejected(PublishRejected {
                    frame: done.frame,
                    event_index: index_of(&problem),
                    problem: Some(problem.to_problem()),
                }));
            }
            Err(problem) => {
                // Behind a frame that was refused later ones may be stored, but are not
                // acknowledged: sent again they are duplicates.
                self.unacked = FuturesOrdered::new();
                self.unacked_bytes = 0;
                self.end(End::Failed(problem.into()));
            }
        }
    }

    fn flush(&mut self, results: &mut Option<Vec<PublishResult>>) {
        if let Some(results) = results.take() {
            let (acked_through, cursor) = (self.acked_through, self.cursor());
            self.ready.push_back(Frame::Ack(PublishAck {
                acked_through,
                results,
                cursor,
            }));
        }
    }

    /// Where the last acknowledged frame ends; empty for a stream of all tenants, which has no
    /// one log.
    fn cursor(&self) -> String {
        match (&self.publisher, self.caller.tenant.is_some()) {
            (Some(publisher), true) => {
                let position = self.position.unwrap_or_else(|| publisher.log.head());
                publish::cursor(&self.core, publisher, position)
            }
            _ => String::new(),
        }
    }

    /// A key that was revoked or narrowed meanwhile ends the stream, whether it is busy or quiet.
    async fn check_key(&mut self, now: Micros) -> Result<()> {
        let due = now - self.checked_at >= micros(crate::beat(&self.core));
        // What was taken before is answered all the same.
        if due && matches!(self.input, Input::Open) {
            self.authenticator.recheck(&self.caller).await?;
            self.checked_at = now;
        }
        Ok(())
    }

    fn beat(&mut self) {
        let head = self
            .publisher
            .as_ref()
            .map_or(Position::default(), |p| p.log.head());
        self.ready.push_back(Frame::Progress(Progress {
            cursor: self.cursor(),
            sequence: self.position.map_or(head.seq, |position| position.seq),
            head_sequence: head.seq,
            server_time: Some(timestamp(self.core.clock.now())),
        }));
    }
}

/// Place of the offending event, for errors that have one.
fn index_of(problem: &Error) -> u32 {
    let index = problem.metadata().iter().find(|(key, _)| *key == "index");
    index.and_then(|(_, index)| index.parse().ok()).unwrap_or(0)
}
