//! The task of a publisher: opens streams, sends frames and hears the answers.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryFutureExt};
use hub_proto::hub::event_bus::v1::PublishStreamResponse;
use hub_proto::hub::event_bus::v1::publish_stream_response::Frame as ResponseFrame;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Request, Response, Status};

use super::frame::{EncodedFrame, FrameCodec};
use super::outbox::{Item, Outbox};
use super::{PublisherOptions, PublisherState};
use crate::backoff::{Backoff, spread};
use crate::call::Transport;
use crate::error::{Error, Result};
use crate::hub::MESSAGE_BYTES_MAX;
use crate::silence::Silence;

const PATH: &str = "/hub.event_bus.v1.EventBus/PublishStream";
/// Items taken from the queue at once.
const ITEMS_MAX: usize = 256;
/// How long the hub may take to end a stream of which we ended our half.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait after an error that does not pass by itself: the next event tries again.
const REFUSED_WAIT_MAX: Duration = Duration::from_secs(1);
/// Streams that a defect of the hub may end in a row before their events fail.
const DEFECTS_MAX: u32 = 3;

type Responses = Pin<Box<dyn Stream<Item = Result<PublishStreamResponse, Status>> + Send>>;

/// See the module.
pub(super) struct Driver {
    transport: Transport,
    outbox: Outbox,
    queue: mpsc::UnboundedReceiver<Item>,
    /// All publishers were dropped.
    queue_closed: bool,
    inbox: Vec<Item>,
    state: watch::Sender<PublisherState>,
    backoff: Backoff,
    /// No stream is opened before.
    not_before: Option<Instant>,
}

/// How a stream ended.
enum End {
    /// There is nothing more to send, ever.
    Finished,
    /// The hub said when to come back.
    Closing(Option<Duration>),
    Failed(Error),
}

impl Driver {
    pub(super) fn new(
        transport: Transport,
        options: PublisherOptions,
        queue: mpsc::UnboundedReceiver<Item>,
        room: Arc<Semaphore>,
        state: watch::Sender<PublisherState>,
    ) -> Self {
        Driver {
            transport,
            outbox: Outbox::new(options, room),
            queue,
            queue_closed: false,
            inbox: Vec::with_capacity(ITEMS_MAX),
            state,
            backoff: Backoff::default(),
            not_before: None,
        }
    }

    /// Ends when all publishers were dropped and everything is settled.
    pub(super) async fn run(mut self) {
        while self.has_work().await {
            if let Some(until) = self.not_before.take() {
                sleep_until(until).await;
            }
            match self.run_stream().await {
                End::Finished => break,
                End::Closing(after) => {
                    let wait = after.map_or_else(|| self.backoff.next(None), spread);
                    self.wait(Instant::now() + wait, None);
                }
                End::Failed(error) => self.failed(error),
            }
        }
        self.state.send_replace(PublisherState::Closed);
    }

    /// Waits for something to send; false if nothing will come.
    async fn has_work(&mut self) -> bool {
        while self.outbox.is_empty() {
            self.rest();
            if self.queue.recv_many(&mut self.inbox, ITEMS_MAX).await == 0 {
                return false;
            }
            self.outbox.accept(self.inbox.drain(..));
        }
        true
    }

    /// Decides who hears of a failure now, and who waits for the next stream.
    fn failed(&mut self, error: Error) {
        let defect = error.is_defect() && self.backoff.attempts() >= DEFECTS_MAX;
        let passes = error.is_retryable() && !defect;
        let wait = self.backoff.next(error.retry_after());
        // What is queued gets the same answer as what was sent.
        while let Ok(item) = self.queue.try_recv() {
            self.inbox.push(item);
        }
        self.outbox.accept(self.inbox.drain(..));
        let now = Instant::now();
        // The state says why before anyone is answered.
        if passes {
            self.wait(now + wait, Some(error.clone()));
            self.outbox.fail_late(&error, now);
        } else {
            self.wait(now + wait.min(REFUSED_WAIT_MAX), Some(error.clone()));
            self.outbox.fail_all(&error);
        }
    }

