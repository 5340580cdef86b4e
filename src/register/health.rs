//! A server's health as its tonic-health service reports it, for a registration that follows it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::{Instant, sleep};
use tonic::Request;
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Answer;
use tonic_health::pb::health_server::Health as _;
use tonic_health::server::{HealthReporter, HealthService, WatchStream};

use super::desired::HealthSource;
use crate::targets::REGISTRATION;

/// One service of one reporter.
#[derive(Debug)]
struct Reported {
    reporter: HealthReporter,
    service: String,
}

/// The health of `service` as it is set at `reporter`.
pub(super) fn reported(reporter: HealthReporter, service: String) -> Arc<dyn HealthSource> {
    Arc::new(Reported { reporter, service })
}

impl HealthSource for Reported {
    fn serving(&self) -> BoxStream<'static, bool> {
        // A reporter has no way to read a status; the service that answers clients has one.
        let service = HealthService::from_health_reporter(self.reporter.clone());
        let watched = Watched { service, name: self.service.clone(), statuses: None, is_warned: false };
        stream::unfold(watched, |mut watched| async move { Some((watched.next().await, watched)) }).boxed()
    }

    fn shut_down(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            for service in [&self.service, WHOLE_SERVER] {
                self.reporter.set_service_status(service, ServingStatus::NotServing).await;
            }
        })
    }
}

/// The statuses of one service, watched like a client watches them.
struct Watched {
    service: HealthService,
    name: String,
    /// `None` while the service is unknown.
    statuses: Option<WatchStream>,
    /// Whether it was said that the service is unknown: once, until it is known.
    is_warned: bool,
}

impl Watched {
    /// Waits for the next status: whether the service serves.
    async fn next(&mut self) -> bool {
        let begin = Instant::now();
        loop {
            if let Some(statuses) = &mut self.statuses {
                let Some(Ok(response)) = statuses.next().await else {
                    // Cleared: the service has no status any more.
                    self.statuses = None;
                    return false;
                };
                return response.status == Answer::Serving as i32;
            }
            let request = HealthCheckRequest { service: self.name.clone() };
            match self.service.watch(Request::new(request)).await {
                Ok(statuses) => (self.statuses, self.is_warned) = (Some(statuses.into_inner()), false),
                Err(_unknown) => {
                    if !self.is_warned && begin.elapsed() >= UNKNOWN_FOR {
                        self.is_warned = true;
                        let service = &self.name;
                        tracing::warn!(
                            target: REGISTRATION,
                            service,
                            "not registered: the health reporter knows no service of this name"
                        );
                    }
                    sleep(LOOK_INTERVAL).await;
                }
            }
        }
    }
}

/// How often the status of a service is looked for that the reporter does not know (yet): a new service is not
/// announced. Ten lookups in a map per second cost nothing, and a server that starts is not held up.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// After how long that is told, once: a name that is misspelt never serves. Longer than most servers take to set their
/// status, and soon enough for a reader waiting for the registration.
const UNKNOWN_FOR: Duration = Duration::from_secs(10);

/// The name of the whole server in `grpc.health.v1`.
const WHOLE_SERVER: &str = "";

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::test_log::Log;

    #[tokio::test(start_paused = true)]
    async fn only_serving_is_serving_and_an_unknown_service_is_looked_for() {
        let mut reporter = HealthReporter::new();
        let mut serving = reported(reporter.clone(), "echo".to_owned()).serving();
        let unknown = tokio::time::timeout(Duration::from_secs(60), serving.next()).await;
        assert!(unknown.is_err(), "a service that the reporter does not know has no status");

        for (status, serves) in [
            (ServingStatus::Serving, true),
            (ServingStatus::NotServing, false),
            (ServingStatus::Serving, true),
            (ServingStatus::Unknown, false),
            (ServingStatus::Serving, true),
        ] {
            reporter.set_service_status("echo", status).await;
            assert_eq!(serving.next().await, Some(serves), "{status}");
        }
        reporter.clear_service_status("echo").await;
        assert_eq!(serving.next().await, Some(false), "a service that is cleared does not serve");
        reporter.set_service_status("echo", ServingStatus::Serving).await;
        assert_eq!(serving.next().await, Some(true), "it is found again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_stays_unknown_is_told_once_by_its_name() {
        let mut reporter = HealthReporter::new();
        let mut serving = reported(reporter.clone(), "echo.Ecko".to_owned()).serving();
        let (log, _guard) = Log::capture();
        let mut wait = async |seconds| drop(timeout(Duration::from_secs(seconds), serving.next()).await);
        wait(9).await;
        assert_eq!(log.text(), "", "servers take a while to set their status");
        wait(600).await;
        assert_eq!(log.count("echo.Ecko"), 1, "{}", log.text());

        reporter.set_service_status("echo.Ecko", ServingStatus::Serving).await;
        wait(1).await;
        reporter.clear_service_status("echo.Ecko").await;
        wait(1).await;
        wait(600).await;
        assert_eq!(log.count("echo.Ecko"), 2, "it is unknown again: {}", log.text());
    }

    #[tokio::test]
    async fn shutting_down_tells_of_the_service_and_of_the_whole_server() {
        let reporter = HealthReporter::new();
        reporter.set_service_status("echo", ServingStatus::Serving).await;
        reporter.set_service_status("other", ServingStatus::Serving).await;
        let health = reported(reporter.clone(), "echo".to_owned());
        health.shut_down().await;
        for (service, serves) in [("echo", false), ("", false), ("other", true)] {
            let mut serving = reported(reporter.clone(), service.to_owned()).serving();
            assert_eq!(serving.next().await, Some(serves), "{service:?}");
        }
    }
}
