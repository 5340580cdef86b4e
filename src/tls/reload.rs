//! Certificates from disk, read again before each connection; what is good replaces what was.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::config::ClientTls;
use crate::error::{ConfigError, chain};
use crate::log_limit::LogLimit;
use crate::targets::{CHANNEL, ETCD};

/// What the sessions are with. What is logged about their certificates has its target.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Peer {
    Etcd,
    Instance,
}

/// The last good certificates, and what was made of them.
pub(super) struct Reloaded {
    peer: Peer,
    /// Whether any of them came from a file.
    has_files: bool,
    current: Mutex<Current>,
}

struct Current {
    tls: ClientTls,
    config: Arc<ClientConfig>,
    /// When unusable files were logged the last time; `None` while all files are usable.
    log: LogLimit,
}

impl Reloaded {
    pub(super) fn new(mut tls: ClientTls, config: Arc<ClientConfig>, peer: Peer) -> Arc<Self> {
        let has_files = tls.pems().any(|pem| pem.path().is_some());
        let current = Current { tls, config, log: LogLimit::default() };
        Arc::new(Self { peer, has_files, current: Mutex::new(current) })
    }

    /// The configuration for a connection that is about to be made; one and the same while no file changes.
    pub(super) async fn config(self: &Arc<Self>) -> Arc<ClientConfig> {
        if self.has_files {
            let reloaded = self.clone();
            // An error means that the runtime is going down.
            if let Ok(config) = spawn_blocking(move || reloaded.reload()).await {
                return config;
            }
        }
        self.with_current(|current| current.config.clone())
    }

    fn reload(&self) -> Arc<ClientConfig> {
        self.with_current(|current| {
            match current.tls.read_again() {
                Ok(None) => current.log = LogLimit::default(),
                Ok(Some((tls, config))) => {
                    self.peer.log_change();
                    *current = Current { tls, config: Arc::new(config), log: LogLimit::default() };
                }
                Err(error) => {
                    if current.log.admit(Instant::now()) {
                        self.peer.log_unusable(&error);
                    }
                }
            }
            current.config.clone()
        })
    }

    fn with_current<T>(&self, look: impl FnOnce(&mut Current) -> T) -> T {
        look(&mut self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Peer {
    fn log_change(self) {
        match self {
            Self::Etcd => tracing::info!(target: ETCD, "certificates have changed; new connections use the new ones"),
            Self::Instance => {
                tracing::info!(target: CHANNEL, "certificates have changed; new connections use the new ones");
            }
        }
    }

    fn log_unusable(self, error: &ConfigError) {
        let error = chain(error);
        match self {
            Self::Etcd => {
                tracing::warn!(target: ETCD, error, "certificates on disk are unusable; the last good ones stay");
            }
            Self::Instance => {
                tracing::warn!(target: CHANNEL, error, "certificates on disk are unusable; the last good ones stay");
            }
        }
    }
}

impl ClientTls {
    /// These options and their configuration from the files as they are now; `None` if no file changed.
    fn read_again(&self) -> Result<Option<(Self, ClientConfig)>, ConfigError> {
        let mut now = self.clone();
        let mut is_changed = false;
        for pem in now.pems() {
            is_changed |= pem.read_again()?;
        }
        if !is_changed {
            return Ok(None);
        }
        let config = now.config()?;
        Ok(Some((now, config)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_log::Log;

    #[test]
    fn certificates_are_logged_with_the_target_of_their_peer() {
        let error = ClientTls::new().build(Peer::Etcd).expect_err("there are no roots");
        for (peer, target, other) in [(Peer::Etcd, ETCD, CHANNEL), (Peer::Instance, CHANNEL, ETCD)] {
            let (log, _guard) = Log::capture();
            peer.log_change();
            peer.log_unusable(&error);
            assert_eq!((log.count(target), log.count(other)), (2, 0), "{peer:?}");
        }
    }
}
