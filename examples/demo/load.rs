//! The client: calls the service all the time, each call begun at its own time, and says what became of each.

use std::time::{Duration, Instant};

use tokio::time::{self, MissedTickBehavior};
use tonic::Request;
use tonic_etcd::BalancedChannel;

use crate::events::{Call, Event, Events};
use crate::proto::echo::EchoRequest;
use crate::proto::echo::echo_client::EchoClient;

/// Calls `channel` until the receiver of its events is gone.
pub(crate) async fn run(channel: BalancedChannel, events: Events) {
    let client = EchoClient::new(channel);
    let mut due = time::interval(Duration::from_secs(1) / CALLS_A_SECOND);
    due.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !events.is_closed() {
        due.tick().await;
        let (client, events) = (client.clone(), events.clone());
        tokio::spawn(async move {
            let _ = events.send(Event::Called(call(client).await));
        });
    }
}

async fn call(mut client: EchoClient<BalancedChannel>) -> Call {
    let begin = Instant::now();
    let mut request = Request::new(EchoRequest { message: "hello".to_owned() });
    request.set_timeout(DEADLINE);
    let answer = match client.unary_echo(request).await {
        Ok(reply) => Ok(reply.into_inner().address),
        Err(status) => Err(format!("{}: {}", status.code(), status.message())),
    };
    Call { begin, end: Instant::now(), answer }
}

/// Enough to see within 50 ms which servers are called, and next to nothing for a small machine.
pub(crate) const CALLS_A_SECOND: u32 = 200;
/// Far above what an echo takes, so that only a call that hangs meets it.
const DEADLINE: Duration = Duration::from_secs(2);
