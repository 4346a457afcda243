//! Works off Portal's durable subscription until Ctrl-C.
//!
//! With `hub dev` running, set `HUB_PORTAL_KEY` to the key that it printed:
//! `cargo run -p hub-client --example consume`. `HUB_URL` is `http://127.0.0.1:7070` unless set.
//! Start it twice: the two share the events.

use std::env;
use std::process;

use hub_client::{Answer, ConsumerNotice, Hub, LeasedEvent};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = env::var("HUB_URL").unwrap_or_else(|_| "http://127.0.0.1:7070".to_owned());
    let portal = Hub::builder(&url)
        .api_key(env::var("HUB_PORTAL_KEY")?)
        .connect_lazy()?;

    // Made with the product, and named like it.
    let mut consumer = portal
        .consume("portal")
        .member(format!("example-{}", process::id()))
        .concurrency(32)
        .on_notice(|notice: ConsumerNotice| println!("{notice:?}"))
        .run(handle);
    tokio::select! {
        ended = consumer.wait() => return Ok(ended?),
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    // What is at work is finished and acked; what was not begun goes to another member.
    let counts = consumer.counts();
    consumer.shutdown().await?;
    println!("{:?}", *counts.borrow());
    Ok(())
}

/// An error or a panic is a retry: after 1 min, 5 min, 30 min and 2 h unless the subscription says
/// otherwise.
async fn handle(event: LeasedEvent) -> Result<Answer, String> {
    let cloud_event = event.event().ok_or("there is no event")?;
    let sequence = event.record.sequence;
    println!(
        "{sequence} {}, attempt {}",
        cloud_event.r#type, event.attempt
    );
    if cloud_event.data.is_none() {
        // It will not get better: a dead letter, which the event log shows with this text.
        return Ok(Answer::fail("an event without data"));
    }
    Ok(Answer::Ack)
}
