//! `geminga admin bookies decommission|recover`, `ledgers check`, `repairs list`.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};

use super::{Admin, show};
use crate::args::admin::{DrainArgs, ScrubArgs};
use crate::exit::{Failed, Outcome};
use crate::http::segment;
use crate::output;

mod tables;

/// Pause before it is asked again how far a bookie is.
const LOOK: Duration = Duration::from_secs(1);

/// What is to become of a bookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Drain {
    Decommission,
    Recover,
}

impl Drain {
    fn word(self) -> &'static str {
        match self {
            Self::Decommission => "decommission",
            Self::Recover => "recover",
        }
    }
}

impl Admin<'_> {
    pub(super) async fn drain(&self, drain: Drain, args: &DrainArgs) -> Outcome {
        let bookie = &args.bookie;
        let path = format!("/admin/v2/geminga/bookies/{}", segment(bookie));
        let state = format!("{path}/drain");
        if args.cancel {
            self.api.delete(&state).await?;
            return self.done(&format!("bookie {bookie} stays"));
        }
        self.api.put(&format!("{path}/{}", drain.word()), None).await?;
        if args.no_wait {
            let info = self.api.get(&state).await?;
            return self.show(&info, tables::drain);
        }
        let info = self.await_drained(&state).await?;
        match (drain, info) {
            (Drain::Decommission, Some(info)) if info["up"].as_bool() == Some(true) => {
                self.show(&info, |_| {
                    output::line(format!(
                        "nothing is left on bookie {bookie}: stop it now; its name is free some \
                         moments later, and it can't be started again"
                    ))
                })
            }
            (_, Some(info)) => self
                .show(&info, |_| output::line(format!("nothing is on bookie {bookie} any more"))),
            (_, None) => self.done(&format!("bookie {bookie} is forgotten; its name is free")),
        }
    }

    /// Has a bookie verify all that it has.
    pub(super) async fn scrub(&self, args: &ScrubArgs) -> Outcome {
        let path = format!("/admin/v2/geminga/bookies/{}/scrub", segment(&args.bookie));
        let mut progress = if args.status {
            self.api.get(&path).await?
        } else {
            self.api.put(&path, None).await?
        };
        let bar = Bar::start();
        while !args.status && !args.no_wait && progress["running"].as_bool() == Some(true) {
            let bytes = |field: &str| progress[field].as_u64().unwrap_or(0);
            bar.at(bytes("done_bytes"), bytes("total_bytes"), "bytes");
            tokio::time::sleep(LOOK).await;
            progress = self.api.get(&path).await?;
        }
        bar.end();
        self.show(&progress, tables::scrub)?;
        match progress["damaged_entries"].as_u64().unwrap_or(0) {
            0 => Ok(()),
            damaged => Err(Failed::degraded(format!(
                "{damaged} entries are damaged on bookie {}; repair writes them anew",
                args.bookie
            ))),
        }
    }

    /// Shows how far a bookie is until nothing is left on it. `None`: it is forgotten already.
    async fn await_drained(&self, path: &str) -> Result<Option<Value>, Failed> {
        let bar = Bar::start();
        let mut most = 0;
        loop {
            let asked = std::time::Instant::now();
            let Some(info) = self.api.get_if_there(path).await? else {
                bar.end();
                return Ok(None);
            };
            let left = info["ledgers"].as_u64().unwrap_or(0);
            most = left.max(most);
            bar.at(most - left, most, &in_the_way(&info));
            if info["state"] == "drained" {
                bar.end();
                return Ok(Some(info));
            }
            // Of many ledgers an answer is work, for etcd as well.
            tokio::time::sleep(LOOK.max(asked.elapsed() * 4)).await;
        }
    }

    pub(super) async fn repairs(&self) -> Outcome {
        let tasks = self.pages("repairs", "limit=1000").await?;
        self.show(&tasks, tables::repairs)
    }

    pub(super) async fn check_ledger(&self, ledger: u64) -> Outcome {
        let mut whole = Value::Null;
        let mut from = 0;
        let bar = Bar::start();
        loop {
            let path = format!("/admin/v2/geminga/ledgers/{ledger}/check?from={from}");
            let part = self.api.get(&path).await?;
            let next = part["next"].as_u64();
            whole = merged(whole, part);
            let last = whole["last_entry"].as_u64().map_or(0, |last| last + 1);
            bar.at(whole["entries"].as_u64().unwrap_or(0), last, "");
            match next {
                // It always goes on: a server that says otherwise is not asked for ever.
                Some(next) if next > from => from = next,
                _ => break,
            }
        }
        bar.end();
        self.show(&whole, tables::check)?;
        let bad = bad_copies(&whole);
        if bad > 0 {
            let what = format!("{bad} copies of ledger {ledger} are not good");
            return Err(Failed::degraded(what));
        }
        Ok(())
    }
}

