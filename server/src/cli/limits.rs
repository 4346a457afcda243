//! Every bound of `hub_core::limits::Limits` as a flag. One that is missing here does not compile.

use hub_core::limits::Limits;

use super::{KeyAge, Length, Size};

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $kind:ty,)*) => {
        /// The bounds.
        #[derive(Debug, clap::Args)]
        #[command(next_help_heading = "Limits")]
        pub struct LimitArgs {
            $(
                $(#[$doc])*
                #[arg(
                    long,
                    value_name = "N",
                    default_value_t = <$kind>::from(Limits::default().$name)
                )]
                $name: $kind,
            )*
        }

        impl LimitArgs {
            /// The bounds as the server takes them.
            pub fn limits(&self) -> Limits {
                Limits { $($name: self.$name.into(),)* }
            }
        }
    };
}

limits! {
    /// Largest message that an RPC reads. A Publish batch of 4 MiB fits with its framing.
    message_bytes_max: Size,
    /// Streams at once on one connection.
    connection_streams_max: u32,
    /// Requests at work at once on one connection.
    connection_requests_max: usize,
    /// Size of all request headers together.
    header_bytes_max: Size,
    /// Largest JSON body.
    json_bytes_max: Size,
    /// Longest unary call.
    request_timeout: Length,
    /// Longest silence of a stream.
    heartbeat_interval: Length,
    /// A reader that takes no frame for so long loses its stream.
    slow_reader_timeout: Length,
    /// A stream is asked to reconnect after so long, plus up to as much again.
    stream_age_max: Length,
    /// How long a stopping server waits for open calls.
    drain_timeout: Length,
    /// Events that wait for their commit, per tenant.
    append_tenant_bytes_max: Size,
    /// Events that wait for their commit, of all tenants.
    append_bytes_max: Size,
    /// What one tenant may put into one commit; a larger batch goes alone.
    group_tenant_bytes_max: Size,
    /// Tenants in one commit.
    group_tenants_max: usize,
    /// Largest segment, about, unless a single batch is larger: who reads one event reads all of
    /// its segment from the disk.
    segment_bytes_max: Size,
    /// How long an append may wait for room before it is refused.
    append_wait_max: Length,
    /// How long a commit waits for more events; 0 = not at all.
    group_linger: Length,
    /// Shortest pause between two hints to the other processes on a PostgreSQL that logs have
    /// grown; 0 = none are sent or listened for, and logs are only polled, twice a second.
    notify_interval: Length,
    /// Newest events kept in memory, of all tenants.
    tail_bytes_max: Size,
    /// What a reader takes from the database or the tail at once, and aims at in a frame.
    page_bytes_max: Size,
    /// Identities in memory before they are written to the index.
    identities_recent_max: usize,
    /// Identities in memory, 100 bytes each, while the index cannot be written; beyond that
    /// publishing is refused.
    identities_unindexed_max: usize,
    /// Events that a page of the event log examines before it ends, full or not.
    listing_events_max: usize,
    /// What a page of the event log reads of the database before it ends, full or not.
    listing_bytes_max: Size,
    /// Events of a durable subscription that may be unsettled at once; with more, those behind
    /// wait. As many redelivered ones may be besides; with more, a job of Redeliver waits.
    subscription_window_max: usize,
    /// Durable subscriptions at work in this process at once; others wait until one is idle.
    subscription_groups_max: usize,
    /// Retries of events wait longer than their policy says by up to so many percent, 0 to 10, so
    /// that what failed together does not come together again.
    retry_jitter_percent: u32,
    /// Durable subscriptions that the products of one tenant may make.
    subscriptions_max: usize,
    /// How long identities of events are remembered; at least 7 days.
    identities_window: Length,
    /// How long a key in memory is believed after the database was asked last; at most 5 s.
    key_cache_ttl: KeyAge,
    /// Keys kept in memory.
    key_cache_max: usize,
    /// Requests to products that VerifyApiKey allows the keys of a tenant together in any minute,
    /// unless SetRateLimit says otherwise.
    tenant_requests_per_minute: u32,
    /// Calls of the hub's own API that one tenant may make in any minute, at each process; a
    /// stream is one. 0 = any number.
    api_requests_per_minute: u32,
}
