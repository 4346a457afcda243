//! How leases are kept alive while handlers run.

use hub_proto::hub::event_bus::v1::consume_request::Frame as Asked;

use super::*;

/// What the hub's clock says, an hour ahead of ours.
struct HubClock {
    started: Instant,
    at_start: SystemTime,
}

impl HubClock {
    fn start() -> Self {
        HubClock {
            started: Instant::now(),
            at_start: SystemTime::now() + 3600 * SECOND,
        }
    }

    fn now(&self) -> SystemTime {
        self.at_start + self.started.elapsed()
    }

    fn progress(&self) -> Frame {
        Frame::Progress(Progress {
            server_time: Some(self.now().into()),
            ..Default::default()
        })
    }

    fn leased(&self, sequence: u64, lease: &str, length: Duration) -> proto::LeasedEvent {
        proto::LeasedEvent {
            lease_until: Some((self.now() + length).into()),
            ..leased_as("tnt_1", sequence, lease)
        }
    }
}

/// A consumer whose stream is open and told the time.
async fn consumer(
    fake: &mut FakeHub,
    builder: ConsumerBuilder,
) -> (Consumer, Desk, ConsumeCall, HubClock) {
    let (consumer, desk) = Desk::open(builder);
    let call = opened(fake).await;
    let clock = HubClock::start();
    call.send(clock.progress()).await;
    (consumer, desk, call, clock)
}

/// The next frame of the client; meanwhile the hub sends heartbeats.
async fn alive(call: &mut ConsumeCall, clock: &HubClock) -> Asked {
    loop {
        if let Ok(frame) = tokio::time::timeout(HEARTBEAT / 2, call.frame()).await {
            return frame.unwrap();
        }
        call.send(clock.progress()).await;
    }
}

/// The next frame, which has to be extensions: the leases, in order, and for how long.
async fn extended(call: &mut ConsumeCall, clock: &HubClock) -> (Vec<String>, Duration) {
    let Asked::Acks(acks) = alive(call, clock).await else {
        panic!("no extension")
    };
    assert!(acks.ack.is_empty() && acks.nack.is_empty(), "{acks:?}");
    let length = acks.extend[0].duration.unwrap().try_into().unwrap();
    let leases = acks.extend.into_iter().map(|extension| extension.lease_id);
    let mut leases: Vec<String> = leases.collect();
    leases.sort();
    (leases, length)
}

/// Asserts that so much time has passed, within a tenth.
fn assert_passed(since: Instant, expected: Duration) {
    let passed = since.elapsed();
    let near = expected.mul_f64(0.9)..=expected.mul_f64(1.1);
    assert!(near.contains(&passed), "{passed:?}, not {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_extended_at_half_of_its_time_until_its_handler_ends() {
    let mut fake = FakeHub::start();
    let builder = fake.hub.consume("portal").concurrency(1);
    let (consumer, mut desk, mut call, clock) = consumer(&mut fake, builder).await;
    let length = 40 * SECOND;
    let came = Instant::now();
    // The second waits for its handler, and its lease runs as well.
    let pair = [clock.leased(1, "1", length), clock.leased(2, "2", length)];
    call.send(events(pair)).await;
    let reply = desk.expect(1).await;
    for round in 1..=3 {
        let (leases, asked) = extended(&mut call, &clock).await;
        assert_eq!(leases, ["1", "2"]);
        assert!(asked > length.mul_f64(0.9) && asked <= length, "{asked:?}");
        assert_passed(came, round * length / 2);
    }
    reply.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["1"]);
    let _second = desk.expect(2).await;
    assert_eq!(extended(&mut call, &clock).await.0, ["2"]);
    reaches(&consumer, |counts| counts.extended == 7).await;
}

