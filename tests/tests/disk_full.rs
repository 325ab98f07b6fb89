//! Full disks: publishing is refused in words, what was acknowledged stays readable, consuming
//! frees the space, and publishing goes on.

use std::path::Path;
use std::time::{Duration, Instant};

use geminga_tests::cli::{Ran, against, against_with_input};
use geminga_tests::disk::SmallDisk;
use geminga_tests::http;
use geminga_tests::standalone::{Standalone, home, refused_start};

const MIB: u64 = 1 << 20;
/// Enough for a log of several segments beside what a standalone leaves to its metadata.
const DISK_BYTES: u64 = 80 * MIB;
/// More than any disk here holds.
const INPUT_LINES: usize = 60_000;
/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Consumed ledgers are looked after at this pace, for the scenario to take seconds.
const EAGER: [&str; 2] = ["--set", "broker.housekeeping_interval=200ms"];

/// Lines of about 1 KB that differ.
fn lines(count: usize) -> Vec<u8> {
    let filling = "x".repeat(1_000);
    (0..count).flat_map(|n| format!("{n:08} {filling}\n").into_bytes()).collect()
}

/// The first lines of a text.
fn head(text: &[u8], count: usize) -> &[u8] {
    let mut ends = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
    count.checked_sub(1).map_or(&[], |last| {
        let (end, _) = ends.nth(last).expect("there are so many lines");
        &text[..=end]
    })
}

fn produce(server: &Standalone, topic: &str, input: &[u8]) -> Ran {
    let args = ["produce", topic, "--timeout", "4s", "--output", "json"];
    against_with_input(server, &args, input)
}

fn consume(server: &Standalone, topic: &str) -> Vec<u8> {
    against(server, &["consume", topic, "-s", "s", "--until-caught-up"]).ok().stdout
}

/// Publishes until it is refused. Answers how many of the lines were acknowledged.
fn fill_with_messages(server: &Standalone, input: &[u8]) -> usize {
    // Without a subscription it would be kept for a newcomer, consumed or not.
    drop(against(server, &["consume", "t", "-s", "s", "--count", "0"]).ok());
    let ran = produce(server, "t", input);
    let acknowledged = ran.json()["messages"].as_u64().expect("a count");
    assert!(acknowledged > 1_000, "{acknowledged}");
    let said = ["storage is full", "space is freed", "STORAGE_FULL"];
    ran.failed_with(1, &said);
    // Not only what was under way: everything from now on.
    produce(server, "t", b"one more\n").failed_with(1, &said);
    usize::try_from(acknowledged).expect("it fits")
}

/// Publishing works again without a restart, as soon as the consumed ledgers are gone. `consumed`
/// is what came before, of `input`.
fn resumes(server: &Standalone, input: &[u8], mut consumed: Vec<u8>) {
    const LINE: &[u8] = b"goes on\n";
    let deadline = Instant::now() + PATIENCE;
    loop {
        let ran = produce(server, "t", LINE);
        if ran.code == Some(0) {
            break;
        }
        assert!(Instant::now() < deadline, "space never came back:\n{}", ran.stderr);
        std::thread::sleep(Duration::from_millis(50));
    }
    // What had no answer when the disk was full may have been stored since. Then comes the line,
    // and again for each attempt that had no answer.
    consumed.extend(consume(server, "t"));
    assert!(consumed.ends_with(LINE), "an acknowledged message is lost");
    while let Some(before) = consumed.strip_suffix(LINE) {
        consumed.truncate(before.len());
    }
    assert!(input.starts_with(&consumed), "what came is not what was sent, in its order");
    let more = lines(2_000);
    drop(produce(server, "t", &more).ok());
    assert!(consume(server, "t") == more, "what is published then is stored as ever");
}

fn announce(server: &mut Standalone) {
    server.expect_in_log("a ledger has stalled");
    server.expect_in_log("the storage's fill has passed its mark");
    // Its owner has: to seal a consumed ledger it fences it, while an entry may be tried again.
    server.allow_in_log("another owner has fenced the ledger");
}

/// What was consumed is what was acknowledged, and perhaps some of what had no answer.
fn check_nothing_lost(consumed: &[u8], input: &[u8], acknowledged: usize) {
    assert!(consumed.starts_with(head(input, acknowledged)), "an acknowledged message is lost");
    assert!(input.starts_with(consumed), "what came is not what was sent");
}

fn fills_drains_and_resumes(home: &Path, flags: &[&str], restart: bool) {
    let mut server = Standalone::start_with(home, flags);
    announce(&mut server);
    let input = lines(INPUT_LINES);
    let acknowledged = fill_with_messages(&server, &input);
    let admin = server.ports().admin.clone();
    assert_eq!(http::request("GET", &admin, "/livez", "").0, 200);
    let stats = against(&server, &["admin", "topics", "stats", "t", "--output", "json"]).ok();
    assert_eq!(stats.json()["geminga"]["storageFull"].as_bool(), Some(true));
    if restart {
        server.kill();
        server.restart();
    }
    let consumed = consume(&server, "t");
    check_nothing_lost(&consumed, &input, acknowledged);
    resumes(&server, &input, consumed);
    server.stop();
}

