//! A policy of one's own around another: servers with the tag `standby` get calls only where there is no other server.

use std::error::Error;
use std::time::Duration;

use tonic_etcd::Registry;
use tonic_etcd::policy::{Candidate, LeastRequest, PickArgs, Picker, Policy};

use proto::echo::EchoRequest;
use proto::echo::echo_client::EchoClient;

mod proto;

/// Leaves out servers with the tag `standby`, and picks among the others by the policy inside.
#[derive(Debug)]
struct ActiveFirst<P>(P);

impl<P: Policy> Policy for ActiveFirst<P> {
    fn picker(&self, candidates: &[Candidate]) -> Box<dyn Picker> {
        let active = candidates.iter().enumerate().filter(|(_, it)| !it.instance().tags().contains("standby"));
        let (indices, active): (Vec<_>, Vec<_>) = active.map(|(index, it)| (index, it.clone())).unzip();
        if active.is_empty() {
            return self.0.picker(candidates);
        }
        Box::new(Part { picker: self.0.picker(&active), active, indices })
    }

    fn inner(&self) -> Option<&dyn Policy> {
        Some(&self.0)
    }
}

/// The picker for some of the candidates, and where they are among all of them.
struct Part {
    picker: Box<dyn Picker>,
    active: Vec<Candidate>,
    indices: Vec<usize>,
}

impl Picker for Part {
    fn pick(&self, _: &[Candidate], call: &PickArgs<'_>) -> Option<usize> {
        self.picker.pick(&self.active, call).and_then(|index| self.indices.get(index).copied())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().init();
    let url = std::env::args().nth(1).unwrap_or_else(|| "http://127.0.0.1:2379".to_owned());
    let options = Registry::builder([url]).build()?.channel("echo").policy(ActiveFirst(LeastRequest::new()));
    let mut client = EchoClient::new(options.timeout(Duration::from_secs(5)).build()?);
    loop {
        match client.unary_echo(EchoRequest { message: "hello".to_owned() }).await {
            Ok(reply) => println!("answered by {}", reply.into_inner().address),
            Err(status) => println!("the call failed: {}", status.message()),
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
