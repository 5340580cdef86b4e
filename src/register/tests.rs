//! Which handles keep a registration in etcd, and which outlive it.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{Iter, StreamExt as _, iter};
use tokio::runtime::Builder;
use tokio::time::timeout;
use tower::Layer as _;

use super::builder::tests::builder;
use super::server::{DrainLayer, Incoming};
use super::{Registration, RegistrationSet, RegistrationStatus, StatusChanges};
use crate::test_log::Log;

#[test]
fn a_deregistration_ends_although_its_runtime_is_not_driven() {
    let runtime = || Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    let (begins, serves) = (runtime(), runtime());
    let registration = builder().build().expect("a good instance");
    begins.block_on(async { registration.start() });
    serves.block_on(async {
        let (log, _guard) = Log::capture();
        timeout(Duration::from_secs(10), registration.deregister()).await.expect("a process must end");
        assert_eq!(log.count("not driven"), 1, "{}", log.text());
    });
}

#[tokio::test(start_paused = true)]
async fn a_layer_keeps_a_registration() {
    keeps(|registration| registration.layer()).await;
}

#[tokio::test(start_paused = true)]
async fn incoming_connections_keep_a_registration() {
    keeps(|registration| registration.incoming(connections())).await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_future_keeps_a_registration_before_it_is_polled() {
    keeps(|registration| registration.deregister_on_never()).await;
}

#[tokio::test(start_paused = true)]
async fn a_service_does_not_keep_a_registration() {
    for (handle, changes) in started() {
        let service = handle.layer().layer(());
        drop(handle);
        let end = timeout(A_WHILE, end_of(changes)).await;
        assert_eq!(end, Ok(Some(RegistrationStatus::Gone)), "connections outlive a server");
        drop(service);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_does_not_keep_a_registration() {
    for (handle, changes) in started() {
        let mut incoming = handle.incoming(connections());
        let connection = incoming.next().await.expect("one connection").expect("a good one");
        drop((handle, incoming));
        let end = timeout(A_WHILE, end_of(changes)).await;
        assert_eq!(end, Ok(Some(RegistrationStatus::Gone)), "it may stay open for days");
        drop(connection);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_to_which_no_connection_can_come_any_more_leaves_with_all_of_its_registrations() {
    let [one, other] = [(); 2].map(|()| builder().build().expect("a good instance"));
    let _set = RegistrationSet::new([one.clone(), other.clone()]).expect("two of one server");
    other.start();
    let none = futures_util::stream::empty::<Result<tokio::io::DuplexStream, Infallible>>();
    one.serve(tonic::service::Routes::default(), none, std::future::pending()).await.expect("it has served");
    assert!(one.status().has_ended() && other.status().has_ended());
}

/// Holds what `part` makes of a registration to keeping it, for one registration and for a set.
async fn keeps<T>(part: impl Fn(&dyn Handle) -> T) {
    for (handle, changes) in started() {
        let kept = part(&*handle);
        drop(handle);
        let mut end = Box::pin(end_of(changes));
        assert!(timeout(A_WHILE, &mut end).await.is_err(), "it goes on without another handle");
        drop(kept);
        let end = timeout(A_WHILE, end).await;
        assert_eq!(end, Ok(Some(RegistrationStatus::Gone)), "it ends with its last handle");
    }
}

/// A registration and a set of one, which run, each with what becomes of the registration.
fn started() -> [(Box<dyn Handle>, StatusChanges); 2] {
    let [alone, member] = [(); 2].map(|()| builder().build().expect("a good instance"));
    let changes = [&alone, &member].map(Registration::status_changes);
    let set = RegistrationSet::new([member]).expect("one registration");
    alone.start();
    set.start();
    let [first, second] = changes;
    [(Box::new(alone), first), (Box::new(set), second)]
}

/// The last status; comes when the registration has ended.
async fn end_of(changes: StatusChanges) -> Option<RegistrationStatus> {
    changes.fold(None, async |_, status| Some(status)).await
}

type Connections = Iter<std::array::IntoIter<Result<tokio::io::Empty, Infallible>, 1>>;

fn connections() -> Connections {
    iter([Ok(tokio::io::empty())])
}

/// What a server takes of one registration or of a set.
trait Handle {
    fn layer(&self) -> DrainLayer;
    fn incoming(&self, connections: Connections) -> Incoming<Connections>;
    fn deregister_on_never(&self) -> BoxFuture<'static, ()>;
}

impl Handle for Registration {
    fn layer(&self) -> DrainLayer {
        self.layer()
    }

    fn incoming(&self, connections: Connections) -> Incoming<Connections> {
        self.incoming(connections)
    }

    fn deregister_on_never(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.deregister_on(pending()))
    }
}

impl Handle for RegistrationSet {
    fn layer(&self) -> DrainLayer {
        self.layer()
    }

    fn incoming(&self, connections: Connections) -> Incoming<Connections> {
        self.incoming(connections)
    }

    fn deregister_on_never(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.deregister_on(pending()))
    }
}

/// Twenty times what a registration takes to leave without an etcd.
const A_WHILE: Duration = Duration::from_secs(60);
