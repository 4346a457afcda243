//! Follows WatchApiKeys, so that decisions may be used again until something changes.

use std::sync::Arc;
use std::time::Duration;

use hub_proto::hub::api_keys::v1::api_keys_client::ApiKeysClient;
use hub_proto::hub::api_keys::v1::watch_api_keys_response::Frame;
use hub_proto::hub::api_keys::v1::{WatchApiKeysRequest, WatchApiKeysResponse};
use hub_proto::hub::core::v1::Closing;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tonic::Streaming;

use super::verifier::Verifier;
use crate::backoff::{Backoff, spread};
use crate::call::Transport;
use crate::error::{Error, Result};
use crate::silence::Silence;

/// What an [`ApiKeyLayer`](super::ApiKeyLayer) knows of changes of keys.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ApiKeyLayerState {
    /// The watch is being opened. Every request is asked about.
    Connecting,
    /// Changes arrive as they are made: decisions are used again.
    Watching {
        /// All changes up to this epoch are known here. A request that comes after this reached
        /// `RevokeApiKeyResponse.epoch` is refused.
        epoch: u64,
    },
    /// The watch broke; it is opened again later. Every request is asked about.
    Waiting {
        /// When.
        until: Instant,
        /// Why; `None` if the hub asked to reconnect.
        error: Option<Error>,
    },
}

/// See the module.
pub(super) struct Follower {
    client: ApiKeysClient<Transport>,
    verifier: Arc<Verifier>,
    state: watch::Sender<ApiKeyLayerState>,
    backoff: Backoff,
}

impl Follower {
    pub(super) fn new(
        client: ApiKeysClient<Transport>,
        verifier: Arc<Verifier>,
    ) -> (Self, watch::Receiver<ApiKeyLayerState>) {
        let (sender, state) = watch::channel(ApiKeyLayerState::Connecting);
        let follower = Follower {
            client,
            verifier,
            state: sender,
            backoff: Backoff::default(),
        };
        (follower, state)
    }

    /// Follows until it is dropped. An error that does not pass by itself, such as a scope that the
    /// key lacks, may be mended at the hub, so it is tried again as any other.
    pub(super) async fn run(mut self) {
        loop {
            self.state.send_replace(ApiKeyLayerState::Connecting);
            let closed = self.follow().await;
            self.verifier.cache(|cache| cache.broke());
            let (wait, error) = match closed {
                Ok(closing) => (self.asked(&closing), None),
                Err(error) => (self.backoff.next(error.retry_after()), Some(error)),
            };
            let until = Instant::now() + wait;
            self.state
                .send_replace(ApiKeyLayerState::Waiting { until, error });
            sleep_until(until).await;
        }
    }

    fn asked(&mut self, closing: &Closing) -> Duration {
        let asked = closing
            .reconnect_after
            .and_then(|after| Duration::try_from(after).ok());
        asked.map_or_else(|| self.backoff.next(None), spread)
    }

    /// One stream to its end. It begins with now: what was kept before is dropped, so nothing is
    /// missed.
    async fn follow(&mut self) -> Result<Closing> {
        let mut silence = Silence::new();
        let mut stream = self.open(&mut silence).await?;
        loop {
            // Frames of a newer hub are passed over.
            let Some(frame) = silence.next(&mut stream).await?.frame else {
                continue;
            };
            match frame {
                Frame::Opened(opened) => {
                    silence.opened(&opened);
                    let epoch = opened.head_sequence;
                    self.verifier
                        .cache(|cache| cache.opened(epoch, Instant::now()));
                    self.reached(epoch);
                }
                Frame::Changes(changes) => {
                    self.verifier.cache(|cache| {
                        cache.changed(&changes);
                        cache.heard(Instant::now());
                    });
                    self.reached(changes.epoch);
                }
                Frame::Gap(gap) => {
                    self.verifier.cache(|cache| {
                        cache.missed(gap.to_sequence);
                        cache.heard(Instant::now());
                    });
                    self.reached(gap.to_sequence);
                }
                Frame::Progress(progress) => self.beat(progress.sequence),
                Frame::CaughtUp(caught_up) => self.beat(caught_up.sequence),
                Frame::Closing(closing) => return Ok(closing),
            }
        }
    }

    async fn open(&mut self, silence: &mut Silence) -> Result<Streaming<WatchApiKeysResponse>> {
        let opening = self.client.watch_api_keys(WatchApiKeysRequest::default());
        tokio::select! {
            biased;
            response = opening => Ok(response?.into_inner()),
            silent = silence.wait() => Err(Error::silent(silent)),
        }
    }

    fn beat(&mut self, epoch: u64) {
        self.backoff.reset();
        self.verifier.cache(|cache| cache.heard(Instant::now()));
        self.reached(epoch);
    }

    fn reached(&self, epoch: u64) {
        self.state.send_if_modified(|state| match state {
            ApiKeyLayerState::Watching { epoch: known } if *known >= epoch => false,
            _ => {
                *state = ApiKeyLayerState::Watching { epoch };
                true
            }
        });
    }
}
