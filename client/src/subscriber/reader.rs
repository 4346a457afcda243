//! The state machine of a subscriber: open, read, wait, and again.

use std::time::Duration;

use hub_proto::hub::core::v1::{Closing, ClosingReason};
use hub_proto::hub::event_bus::v1::event_bus_client::EventBusClient;
use hub_proto::hub::event_bus::v1::subscribe_response::Frame;
use hub_proto::hub::event_bus::v1::{
    EventBatch, StartAt, SubscribeRequest, SubscribeResponse, start_at,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use super::{Delivery, SubscribeOptions, SubscriberState};
use crate::backoff::{Backoff, spread};
use crate::call::Transport;
use crate::error::{Error, Result};
use crate::silence::Silence;

/// Streams that a defect of the hub may end in a row before the subscriber ends too.
const DEFECTS_MAX: u32 = 3;

/// See the module.
pub(super) struct Reader {
    client: EventBusClient<Transport>,
    request: SubscribeRequest,
    /// Head of the log as last heard.
    head: u64,
    stream: Option<(Streaming<SubscribeResponse>, Silence)>,
    backoff: Backoff,
    /// No stream is opened before.
    not_before: Option<Instant>,
    state: watch::Sender<SubscriberState>,
    ended: bool,
}

/// What to do after a frame.
enum Step {
    Deliver(Delivery),
    Read,
    End,
}

impl Reader {
    pub(super) fn new(
        client: EventBusClient<Transport>,
        options: SubscribeOptions,
    ) -> (Self, watch::Receiver<SubscriberState>) {
        let request = SubscribeRequest {
            filter: Some(options.filter),
            start: options.start,
            fail_on_gap: options.fail_on_gap,
            omit_data: options.omit_data,
            max_events: options.max_events,
            stop_when_caught_up: options.stop_when_caught_up,
            all_products: options.all_products,
        };
        let (sender, state) = watch::channel(SubscriberState::Connecting);
        let reader = Reader {
            client,
            request,
            head: 0,
            stream: None,
            backoff: Backoff::default(),
            not_before: None,
            state: sender,
            ended: false,
        };
        (reader, state)
    }

    /// The next delivery; an error is the last item.
    pub(super) async fn next(&mut self) -> Option<Result<Delivery>> {
        while !self.ended {
            let step = match self.frame().await {
                Ok(frame) => self.heard(frame),
                Err(error) => match self.failed(error) {
                    Ok(()) => continue,
                    Err(error) => {
                        self.end();
                        return Some(Err(error));
                    }
                },
            };
            match step {
                Step::Deliver(delivery) => return Some(Ok(delivery)),
                Step::Read => {}
                Step::End => self.end(),
            }
        }
        None
    }

    fn end(&mut self) {
        self.ended = true;
        self.stream = None;
        self.state.send_replace(SubscriberState::Ended);
    }

    /// The next frame, of a new stream if there is none.
    async fn frame(&mut self) -> Result<Frame> {
        let (stream, silence) = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let stream = self.open().await?;
                self.stream.insert(stream)
            }
        };
        // The reader itself may have been slow: only silence from here on is the hub's.
        silence.heard();
        loop {
            // Frames of a newer hub are passed over.
            match silence.next(stream).await?.frame {
                Some(Frame::Opened(opened)) => {
                    silence.opened(&opened);
                    return Ok(Frame::Opened(opened));
                }
                Some(frame) => return Ok(frame),
                None => {}
            }
        }
    }

    async fn open(&mut self) -> Result<(Streaming<SubscribeResponse>, Silence)> {
        if let Some(until) = self.not_before.take() {
            sleep_until(until).await;
        }
        self.state.send_replace(SubscriberState::Connecting);
        let mut silence = Silence::new();
        tokio::select! {
            biased;
            response = self.client.subscribe(self.request.clone()) => {
                Ok((response?.into_inner(), silence))
            }
            silent = silence.wait() => Err(Error::silent(silent)),
        }
    }

    fn heard(&mut self, frame: Frame) -> Step {
        match frame {
            Frame::Opened(opened) => {
                self.head = opened.head_sequence;
                self.resume_after(&opened.cursor);
                Step::Read
            }
            Frame::Closing(closing) => self.closing(&closing),
            Frame::Events(batch) => self.events(batch),
            Frame::Progress(progress) => {
                self.head = progress.head_sequence;
                self.reached(progress.sequence, self.head == progress.sequence);
                self.deliver(Delivery::Progress(progress))
            }
            Frame::CaughtUp(caught_up) => {
                self.head = self.head.max(caught_up.sequence);
                self.reached(caught_up.sequence, true);
                self.deliver(Delivery::CaughtUp(caught_up))
            }
            Frame::Gap(gap) => {
                self.reached(gap.to_sequence, false);
                self.deliver(Delivery::Gap(gap))
            }
        }
    }

    fn events(&mut self, batch: EventBatch) -> Step {
        let last = batch.events.last().map_or(0, |record| record.sequence);
        let live = matches!(*self.state.borrow(), SubscriberState::Live);
        self.head = self.head.max(last);
        self.reached(last, live);
        if self.request.max_events > 0 {
            let count = u32::try_from(batch.events.len()).unwrap_or(u32::MAX);
            let left = self.request.max_events.saturating_sub(count);
            if left == 0 {
                // What the hub says after it does not matter.
                self.ended = true;
                self.state.send_replace(SubscriberState::Ended);
                self.stream = None;
            }
            self.request.max_events = left;
        }
        self.deliver(Delivery::Events(batch))
    }

    fn deliver(&mut self, delivery: Delivery) -> Step {
        self.backoff.reset();
        self.resume_after(delivery.cursor());
        Step::Deliver(delivery)
    }

    fn resume_after(&mut self, cursor: &str) {
        if !cursor.is_empty() {
            let at = Some(start_at::At::Cursor(cursor.to_owned()));
            self.request.start = Some(StartAt { at });
        }
    }

    /// Everything up to a position was delivered.
    fn reached(&mut self, sequence: u64, live: bool) {
        if self.ended {
            return;
        }
        let lag = self.head.saturating_sub(sequence);
        self.state.send_if_modified(|state| {
            let same = match state {
                SubscriberState::Live => live,
                SubscriberState::CatchingUp { lag: known } => !live && *known == lag,
                _ => false,
            };
            if !same {
                *state = match live {
                    true => SubscriberState::Live,
                    false => SubscriberState::CatchingUp { lag },
                };
            }
            !same
        });
    }

    fn closing(&mut self, closing: &Closing) -> Step {
        if closing.reason() == ClosingReason::Done {
            return Step::End;
        }
        self.resume_after(&closing.cursor);
        let asked = closing
            .reconnect_after
            .and_then(|after| Duration::try_from(after).ok());
        let wait = asked.map_or_else(|| self.backoff.next(None), spread);
        self.wait(wait, None);
        Step::Read
    }

    /// Returns the error if it does not pass.
    fn failed(&mut self, error: Error) -> Result<()> {
        let defect = error.is_defect() && self.backoff.attempts() >= DEFECTS_MAX;
        if defect || !error.is_retryable() {
            return Err(error);
        }
        let wait = self.backoff.next(error.retry_after());
        self.wait(wait, Some(error));
        Ok(())
    }

    fn wait(&mut self, wait: Duration, error: Option<Error>) {
        let until = Instant::now() + wait;
        self.stream = None;
        self.not_before = Some(until);
        self.state
            .send_replace(SubscriberState::Waiting { until, error });
    }
}
