//! Many clients with a password that log in to one etcd at the same time: all get in, in the time that the hashes take.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use etcd_client::Client;
use futures_util::future::join_all;
use tokio::time::timeout;
use tonic_etcd::{Discover, Instance, Registration, RegistrationStatus, Registry};

use crate::auth::{PASSWORD, add_users};
use crate::support::costs::Costs;
use crate::support::etcd::Etcd;
use crate::support::{eventually, figures};

/// An etcd with authentication, and clients that each have a registry, a registration and a service that they follow.
pub(crate) struct Herd {
    etcd: Etcd,
    /// How long etcd takes for one login that comes alone.
    hash: Duration,
    clients: Vec<Member>,
}

struct Member {
    registration: Registration,
    discover: Discover,
    /// It has its connection as long as this is there.
    _registry: Registry,
}

impl Member {
    fn start(url: &str, number: usize) -> Self {
        let registry = Registry::builder([url]).auth("server", PASSWORD).build().expect("a good registry");
        let third = u8::try_from(number / 250).expect("few hundreds");
        let address = [127, 0, third, u8::try_from(number % 250).expect("it is below 250")];
        let instance = Instance::new("echo", SocketAddr::from((address, 80)));
        let registration = registry.registration(instance).build().expect("good options");
        registration.start();
        let discover = registry.discover("echo").expect("a good name");
        Self { registration, discover, _registry: registry }
    }

    async fn is_in(&mut self) {
        self.registration.registered().await.expect("it does not give up");
        self.discover.ready().await;
    }
}

impl Herd {
    /// Starts so many clients together and waits until all are registered and know the service, with two logins each at
    /// most. Returns how long that took as well.
    pub(crate) async fn start(count: usize) -> (Self, Duration) {
        let etcd = Etcd::start().await;
        add_users(&etcd).await;
        etcd.client().await.auth_enable().await.expect("etcd switches authentication on");
        let hash = one_hash(&etcd).await;
        let before = Costs::of(&etcd).await.calls("Authenticate");
        let began = Instant::now();
        let url = etcd.url();
        let clients = (0..count).map(|number| Member::start(&url, number)).collect();
        let mut herd = Self { etcd, hash, clients };
        let all = join_all(herd.clients.iter_mut().map(Member::is_in));
        // A failing test is to say how many are.
        let _ = timeout(PATIENCE, all).await;
        assert_eq!(herd.registered().len(), count, "all are registered after {:?}", began.elapsed());
        let took = began.elapsed();
        let logins = Costs::of(&herd.etcd).await.calls("Authenticate") - before;
        herd.counts_logins("start together", logins);
        (herd, took)
    }

    /// Restarts etcd, which forgets all tokens by that, and waits until all follow it again, with two logins each at
    /// most. Returns how long that took.
    pub(crate) async fn survives_a_restart(&self) -> Duration {
        let count = self.clients.len();
        let is_followed = async || Costs::of(&self.etcd).await.watchers() == 2 * count as u64;
        eventually("each watches its service and its key", PATIENCE, is_followed).await;
        self.etcd.restart().await;
        let back = Instant::now();
        eventually("each watches them again", PATIENCE, is_followed).await;
        let took = back.elapsed();
        self.counts_logins("are there while etcd restarts", Costs::of(&self.etcd).await.calls("Authenticate"));
        took
    }

    fn counts_logins(&self, what: &str, logins: u64) {
        let (count, logins) = (self.clients.len(), usize::try_from(logins).expect("a count"));
        figures::at_most(&format!("logins of {count} clients that {what}"), logins, 2 * count, "logins");
    }

    /// Twice the time of as many hashes as there are clients, one after the other.
    pub(crate) fn limit(&self) -> Duration {
        2 * self.hash * u32::try_from(self.clients.len()).expect("few hundreds")
    }

    /// The statuses of all that are registered.
    fn registered(&self) -> Vec<RegistrationStatus> {
        let statuses = self.clients.iter().map(|client| client.registration.status());
        statuses.filter(|status| matches!(status, RegistrationStatus::Registered { .. })).collect()
    }
}

async fn one_hash(etcd: &Etcd) -> Duration {
    const LOGINS: u32 = 5;
    let client: Client = etcd.client().await;
    let began = Instant::now();
    for _ in 0..LOGINS {
        let mut client = client.auth_client();
        client.authenticate("server".to_owned(), PASSWORD.to_owned()).await.expect("the password is right");
    }
    began.elapsed() / LOGINS
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_clients_that_log_in_together_are_in_with_two_logins_each_at_most() {
    let (herd, _) = Herd::start(60).await;
    herd.survives_a_restart().await;
}

/// Longer than an etcd takes that gets a twentieth of a core.
const PATIENCE: Duration = Duration::from_secs(180);
