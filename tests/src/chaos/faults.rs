//! How each kind of fault is done, and undone.
//!
//! *Invariant:* what destroys copies begins and ends with all copies in place: entries may be
//! confirmed with two of them, so that losing two disks at once is nothing that is promised.

mod device;
mod disk;

use std::time::Instant;

use serde_json::Value;

use super::plan::{BOOKIES, BROKERS, During, ETCD, Fault, Kind, Step};
use super::stage::Stage;
use super::{TOPICS, attempt};
use crate::http;

/// Does one fault, and what comes meanwhile, and undoes them.
///
/// # Errors
/// When something doesn't happen that must.
pub fn inject(stage: &mut Stage, step: &Step) -> Result<(), String> {
    for fault in step.faults().filter(|fault| BROKERS.contains(&fault.target)) {
        attempt(|| give_bundles_to(stage, fault.target))??;
    }
    let first = &step.fault;
    begin(stage, first)?;
    let began = Instant::now();
    let Some(During { after, fault: second }) = &step.during else {
        wait_until(began + first.hold);
        end(stage, first)?;
        return finish(stage, first);
    };
    wait_until(began + *after);
    begin(stage, second)?;
    let until = [(began + first.hold, first), (Instant::now() + second.hold, second)];
    let [one, two] = until;
    for (until, fault) in if step.second_ends_first() { [two, one] } else { [one, two] } {
        wait_until(until);
        end(stage, fault)?;
    }
    // What comes during another fault has nothing that must come about.
    finish(stage, first)
}

fn wait_until(then: Instant) {
    std::thread::sleep(then.saturating_duration_since(Instant::now()));
}

/// Begins it; what is over at once is done.
fn begin(stage: &mut Stage, fault: &Fault) -> Result<(), String> {
    let target = fault.target;
    match fault.kind {
        Kind::Kill | Kind::EtcdMember => attempt(|| stage.cluster.kill(target)),
        Kind::Freeze | Kind::FreezePastLease => attempt(|| stage.cluster.freeze(target)),
        Kind::AllBookies => attempt(|| stage.cluster.kill_all(&BOOKIES)),
        Kind::EtcdRestart | Kind::EtcdOutage => attempt(|| stage.cluster.kill_all(&ETCD)),
        Kind::CutOffFromEtcd | Kind::Isolate | Kind::OneWay | Kind::Split => {
            attempt(|| stage.network.begin(&stage.cluster, fault))
        }
        Kind::DiskFull => disk::fill(stage),
        Kind::FailingWrite | Kind::FailingSync => device::poison(stage, fault),
        Kind::FailingRead => device::hide_blocks(stage, fault),
        Kind::Damage => disk::damage(stage, target, fault.pick),
        Kind::Wipe => disk::wipe(stage, target),
        Kind::RollingRestart => restart_all(stage),
    }
}

/// Ends it.
fn end(stage: &mut Stage, fault: &Fault) -> Result<(), String> {
    let target = fault.target;
    match fault.kind {
        Kind::Kill | Kind::EtcdMember => attempt(|| stage.cluster.start(target)),
        Kind::Freeze | Kind::FreezePastLease => attempt(|| stage.cluster.thaw(target)),
        Kind::AllBookies => attempt(|| stage.cluster.start_all(&BOOKIES)),
        Kind::EtcdRestart | Kind::EtcdOutage => attempt(|| stage.cluster.start_all(&ETCD)),
        Kind::CutOffFromEtcd | Kind::Isolate | Kind::OneWay | Kind::Split => {
            attempt(|| stage.network.heal(&stage.cluster))
        }
        Kind::DiskFull => disk::free(stage),
        Kind::FailingWrite | Kind::FailingSync => device::replace(stage, fault),
        Kind::FailingRead => device::show_blocks(stage, fault),
        Kind::Damage | Kind::Wipe | Kind::RollingRestart => Ok(()),
    }
}

/// Waits for what must come about when nothing is in the way any more.
fn finish(stage: &Stage, fault: &Fault) -> Result<(), String> {
    match fault.kind {
        Kind::FailingWrite | Kind::FailingSync => device::is_writable_again(stage, fault),
        Kind::FailingRead => device::is_whole_again(stage, fault),
        _ => Ok(()),
    }
}

/// Gives the bundles out anew, by their names, until a broker owns a topic that is published to:
/// what happens to one that owns nothing is nothing.
fn give_bundles_to(stage: &Stage, broker: &str) -> Result<(), String> {
    stage.give_out_bundles()?;
    let address = stage.cluster.address(broker, "grpc");
    let (_, port) = address.rsplit_once(':').ok_or("an address has a port")?;
    let asked = stage.cluster.address(broker, "admin");
    stage.until("the broker that is struck owns a topic", |_| {
        TOPICS.iter().any(|topic| {
            let path = format!("/lookup/v2/topic/persistent/public/default/{topic}");
            let (_, body) = http::request("GET", &asked, &path, "");
            let answer: Value = serde_json::from_str(&body).unwrap_or(Value::Null);
            answer["gemingaUrl"].as_str().is_some_and(|url| url.ends_with(&format!(":{port}")))
        })
    })
}

fn restart_all(stage: &mut Stage) -> Result<(), String> {
    for name in BOOKIES.iter().chain(&BROKERS).chain(&ETCD) {
        attempt(|| {
            stage.cluster.stop(name);
            stage.cluster.start(name);
        })?;
        // Never more than one at a time, as the manual has it.
        stage.settle()?;
    }
    Ok(())
}