/// What keeps a bookie from being done with.
fn in_the_way(info: &Value) -> String {
    let open = info["open_ledgers"].as_u64().unwrap_or(0);
    let trouble = info["trouble"][0]["why"].as_str().unwrap_or_default();
    match (open, trouble) {
        (0, "") => String::new(),
        (0, why) => why.to_owned(),
        (open, _) => format!("{open} still open"),
    }
}

/// Two parts of a check as one.
fn merged(whole: Value, part: Value) -> Value {
    if whole.is_null() {
        return part;
    }
    let sum =
        |one: &Value, two: &Value| json!(one.as_u64().unwrap_or(0) + two.as_u64().unwrap_or(0));
    let mut whole = whole;
    for field in ["entries", "lost"] {
        whole[field] = sum(&whole[field], &part[field]);
    }
    whole["next"] = part["next"].clone();
    for one in show::items(&part["bookies"]) {
        let Some(known) = whole["bookies"].as_array_mut() else { continue };
        match known.iter_mut().find(|other| other["bookie"] == one["bookie"]) {
            None => known.push(one.clone()),
            Some(other) => {
                for field in ["good", "missing", "damaged", "differing", "unknown"] {
                    other[field] = sum(&other[field], &one[field]);
                }
                if other["first_bad"].is_null() {
                    other["first_bad"] = one["first_bad"].clone();
                }
            }
        }
    }
    whole
}

fn bad_copies(check: &Value) -> u64 {
    let bad = |one: &Value| -> u64 {
        let fields = ["missing", "damaged", "differing", "unknown"];
        fields.iter().filter_map(|field| one[*field].as_u64()).sum()
    };
    show::items(&check["bookies"]).map(bad).sum()
}

/// A bar on a terminal, nothing elsewhere.
struct Bar(Option<ProgressBar>);

impl Bar {
    fn start() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(None);
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template("{bar:15} {pos}/{len}  {msg}") {
            bar.set_style(style);
        }
        Self(Some(bar))
    }

    fn at(&self, done: u64, of: u64, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_length(of);
            bar.set_position(done);
            bar.set_message(what.to_owned());
        }
    }

    fn end(self) {
        if let Some(bar) = self.0 {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_check_add_up() {
        let part = |good: u64, missing: u64, bad: Value| {
            json!({
                "entries": good + missing, "lost": 0, "last_entry": 9, "next": null,
                "bookies": [{
                    "bookie": "a", "good": good, "missing": missing, "damaged": 0, "differing": 0,
                    "unknown": 0, "first_bad": bad,
                }],
            })
        };
        let other = json!({ "entries": 1, "lost": 1, "next": null, "bookies": [{
            "bookie": "b", "good": 0, "missing": 1, "damaged": 0, "differing": 0, "unknown": 0,
            "first_bad": 7,
        }] });
        let whole = merged(
            merged(merged(Value::Null, part(3, 0, Value::Null)), part(2, 1, json!(5))),
            other,
        );
        assert_eq!((whole["entries"].as_u64(), whole["lost"].as_u64()), (Some(7), Some(1)));
        assert_eq!(whole["bookies"][0]["good"], 5);
        assert_eq!(whole["bookies"][0]["first_bad"], 5);
        assert_eq!(whole["bookies"][1]["bookie"], "b");
        assert_eq!(bad_copies(&whole), 2);
    }
}
