//! Bits that a disk has flipped are all found by a scrub, and mended from the other copies.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use geminga_proto::env::{Random, SeededRandom};
use geminga_tests::bookie_files::{change, groups, sealed_segments};
use geminga_tests::cli::{self, Ran};
use geminga_tests::cluster::{Cluster, Plan};

/// Entries of which a bit is flipped.
const FLIPS: u32 = 100;
/// Bytes of a message; what brokers note for themselves is smaller.
const MESSAGE_BYTES: usize = 4_096;
/// How long something may take to come about; never a measurement.
const PATIENCE: Duration = Duration::from_secs(120);

/// Ledgers are closed soon, since only these are mended by others than their owner.
fn plan() -> Plan {
    let set = vec![
        ("repair.scan_interval", "500ms"),
        ("broker.ledger_idle_close", "1s"),
        ("broker.ledger_max_bytes", "4MiB"),
        ("broker.housekeeping_interval", "1s"),
        ("bookie.segment_bytes", "16MiB"),
    ];
    Plan { set, ..Plan::with_long_leases() }
}

fn admin(cluster: &Cluster, args: &[&str]) -> Ran {
    cli::against(cluster, &[&["admin"], args].concat())
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Flips a bit in each of so many messages of a bookie that is stopped.
fn spoil(cluster: &Cluster, bookie: &str, random: &SeededRandom) {
    let mut found: Vec<(PathBuf, usize, usize)> = Vec::new();
    for file in sealed_segments(&cluster.dir().join(bookie).join("data")) {
        let bytes = std::fs::read(&file).expect("the file is there");
        let payloads = groups(&bytes).into_iter().map(|group| group.first_payload);
        let messages = payloads.filter(|(_, len)| *len > MESSAGE_BYTES);
        found.extend(messages.map(|(at, len)| (file.clone(), at, len)));
    }
    assert!(found.len() > FLIPS as usize, "{} messages begin a write", found.len());
    let mut flips: BTreeMap<PathBuf, Vec<(usize, u8)>> = BTreeMap::new();
    for _ in 0..FLIPS {
        let pick = usize::try_from(random.below(found.len() as u64)).expect("small");
        let (file, at, len) = found.swap_remove(pick);
        let inside = usize::try_from(random.below(len as u64)).expect("small");
        flips.entry(file).or_default().push((at + inside, 1 << random.below(8)));
    }
    for (file, flips) in flips {
        change(&file, |bytes| flips.iter().for_each(|(at, mask)| bytes[*at] ^= mask));
    }
}

#[test]
fn a_scrub_finds_every_flipped_bit_and_the_other_copies_mend_them() {
    let seed = geminga_tests::seed();
    eprintln!("GEMINGA_SEED={seed}");
    let mut cluster = Cluster::up(&plan());
    let size = MESSAGE_BYTES.to_string();
    let load = ["perf", "produce", "rot", "--size", &size, "--batching", "off"];
    let pace = ["--rate", "1000", "--in-flight", "2", "--duration", "4s", "--warmup", "0s"];
    drop(cli::against(&cluster, &[&load[..], &pace].concat()).ok());
    until("the ledgers are closed", || {
        let listed = admin(&cluster, &["ledgers", "list", "--topic", "rot", "--output", "json"]);
        let listed = listed.ok().json();
        let states = listed.as_array().into_iter().flatten().map(|ledger| ledger["state"].clone());
        states.into_iter().all(|state| state == "closed")
    });
    cluster.stop("bookie-2");
    spoil(&cluster, "bookie-2", &SeededRandom::new(seed));
    for words in ["stored bytes don't verify", "a stored entry is damaged"] {
        cluster.expect_in_log("bookie-2", words);
    }
    // Whether reclaim meets one of them first is chance.
    cluster.allow_in_log("a segment can't be rewritten before it is mended");
    cluster.start("bookie-2");
    let status = |args: &[&str]| {
        admin(&cluster, &[&["bookies", "scrub", "bookie-2", "--output", "json"], args].concat())
    };
    let scrubbed = status(&[]);
    // Some may have been mended before the last was found.
    assert!(matches!(scrubbed.code, Some(0 | 4)), "{}", scrubbed.stderr);
    let total = scrubbed.json()["total_bytes"].as_u64().expect("a number");
    assert!(total > 8 << 20, "{total} bytes");
    let named = cluster.log("bookie-2").matches("a stored entry is damaged").count();
    assert_eq!(named, FLIPS as usize, "each one is found, and nothing else");
    until("all are mended", || status(&["--status"]).json()["damaged_entries"] == 0);
    until("nothing waits for repair", || cluster.records("repairs/").is_empty());
    let again = status(&[]).ok().json();
    assert_eq!(again["damaged_entries"], 0);
    cluster.down();
}
