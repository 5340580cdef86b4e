//! What happens, step by step, and what the spectator reads about it.

use std::time::{Duration, Instant};

use crate::load::CALLS_A_SECOND;
use crate::stage::{self, Life, Stage, StatusOrigin, TTL};

/// When the things happened that promises are about. Servers are meant by their numbers.
pub(crate) struct Moments {
    pub(crate) join: Join,
    pub(crate) leave: Leave,
    pub(crate) kill: Kill,
    pub(crate) outage: Outage,
}

pub(crate) struct Join {
    pub(crate) server: usize,
    pub(crate) registered: Instant,
}

pub(crate) struct Leave {
    pub(crate) server: usize,
    pub(crate) signalled: Instant,
}

pub(crate) struct Kill {
    pub(crate) killed: Instant,
    /// When the client heard from etcd that it is gone.
    pub(crate) off_the_list: Instant,
}

pub(crate) struct Outage {
    pub(crate) from: Instant,
    pub(crate) until: Instant,
    /// How often a server went off the client's list from then to the end of the step.
    pub(crate) forgotten: usize,
}

pub(crate) async fn tell(stage: &mut Stage) -> Result<Moments, StatusOrigin> {
    stage.screen.headline("tonic-etcd: servers come and go, and a client's calls follow them");
    begin(stage).await?;
    let join = join(stage).await?;
    let leave = leave(stage, 1).await?;
    let kill = kill(stage, 2).await?;
    let outage = outage(stage).await?;
    Ok(Moments { join, leave, kill, outage })
}

async fn begin(stage: &mut Stage) -> Result<(), StatusOrigin> {
    let address = stage.etcd_address();
    stage.screen.say(&format!(
        "etcd starts, on {address}. It is the address book: servers write themselves down in it, and clients read it."
    ));
    stage.until("etcd to answer", PATIENCE, Stage::etcd_answers).await?;
    stage.screen.say("Three echo servers start. Each finds a port of its own and writes itself down as \"echo\".");
    for _ in 0..3 {
        stage.start_server()?;
    }
    stage
        .screen
        .say(&format!("A client asks for \"echo\" and makes {CALLS_A_SECOND} calls a second, to whom it likes."));
    stage.start_client()?;
    stage.until("calls to all three servers", PATIENCE, Stage::settled).await?;
    stage.look_on(LOOK).await?;
    stage.pause();
    Ok(())
}

async fn join(stage: &mut Stage) -> Result<Join, StatusOrigin> {
    stage.screen.headline("1 of 4  A server joins");
    stage.screen.say("A fourth server starts. Nobody tells the client: it watches the address book.");
    let server = stage.start_server()?;
    stage.until("calls to the fourth server", PATIENCE, Stage::settled).await?;
    // It is registered before it is called, but the line that says so may come later than the call's end.
    let registered = |stage: &Stage| match stage.server(server).life {
        Life::Registered(at) => Some(at),
        _ => None,
    };
    stage
        .until("the fourth server to say that it is registered", PATIENCE, |stage| registered(stage).is_some())
        .await?;
    let registered = registered(stage).unwrap_or_else(Instant::now);
    let after = stage.first_call(server).map(|first| first.saturating_duration_since(registered)).unwrap_or_default();
    stage.screen.say(&format!("It is in the book. Its first call came {} ms after that.", after.as_millis()));
    stage.look_on(LOOK).await?;
    stage.pause();
    Ok(Join { server, registered })
}

async fn leave(stage: &mut Stage, server: usize) -> Result<Leave, StatusOrigin> {
    stage.screen.headline("2 of 4  A server is told to stop");
    stage.screen.say(&format!(
        "{} gets SIGTERM, as in every deployment. It strikes itself out of the book, serves on until the clients have heard \
         of it, and ends.",
        stage::name(server)
    ));
    let signalled = stage.terminate_server(server)?;
    stage.until("the server to stop", PATIENCE, |stage| matches!(stage.server(server).life, Life::Stopped)).await?;
    let after = stage.last_call(server).map(|last| last.saturating_duration_since(signalled)).unwrap_or_default();
    stage.screen.say(&format!("It has stopped. The last call went to it {} ms after the signal.", after.as_millis()));
    stage.look_on(LOOK).await?;
    stage.pause();
    Ok(Leave { server, signalled })
}

async fn kill(stage: &mut Stage, server: usize) -> Result<Kill, StatusOrigin> {
    stage.screen.headline("3 of 4  A server is killed");
    let name = stage::name(server);
    stage.screen.say(&format!(
        "{name} gets kill -9 and cannot say goodbye. Its entry is on a lease of {} s, which it no longer renews.",
        TTL.as_secs()
    ));
    let killed = stage.kill_server(server)?;
    stage
        .screen
        .say("The client sees that its connection ended, and calls it no more, though it is still in the book.");
    stage.until("the killed server to be struck out", PATIENCE, |stage| stage.off_the_list(server).is_some()).await?;
    let off_the_list = stage.off_the_list(server).unwrap_or_else(Instant::now);
    stage.screen.say(&format!(
        "Its lease ended, and it did not come back: {name} is struck out {:.1} s after its death.",
        (off_the_list - killed).as_secs_f64()
    ));
    stage.look_on(LOOK).await?;
    stage.pause();
    Ok(Kill { killed, off_the_list })
}

async fn outage(stage: &mut Stage) -> Result<Outage, StatusOrigin> {
    stage.screen.headline("4 of 4  etcd itself is killed");
    stage.screen.say(&format!(
        "The address book is gone, for longer than the leases of {} s. The client keeps what it knew.",
        TTL.as_secs()
    ));
    let struck_out = stage.struck_out();
    let from = stage.kill_etcd()?;
    stage.look_on(OUTAGE).await?;
    stage.pause();
    stage.restart_etcd()?;
    stage.until("etcd to answer again", PATIENCE, Stage::etcd_answers).await?;
    let until = Instant::now();
    stage.screen.say("etcd is back, with its data. Servers and client find it again by themselves.");
    stage.look_on(AFTER).await?;
    stage.pause();
    Ok(Outage { from, until, forgotten: stage.struck_out() - struck_out })
}

/// Longer than anything takes on a slow machine: a longer wait is in vain.
const PATIENCE: Duration = Duration::from_secs(12);
/// Long enough to see the table come to rest.
const LOOK: Duration = Duration::from_secs(4);
/// Longer than the servers' leases.
const OUTAGE: Duration = Duration::from_secs(8);
/// Longer than the limit within which servers and clients find an etcd that came back.
const AFTER: Duration = Duration::from_secs(4);
