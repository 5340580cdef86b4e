//! What was promised, and whether it held: judged from the calls and the moments, not from what the screen showed.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::events::Call;
use crate::screen::{Tone, grouped};
use crate::stage::Stage;
use crate::story::Moments;

/// Prints the summary, and returns whether every promise held.
pub(crate) fn sum_up(stage: &mut Stage, moments: &Moments, took: Duration) -> bool {
    let failures = Failures::sort(stage.calls(), moments);
    let promises =
        [joined(stage, moments), left(stage, moments), killed(&failures, moments), down(stage, &failures, moments)];
    let kept = promises.iter().all(|promise| promise.kept) && failures.others.is_empty();

    let mut text = format!("\n{}\n", stage.screen.paint(Tone::Bold, "What was promised, and what was seen"));
    for Promise { what, promised, seen, kept } in &promises {
        let (mark, tone) = if *kept { ("kept  ", Tone::Good) } else { ("BROKEN", Tone::Bad) };
        let mark = stage.screen.paint(tone, mark);
        let _ = writeln!(text, "  {mark}  {what:<20}{promised}\n{:<30}{seen}", "");
    }
    let _ = writeln!(text, "\n  {}", failures.summary(stage.calls().len()));
    for call in failures.others.iter().take(SHOWN) {
        if let Err(reason) = &call.answer {
            let _ = writeln!(text, "  {}  {reason}", stage.screen.paint(Tone::Bad, "failed"));
        }
    }
    let (end, tone) = if kept { ("All promises held.", Tone::Good) } else { ("Not all promises held.", Tone::Bad) };
    let _ = writeln!(text, "  {} It took {} s.", stage.screen.paint(tone, end), took.as_secs());
    stage.screen.leave_table();
    stage.screen.print(&text);
    kept
}

struct Promise {
    what: &'static str,
    promised: &'static str,
    seen: String,
    kept: bool,
}

fn joined(stage: &Stage, moments: &Moments) -> Promise {
    let after =
        stage.first_call(moments.join.server).map(|first| first.saturating_duration_since(moments.join.registered));
    Promise {
        what: "a server joins",
        promised: "its first call comes within 1 s",
        seen: after.map_or_else(
            || "no call came".to_owned(),
            |after| format!("it came {} ms after the server was registered", after.as_millis()),
        ),
        kept: after.is_some_and(|after| after <= LIMIT),
    }
}

fn left(stage: &Stage, moments: &Moments) -> Promise {
    let after = stage
        .last_call(moments.leave.server)
        .map(|last| last.saturating_duration_since(moments.leave.signalled))
        .unwrap_or_default();
    Promise {
        what: "a server stops",
        promised: "no call goes to it later than 1 s after SIGTERM",
        seen: format!("the last one began {} ms after", after.as_millis()),
        kept: after <= LIMIT,
    }
}

fn killed(failures: &Failures<'_>, moments: &Moments) -> Promise {
    let last = failures.to_the_dead.iter().map(|call| call.begin).max();
    let after = last.unwrap_or(moments.kill.killed).saturating_duration_since(moments.kill.killed);
    let to_the_dead = match failures.to_the_dead.len() {
        0 => "no later one failed".to_owned(),
        calls => format!("{} later ones, for {:.1} s", grouped(calls), after.as_secs_f64()),
    };
    Promise {
        what: "a server is killed",
        promised: "only calls in flight on it fail",
        seen: format!("{} in flight failed; {to_the_dead}", failures.in_flight),
        kept: failures.to_the_dead.is_empty(),
    }
}

fn down(stage: &Stage, failures: &Failures<'_>, moments: &Moments) -> Promise {
    let during = |call: &Call| call.begin <= moments.outage.until && call.end >= moments.outage.from;
    let calls = stage.calls().iter().filter(|call| during(call)).count();
    let failed = failures.others.iter().filter(|call| during(call)).count();
    let forgotten = moments.outage.forgotten;
    Promise {
        what: "etcd is down",
        promised: "no call fails, and no server is forgotten",
        seen: format!("{failed} of {} calls failed, {forgotten} servers were forgotten", grouped(calls)),
        kept: failed == 0 && forgotten == 0,
    }
}

/// The calls that failed, by why.
struct Failures<'a> {
    /// Begun before the server was killed: they may have been with it.
    in_flight: usize,
    /// Begun while it was dead and still in the book: there must be none.
    to_the_dead: Vec<&'a Call>,
    /// All others: there must be none.
    others: Vec<&'a Call>,
}

impl<'a> Failures<'a> {
    fn sort(calls: &'a [Call], moments: &Moments) -> Self {
        let (killed, off_the_list) = (moments.kill.killed, moments.kill.off_the_list + HEARD);
        let begun = |begin: Instant, call: &Call| call.begin <= begin;
        let (mut in_flight, mut to_the_dead, mut others) = (0, Vec::new(), Vec::new());
        for call in calls.iter().filter(|call| call.answer.is_err()) {
            if begun(killed, call) && call.end >= killed {
                in_flight += 1;
            } else if call.begin > killed && begun(off_the_list, call) {
                to_the_dead.push(call);
            } else {
                others.push(call);
            }
        }
        Self { in_flight, to_the_dead, others }
    }

    fn summary(&self, calls: usize) -> String {
        let failed = self.in_flight + self.to_the_dead.len() + self.others.len();
        format!(
            "{} calls, {} failed: {} in flight at kill -9, {} to the killed server, {} others.",
            grouped(calls),
            grouped(failed),
            self.in_flight,
            grouped(self.to_the_dead.len()),
            self.others.len()
        )
    }
}

/// The promise for the first call of a server that joins, and for the last one of a server that leaves.
const LIMIT: Duration = Duration::from_secs(1);
/// The channel and the demo hear of a change each by itself, so one of them a little later.
const HEARD: Duration = Duration::from_millis(250);
/// Unexpected failures that are shown in full.
const SHOWN: usize = 5;