    /// Nothing to send is no trouble, unless the last stream failed: then the state says why.
    fn rest(&self) {
        let failed = |state: &PublisherState| {
            matches!(state, PublisherState::Waiting { error: Some(_), .. })
        };
        if self.outbox.is_empty() && !failed(&self.state.borrow()) {
            self.state.send_replace(PublisherState::Idle);
        }
    }

    fn wait(&mut self, until: Instant, error: Option<Error>) {
        self.not_before = Some(until);
        self.state
            .send_replace(PublisherState::Waiting { until, error });
    }

    fn open(&self, frames: mpsc::UnboundedReceiver<EncodedFrame>) -> Responses {
        let mut client =
            Grpc::new(self.transport.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let call = async move {
            client
                .ready()
                .await
                .map_err(|error| Status::from_error(error.into()))?;
            let frames = Request::new(UnboundedReceiverStream::new(frames));
            client
                .streaming(frames, PathAndQuery::from_static(PATH), FrameCodec)
                .await
        };
        // Frames are sent before the hub answers: it may read the first one before it does.
        Box::pin(call.map_ok(Response::into_inner).try_flatten_stream())
    }

    async fn run_stream(&mut self) -> End {
        self.state.send_replace(PublisherState::Connecting);
        self.outbox.restart();
        // Bounded by the window.
        let (frames, requests) = mpsc::unbounded_channel();
        let mut responses = self.open(requests);
        let mut silence = Silence::new();
        loop {
            while let Some(frame) = self.outbox.next_frame() {
                if frames.send(frame).is_err() {
                    // The call is over; its answer says why.
                    break;
                }
            }
            if self.queue_closed && self.outbox.is_empty() {
                drop(frames);
                let goodbye = async { while let Some(Ok(_)) = responses.next().await {} };
                let _ = timeout(GOODBYE_TIMEOUT, goodbye).await;
                return End::Finished;
            }
            let wants = !self.queue_closed && self.outbox.wants_events(self.queue.len());
            let hold = self.outbox.hold();
            tokio::select! {
                biased;
                response = responses.next() => {
                    silence.heard();
                    if let Some(end) = self.heard(response, &mut silence) {
                        return end;
                    }
                }
                count = self.queue.recv_many(&mut self.inbox, ITEMS_MAX), if wants => {
                    self.queue_closed = count == 0;
                    self.outbox.accept(self.inbox.drain(..));
                }
                () = held(hold), if hold.is_some() => self.outbox.release(),
                silent = silence.wait() => return End::Failed(Error::silent(silent)),
            }
        }
    }

    /// Handles what the hub said; returns the end of the stream, if that is it.
    fn heard(
        &mut self,
        response: Option<Result<PublishStreamResponse, Status>>,
        silence: &mut Silence,
    ) -> Option<End> {
        let frame = match response {
            None => {
                let message = "The hub ended the stream without saying why.";
                return Some(End::Failed(Error::local(Code::Unavailable, message)));
            }
            Some(Err(status)) => return Some(End::Failed(status.into())),
            Some(Ok(response)) => response.frame?,
        };
        match frame {
            ResponseFrame::Opened(opened) => {
                silence.opened(&opened);
                self.state.send_replace(PublisherState::Live);
            }
            ResponseFrame::Ack(ack) => {
                self.backoff.reset();
                self.outbox.ack(ack, Instant::now());
            }
            ResponseFrame::Rejected(rejected) => {
                self.backoff.reset();
                self.outbox.rejected(rejected, Instant::now());
            }
            ResponseFrame::Progress(_) => self.backoff.reset(),
            ResponseFrame::Window(window) => self.outbox.set_window(window),
            ResponseFrame::Closing(closing) => {
                let after = closing.reconnect_after.map(Duration::try_from);
                return Some(End::Closing(after.and_then(Result::ok)));
            }
        }
        None
    }
}

async fn held(until: Option<Instant>) {
    if let Some(until) = until {
        sleep_until(until).await;
    }
}
