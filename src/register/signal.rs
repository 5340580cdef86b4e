//! What tells a process to end.

/// Resolves with SIGTERM or ctrl-c: what an orchestrator sends and what a person types.
///
/// On Unix, called in a tokio runtime, it handles both from the call on, so that neither can end the process before the future
/// is polled; called outside of one, or elsewhere, from the first poll on. The signals stay handled: a second one does not end the process by
/// itself, only SIGKILL does.
///
/// Where the handler of one cannot be installed, the other one counts.
pub fn shutdown_signal() -> impl Future<Output = ()> + Send + 'static {
    let early = tokio::runtime::Handle::try_current().is_ok().then(Signals::handle);
    async move {
        early.unwrap_or_else(Signals::handle).any().await;
    }
}

#[cfg(unix)]
use unix::Signals;
#[cfg(unix)]
mod unix {
    use std::future::pending;

    use tokio::signal::unix::{Signal, SignalKind, signal};

    /// What is handled; `None` where that is not possible.
    pub(super) struct Signals {
        interrupt: Option<Signal>,
        terminate: Option<Signal>,
    }

    impl Signals {
        pub(super) fn handle() -> Self {
            Self {
                interrupt: handle("ctrl-c", SignalKind::interrupt()),
                terminate: handle("SIGTERM", SignalKind::terminate()),
            }
        }

        pub(super) async fn any(self) {
            tokio::select! {
                () = received(self.interrupt) => {}
                () = received(self.terminate) => {}
            }
        }
    }

    fn handle(name: &str, kind: SignalKind) -> Option<Signal> {
        signal(kind).inspect_err(|error| tracing::warn!(%error, "{name} cannot be handled")).ok()
    }

    async fn received(signal: Option<Signal>) {
        match signal {
            Some(mut signal) => {
                signal.recv().await;
            }
            None => pending().await,
        }
    }
}

#[cfg(not(unix))]
struct Signals;
#[cfg(not(unix))]
impl Signals {
    fn handle() -> Self {
        Self
    }

    async fn any(self) {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "ctrl-c cannot be handled");
            std::future::pending::<()>().await;
        }
    }
}
