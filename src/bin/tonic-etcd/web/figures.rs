//! A file of figures to the board: what a program of yours measured, beside the registry.
//!
//! ```json
//! {
//!   "title": "client",
//!   "figures": [{ "name": "calls a second", "value": 200 }, { "name": "p99", "value": 1.2, "unit": "ms" }],
//!   "instances": { "10.0.0.1:50051": { "calls/s": 66 } }
//! }
//! ```

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::time::{MissedTickBehavior, interval};

use super::hub::Hub;
use super::wire::{self, Report};

/// Reads the file every second, and tells the pages what is new in it. Never ends.
pub(crate) async fn follow(file: &Path, hub: &Hub) {
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known = None;
    loop {
        looks.tick().await;
        let read = read(file).await.map_err(|error| format!("{}: {error}", file.display()));
        if known.as_ref() != Some(&read) {
            let (report, trouble) = match read.clone() {
                Ok(report) => (report, None),
                Err(trouble) => (Report::default(), Some(trouble)),
            };
            hub.update(|board, time| board.on_figures(&wire::Figures { time, report, trouble }));
            known = Some(read);
        }
    }
}

async fn read(file: &Path) -> io::Result<Report> {
    // To open a pipe is to wait for its other end.
    if !tokio::fs::metadata(file).await?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    tokio::fs::File::open(file).await?.take(MAX_FILE + 1).read_to_end(&mut text).await?;
    if u64::try_from(text.len()).is_ok_and(|len| len > MAX_FILE) {
        return Err(io::Error::other(format!("it is larger than {MAX_FILE} bytes")));
    }
    Ok(serde_json::from_slice(&text)?)
}

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Far above what a page can show.
const MAX_FILE: u64 = 256 << 10;