#[test]
fn a_full_disk_refuses_publishing_is_drained_and_takes_messages_again() {
    let home = home();
    let limited = ["--set", "bookie.max_bytes=40MiB"];
    match SmallDisk::mount(DISK_BYTES) {
        Some(disk) => {
            disk.hold_data_of(home.path());
            fills_drains_and_resumes(home.path(), &EAGER, false);
        }
        None => fills_drains_and_resumes(home.path(), &[EAGER, limited].concat(), false),
    }
}

#[test]
fn a_server_killed_on_a_full_disk_starts_again_and_is_drained() {
    let home = home();
    let limited = ["--set", "bookie.max_bytes=40MiB"];
    match SmallDisk::mount(DISK_BYTES) {
        Some(disk) => {
            disk.hold_data_of(home.path());
            fills_drains_and_resumes(home.path(), &EAGER, true);
        }
        None => fills_drains_and_resumes(home.path(), &[EAGER, limited].concat(), true),
    }
}

#[test]
fn a_log_at_its_configured_maximum_is_drained_and_takes_messages_again() {
    let home = home();
    let flags = [EAGER, ["--set", "bookie.max_bytes=40MiB"]].concat();
    fills_drains_and_resumes(home.path(), &flags, false);
}

#[test]
fn a_disk_that_somebody_else_has_filled_refuses_a_start_until_it_is_freed() {
    let home = home();
    let data = home.path().join("data");
    let Some(disk) = SmallDisk::mount(DISK_BYTES) else {
        return a_first_write_without_space_refuses_a_start(home.path());
    };
    disk.hold_data_of(home.path());
    // Before there is anything, and with messages in it.
    disk.fill();
    refused_start(&data, &[], &["data", "space", "free some"]);
    disk.free();
    let mut server = Standalone::start(home.path());
    let text = lines(5_000);
    drop(produce(&server, "t", &text).ok());
    server.stop();
    disk.fill();
    refused_start(&data, &[], &["data", "space", "free some"]);
    refused_start(&data, &[], &["data", "space", "free some"]);
    disk.free();
    server.restart();
    assert!(consume(&server, "t") == text, "everything is there");
    server.stop();
}

/// What a machine without mounts can show: a write that meets no space.
fn a_first_write_without_space_refuses_a_start(home: &Path) {
    let bookie = home.join("data").join("bookie");
    std::fs::create_dir_all(&bookie).expect("a directory can be made");
    let file = bookie.join("cookie.new");
    std::os::unix::fs::symlink("/dev/full", &file).expect("a link can be made");
    let buffered = ["--set", "bookie.sync_mode=fdatasync"];
    refused_start(&home.join("data"), &buffered, &["data", "space", "free some"]);
    std::fs::remove_file(&file).expect("it is there");
    let mut server = Standalone::start_with(home, &buffered);
    drop(produce(&server, "t", b"works\n").ok());
    server.stop();
}

#[test]
fn a_write_that_meets_no_space_refuses_a_start() {
    let home = home();
    a_first_write_without_space_refuses_a_start(home.path());
}

#[test]
fn a_disk_that_somebody_else_fills_under_a_server_costs_no_message() {
    let home = home();
    let Some(disk) = SmallDisk::mount(DISK_BYTES) else {
        return a_first_write_without_space_refuses_a_start(home.path());
    };
    disk.hold_data_of(home.path());
    let mut server = Standalone::start_with(home.path(), &EAGER);
    announce(&mut server);
    // It can't note that the consumed ledger is over, if it comes to that before there is space.
    server.allow_in_log("the metadata store is full");
    server.allow_in_log("the ledger's record was not written");
    let before = lines(2_000);
    drop(produce(&server, "t", &before).ok());
    disk.fill();
    // A new topic needs the metadata; an old one goes on as long as the log has room of its own.
    produce(&server, "new", b"x\n").failed_with(1, &["the metadata store is full"]);
    let text = lines(INPUT_LINES);
    let ran = produce(&server, "t", &text);
    let acknowledged = ran.json()["messages"].as_u64().expect("a count") as usize;
    ran.failed_with(1, &["storage is full", "STORAGE_FULL"]);
    let expected = [before.as_slice(), &text].concat();
    let consumed = consume(&server, "t");
    check_nothing_lost(&consumed, &expected, 2_000 + acknowledged);
    disk.free();
    resumes(&server, &expected, consumed);
    drop(produce(&server, "new", b"x\n").ok());
    server.stop();
    server.restart();
    assert_eq!(consume(&server, "new"), b"x\n");
    server.stop();
}
