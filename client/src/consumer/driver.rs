//! The task of a consumer: opens streams, hands out events and tells the hub the answers.

mod shutdown;

use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryFutureExt};
use hub_proto::hub::core::v1::{Closing, ClosingReason, Progress};
use hub_proto::hub::event_bus::v1::consume_request::Frame as RequestFrame;
use hub_proto::hub::event_bus::v1::consume_response::Frame;
use hub_proto::hub::event_bus::v1::event_bus_client::EventBusClient;
use hub_proto::hub::event_bus::v1::{
    AckResults, ConsumeOpen, ConsumeRequest, ConsumeResponse, Credit, LeasedEvents,
    SubscriptionState,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use super::acks::{Acks, Meaning};
use super::alarm::Alarm;
use super::builder::ConsumerOptions;
use super::handling::{Finished, Handling};
use super::leases::Leases;
use super::report::Report;
use super::server_clock::ServerClock;
use super::{ConsumerNotice, ConsumerState};
use crate::backoff::{Backoff, spread};
use crate::call::Transport;
use crate::error::{Error, Result};
use crate::silence::Silence;
use shutdown::untold;

/// Frames that wait for the connection; while they do, acks gather for the next one.
const FRAMES_MAX: usize = 2;
/// Answers of handlers taken at once.
const FINISHED_MAX: usize = 1000;
/// How long the hub may take to end a stream of which we ended our half, and to take the last
/// answers after the drain timeout.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams that a defect of the hub may end in a row before the consumer ends too.
const DEFECTS_MAX: u32 = 3;
/// Wait before an extension is asked for again that the hub could not give.
const EXTEND_AGAIN_WAIT: Duration = Duration::from_millis(200);

type Responses = Pin<Box<dyn Stream<Item = Result<ConsumeResponse, Status>> + Send>>;

/// See the module.
pub(super) struct Driver {
    client: EventBusClient<Transport>,
    options: ConsumerOptions,
    handling: Handling,
    finished: mpsc::UnboundedReceiver<Finished>,
    inbox: Vec<Finished>,
    leases: Leases,
    acks: Acks,
    /// What the hub was told last.
    credit: Credit,
    clock: ServerClock,
    alarm: Alarm,
    backoff: Backoff,
    /// No stream is opened before.
    not_before: Option<Instant>,
    stop: oneshot::Receiver<()>,
    /// It is shut down: handlers may run until then.
    drain_until: Option<Instant>,
    /// Why the last stream ended.
    error: Option<Error>,
    report: Report,
}

/// How a stream ended.
enum End {
    /// There is nothing more to do, ever.
    Finished,
    /// The hub said when to come back.
    Closing(Option<Duration>),
    Failed(Error),
    /// The time for a shutdown is over, and there was more to tell.
    Overdue,
}

impl Driver {
    pub(super) fn new(
        client: EventBusClient<Transport>,
        options: ConsumerOptions,
        handling: Handling,
        finished: mpsc::UnboundedReceiver<Finished>,
        stop: oneshot::Receiver<()>,
        report: Report,
    ) -> Self {
        let credit = options.credit.unwrap_or_default();
        Driver {
            client,
            handling,
            finished,
            inbox: Vec::with_capacity(FINISHED_MAX),
            leases: Leases::new(credit, options.extend_for),
            acks: Acks::new(options.confirm_acks),
            credit,
            clock: ServerClock::new(),
            alarm: Alarm::new(),
            backoff: Backoff::default(),
            not_before: None,
            stop,
            drain_until: None,
            error: None,
            report,
            options,
        }
    }

    /// Ends after a shutdown, or with an error that does not pass.
    pub(super) async fn run(mut self) {
        let error = self.consume().await.err();
        self.finish_handlers().await;
        self.report.tell_counts();
        self.report.state(ConsumerState::Ended { error });
    }

    async fn consume(&mut self) -> Result<()> {
        loop {
            if let Some(until) = self.not_before.take() {
                self.rest(until).await;
            }
            if self.is_drained() {
                return Ok(());
            }
            let end = match self.overdue_at() {
                Some(overdue) if overdue <= Instant::now() => End::Overdue,
                _ => self.run_stream().await,
            };
            let sure = self.acks.are_sure();
            self.leases.stream_lost();
            match end {
                End::Finished => return Ok(()),
                End::Closing(_) | End::Failed(_) if self.is_drained() && sure => return Ok(()),
                End::Closing(_) if self.is_drained() => return Err(untold()),
                End::Failed(error) if self.is_drained() => return Err(error),
                End::Closing(after) => {
                    let wait = after.map_or_else(|| self.backoff.next(None), spread);
                    self.wait(wait, None);
                }
                End::Failed(error) => self.failed(error)?,
                End::Overdue => return Err(self.error.take().unwrap_or_else(untold)),
            }
        }
    }

    /// Waits for the time of the next stream; handlers go on.
    async fn rest(&mut self, until: Instant) {
        while !self.is_drained() && Instant::now() < until {
            let due = self.drain_due().map_or(until, |due| due.min(until));
            tokio::select! {
                biased;
                _ = self.finished.recv_many(&mut self.inbox, FINISHED_MAX) => self.settle(),
                _ = &mut self.stop, if self.drain_until.is_none() => self.drain(),
                () = self.alarm.wait(Some(due)) => {}
            }
            self.report.tell_counts();
            let now = Instant::now();
            self.abort_late(now);
            if self.overdue_at().is_some_and(|overdue| overdue <= now) {
                return;
            }
        }
    }

    /// Returns the error if it does not pass.
    fn failed(&mut self, error: Error) -> Result<()> {
        let defect = error.is_defect() && self.backoff.attempts() >= DEFECTS_MAX;
        if defect || !error.is_retryable() {
            return Err(error);
        }
        self.error = Some(error.clone());
        let wait = self.backoff.next(error.retry_after());
        self.wait(wait, Some(error));
        Ok(())
    }

    fn wait(&mut self, wait: Duration, error: Option<Error>) {
        let until = Instant::now() + wait;
        self.not_before = Some(until);
        self.tell_state(ConsumerState::Waiting { until, error });
    }

    /// A shutdown is told until the end.
    fn tell_state(&self, state: ConsumerState) {
        if self.drain_until.is_none() {
            self.report.state(state);
        }
    }

    fn open(&mut self, frames: mpsc::Receiver<ConsumeRequest>) -> Responses {
        let mut client = self.client.clone();
        let frames = ReceiverStream::new(frames);
        let call = async move { client.consume(frames).await };
        // Frames are sent before the hub answers: it may read the first one before it does.
        Box::pin(call.map_ok(Response::into_inner).try_flatten_stream())
    }

    async fn run_stream(&mut self) -> End {
        self.tell_state(ConsumerState::Connecting);
        self.clock.restart();
        self.acks.restart();
        let (frames, requests) = mpsc::channel(FRAMES_MAX);
        // There is room for it.
        let _ = frames.try_send(self.first_frame());
        let mut responses = self.open(requests);
        let mut silence = Silence::new();
        // Until the call is over; its answer says why.
        let mut writable = true;
        loop {
            if self.begin() {
                // Handlers that need not wait end first, so that their acks go together.
                tokio::task::yield_now().await;
            }
            if self.is_drained() && self.credit.events == 0 {
                drop(frames);
                return self.goodbye(responses).await;
            }
            let wants = writable && (self.acks.has_batch() || self.credit != self.wanted_credit());
            let due = self.due();
            tokio::select! {
                biased;
                response = responses.next() => {
                    silence.heard();
                    if let Some(end) = self.heard(response, &mut silence) {
                        return end;
                    }
                }
                _ = self.finished.recv_many(&mut self.inbox, FINISHED_MAX) => self.settle(),
                room = frames.reserve(), if wants => match room {
                    Ok(room) => room.send(self.next_frame()),
                    Err(_) => writable = false,
                },
                _ = &mut self.stop, if self.drain_until.is_none() => self.drain(),
                () = self.alarm.wait(due) => {
                    if let Some(end) = self.rang() {
                        return end;
                    }
                }
                silent = silence.wait() => return End::Failed(Error::silent(silent)),
            }
            self.report.tell_counts();
        }
    }

    /// Hands out what waits; true if there was something.
    fn begin(&mut self) -> bool {
        let now = Instant::now();
        let mut begun = false;
        while self.leases.running() < self.options.concurrency
            && self
                .leases
                .begin(now, |token, event| self.handling.begin(token, event))
        {
            begun = true;
        }
        begun
    }

    /// Takes the answers of handlers.
    fn settle(&mut self) {
        for finished in self.inbox.drain(..) {
            // Handlers that were cancelled are settled.
            if let Some(lease_id) = self.leases.finish(finished.token) {
                self.report.answered(&finished.answer);
                self.report.counts.panicked += u64::from(finished.panicked);
                self.acks.answer(lease_id, finished.answer);
            }
        }
    }

    fn first_frame(&mut self) -> ConsumeRequest {
        self.credit = self.wanted_credit();
        frame(RequestFrame::Open(ConsumeOpen {
            subscription: self.options.subscription.clone(),
            member: self.options.member.clone(),
            credit: Some(self.credit),
            confirm_acks: self.options.confirm_acks,
        }))
    }

    fn next_frame(&mut self) -> ConsumeRequest {
        let credit = self.wanted_credit();
        if self.credit != credit {
            self.credit = credit;
            return frame(RequestFrame::Credit(credit));
        }
        frame(RequestFrame::Acks(self.acks.next_batch()))
    }

    fn wanted_credit(&self) -> Credit {
        let credit = self.leases.credit();
        match self.drain_until {
            Some(_) => Credit {
                events: 0,
                ..self.credit
            },
            None => credit,
        }
    }

    /// Handles what the hub said; returns the end of the stream, if that is it.
    fn heard(
        &mut self,
        response: Option<Result<ConsumeResponse, Status>>,
        silence: &mut Silence,
    ) -> Option<End> {
        let response = match response {
            None => {
                let message = "The hub ended the stream without saying why.";
                return Some(End::Failed(Error::local(Code::Unavailable, message)));
            }
            Some(Err(status)) => return Some(End::Failed(status.into())),
            Some(Ok(response)) => response,
        };
        let tenant_id = response.tenant_id;
        // Frames of a newer hub are passed over.
        match response.frame? {
            Frame::Opened(opened) => {
                silence.opened(&opened);
                self.report.counts.streams += 1;
                self.tell_state(ConsumerState::Live);
            }
            Frame::Events(events) => self.events(events),
            Frame::Progress(progress) => self.progress(&progress),
            Frame::CaughtUp(caught_up) => self.report.notice(ConsumerNotice::CaughtUp {
                tenant_id,
                caught_up,
            }),
            Frame::Gap(gap) => self.report.notice(ConsumerNotice::Gap { tenant_id, gap }),
            Frame::State(state) => {
                if let Ok(state) = SubscriptionState::try_from(state) {
                    self.report
                        .notice(ConsumerNotice::Subscription { tenant_id, state });
                }
            }
            Frame::AckResults(results) => self.results(results),
            Frame::Closing(closing) => return Some(closed(&closing)),
        }
        None
    }

    fn events(&mut self, events: LeasedEvents) {
        self.backoff.reset();
        let now = Instant::now();
        self.report.counts.received += events.events.len() as u64;
        // The newest tells most; where much happens there are no heartbeats to tell the time.
        let newest = events.events.last().and_then(|event| event.record.as_ref());
        let recorded = newest.and_then(|record| record.record_time);
        if let Some(recorded) = recorded.and_then(|time| time.try_into().ok()) {
            self.clock.is_past(recorded, now);
        }
        for event in events.events {
            self.leases.accept(event, &self.clock, now);
        }
        if self.drain_until.is_some() {
            self.release_waiting();
        }
    }

    fn progress(&mut self, progress: &Progress) {
        self.backoff.reset();
        let server_time = progress.server_time.and_then(|time| time.try_into().ok());
        let now = Instant::now();
        if server_time.is_some_and(|time| self.clock.heard(time, now)) {
            self.leases.time_again(&self.clock, now);
        }
    }

    fn results(&mut self, results: AckResults) {
        let now = Instant::now();
        for result in results.results {
            match self.acks.heard(&result, now) {
                Meaning::Settled => {}
                Meaning::Expired => {
                    // If it is held, then an extension came too late.
                    self.leases.not_extended(&result.lease_id);
                    self.report.expired(result.lease_id);
                }
                Meaning::NotTold => self
                    .leases
                    .extend_again(&result.lease_id, now + EXTEND_AGAIN_WAIT),
            }
        }
    }

    /// When something is to be done that nobody asks for.
    fn due(&self) -> Option<Instant> {
        let dues = [self.leases.due(), self.acks.due(), self.drain_due()];
        dues.into_iter().flatten().min()
    }

    /// Does what is due; returns the end of the stream, if that is it.
    fn rang(&mut self) -> Option<End> {
        let now = Instant::now();
        if self.leases.due().is_some_and(|due| due <= now) {
            let extended = self.leases.extend(now);
            self.report.counts.extended += extended.extensions.len() as u64;
            for extension in extended.extensions {
                self.acks.extend(extension);
            }
            for lease_id in extended.expired {
                self.report.expired(lease_id);
            }
        }
        if self.acks.due().is_some_and(|due| due <= now) {
            self.acks.send_again();
        }
        self.abort_late(now);
        let overdue = self.overdue_at().is_some_and(|overdue| overdue <= now);
        overdue.then_some(End::Overdue)
    }
}

fn frame(frame: RequestFrame) -> ConsumeRequest {
    ConsumeRequest { frame: Some(frame) }
}

fn closed(closing: &Closing) -> End {
    if closing.reason() == ClosingReason::Done {
        return End::Finished;
    }
    let after = closing.reconnect_after.map(Duration::try_from);
    End::Closing(after.and_then(Result::ok))
}