#[tokio::test(start_paused = true)]
async fn an_event_that_is_leased_again_is_not_handled_twice_at_once() {
    let mut fake = FakeHub::start();
    let builder = fake.hub.consume("portal").concurrency(2);
    let (_consumer, mut desk, mut call, clock) = consumer(&mut fake, builder).await;
    call.send(events([clock.leased(1, "first", 40 * SECOND)]))
        .await;
    let reply = desk.expect(1).await;
    // Someone sought back, which ended the first lease; of many tenants nobody says so.
    call.send(events([clock.leased(1, "second", 40 * SECOND)]))
        .await;
    assert!(desk.is_quiet().await);
    reply.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["second"]);
    // Later it is an event like any other.
    call.send(events([clock.leased(1, "third", 40 * SECOND)]))
        .await;
    desk.expect(1).await.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["third"]);
}

#[tokio::test(start_paused = true)]
async fn leases_are_timed_anew_when_the_hub_tells_its_time() {
    let mut fake = FakeHub::start();
    let (_consumer, mut desk) = Desk::open(fake.hub.consume("portal"));
    let mut call = opened(&mut fake).await;
    let clock = HubClock::start();
    // By our clock it has an hour and four seconds.
    call.send(events([clock.leased(1, "1", 4 * SECOND)])).await;
    let came = Instant::now();
    let _reply = desk.expect(1).await;
    call.send(clock.progress()).await;
    extended(&mut call, &clock).await;
    assert_passed(came, 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_runs_too_long_loses_its_lease_but_is_not_begun_twice() {
    let mut fake = FakeHub::start();
    let builder = fake.hub.consume("portal").credit(10, 1000);
    let builder = builder.extend_for(50 * SECOND);
    let (consumer, mut desk, mut call, clock) = consumer(&mut fake, builder).await;
    let came = Instant::now();
    let length = 40 * SECOND;
    call.send(events([clock.leased(1, "first", length)])).await;
    let reply = desk.expect(1).await;
    let mut extensions = 0;
    // Extended at 20 s and 40 s, so that it ends at 80 s. What is lost takes credit.
    let credit = loop {
        match alive(&mut call, &clock).await {
            Asked::Acks(_) => extensions += 1,
            Asked::Credit(credit) => break credit,
            Asked::Open(_) => panic!("opened twice"),
        }
    };
    assert_eq!(extensions, 2);
    assert_passed(came, 80 * SECOND);
    assert_eq!(credit.events, 9);
    reaches(&consumer, |counts| counts.expired == 1).await;
    let again = proto::LeasedEvent {
        attempt: 2,
        ..clock.leased(1, "second", length)
    };
    call.send(events([again])).await;
    assert_eq!(call.credit().await.events, 10);
    assert!(desk.is_quiet().await);
    reply.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["second"]);
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_given_up_when_its_lease_is_not_extended() {
    let mut fake = FakeHub::start();
    let builder = fake.hub.consume("portal").concurrency(1);
    let (consumer, mut desk, mut call, clock) = consumer(&mut fake, builder).await;
    let length = 10 * SECOND;
    let pair = [clock.leased(1, "1", length), clock.leased(2, "2", length)];
    call.send(events(pair)).await;
    let reply = desk.expect(1).await;
    assert_eq!(extended(&mut call, &clock).await.0, ["1", "2"]);
    call.send(results([("2", AckOutcome::LeaseExpired)])).await;
    reaches(&consumer, |counts| counts.expired == 1).await;
    reply.send(Answer::Ack).unwrap();
    assert_eq!(call.acks().await.ack, ["1"]);
    assert!(desk.is_quiet().await);
}

#[tokio::test(start_paused = true)]
async fn an_extension_that_the_hub_could_not_give_is_asked_for_again() {
    let mut fake = FakeHub::start();
    let builder = fake.hub.consume("portal");
    let (_consumer, mut desk, mut call, clock) = consumer(&mut fake, builder).await;
    call.send(events([clock.leased(1, "1", 20 * SECOND)])).await;
    let _reply = desk.expect(1).await;
    extended(&mut call, &clock).await;
    let refused = Instant::now();
    call.send(results([("1", AckOutcome::Retry)])).await;
    assert_eq!(extended(&mut call, &clock).await.0, ["1"]);
    assert_passed(refused, Duration::from_millis(200));
}
