//! The signals that tell a process to end.

#[cfg(not(unix))]
use crate::targets::REGISTRATION;

/// Resolves with SIGTERM, which orchestrators send, or with ctrl-c.
///
/// On Unix, called in a tokio runtime, both are handled from the call on, so that neither can end the process before
/// the future is polled; called outside of a runtime, or on other systems (ctrl-c only), from the first poll on. The
/// signals stay handled: a second one does not end the process, only SIGKILL does.
///
/// If the handler of one signal cannot be installed, a warning is logged and the other one counts.
///
/// # Cancel safety
///
/// Dropped before the signal, the future does nothing more, but the signals stay handled.
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

    use crate::targets::REGISTRATION;

    /// The handled signals; `None` where the handler cannot be installed.
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
        signal(kind).inspect_err(|error| tracing::warn!(target: REGISTRATION, %error, "{name} cannot be handled")).ok()
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
            tracing::warn!(target: REGISTRATION, %error, "ctrl-c cannot be handled");
            std::future::pending::<()>().await;
        }
    }
}
