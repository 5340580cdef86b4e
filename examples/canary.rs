//! A canary release by tag: servers with the tag `canary` get ten of a hundred calls, however many they are.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use tonic_etcd::policy::{Candidate, PickArgs, Picker, Policy};
use tonic_etcd::{Instance, Registry};

use proto::echo::EchoRequest;
use proto::echo::echo_client::EchoClient;

mod proto;

/// Sends so many of a hundred calls to servers with the tag `canary`.
#[derive(Debug)]
struct Canary(u8);

impl Policy for Canary {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        let is_canary = |index: &usize| candidates[*index].instance().tags().contains("canary");
        let (canaries, others) = (0..candidates.len()).partition(is_canary);
        Box::new(Split { percent: self.0, canaries, others })
    }
}

struct Split {
    percent: u8,
    canaries: Vec<usize>,
    others: Vec<usize>,
}

impl Picker for Split {
    /// Of two servers, the one with fewer calls in flight; without any of its kind, whichever has room.
    fn pick(&self, candidates: &[Candidate], _: &PickArgs<'_>) -> Option<usize> {
        let part = if fastrand::u8(..100) < self.percent { &self.canaries } else { &self.others };
        let two = [fastrand::choice(part)?, fastrand::choice(part)?];
        two.into_iter().copied().min_by_key(|index| candidates[*index].in_flight())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let options = Registry::builder([url]).build()?.channel("echo").policy(Canary(10)).wait_for_ready(true);
    let mut client = EchoClient::new(options.timeout(Duration::from_secs(5)).build()?);

    let mut canaries = 0;
    for _ in 0..1_000 {
        let reply = client.unary_echo(EchoRequest { message: "hello".to_owned() }).await?;
        let server = reply.extensions().get::<Arc<Instance>>();
        canaries += u32::from(server.is_some_and(|server| server.tags().contains("canary")));
    }
    println!("canaries answered {canaries} of 1000 calls");
    Ok(())
}
