//! Disks that lose, swap or flip bytes under a stopped server: it says what is wrong, and never
//! takes missing or changed data for good or for data that was never there.

use std::path::{Path, PathBuf};

use geminga_tests::bookie_files::{Group, change, groups, segments};
use geminga_tests::cli::{Ran, against, against_with_input};
use geminga_tests::standalone::{Standalone, home, refused_start};

/// Segments so small that the messages fill several.
const SMALL_SEGMENTS: [&str; 4] =
    ["--set", "bookie.first_segment_bytes=8MiB", "--set", "bookie.segment_bytes=8MiB"];
/// The last group stays the last: no empty one follows to prove it.
const NO_PROOF: [&str; 2] = ["--set", "bookie.idle_close=1h"];
const LINES: usize = 20_000;

/// Lines of about 1 KB that differ.
fn lines(count: usize) -> Vec<u8> {
    let filling = "x".repeat(1_000);
    (0..count).flat_map(|n| format!("{n:08} {filling}\n").into_bytes()).collect()
}

/// A server with messages in topic `t`, all acknowledged.
fn with_data(home: &Path, flags: &[&str]) -> (Standalone, Vec<u8>) {
    let server = Standalone::start_with(home, flags);
    let lines = lines(LINES);
    // One that reads nothing before it is damaged, so that everything is kept for it.
    drop(against(&server, &["consume", "t", "-s", "keep", "--count", "0"]).ok());
    drop(against_with_input(&server, &["produce", "t"], &lines).ok());
    (server, lines)
}

fn stopped_with_data(home: &Path) -> (Standalone, Vec<u8>) {
    let (mut server, lines) = with_data(home, &SMALL_SEGMENTS);
    server.stop();
    (server, lines)
}

fn consume(server: &Standalone, subscription: &str) -> Ran {
    let args = ["consume", "t", "-s", subscription, "--until-caught-up", "--timeout", "3s"];
    against(server, &args)
}

/// Everything is there again, once the damage is undone.
fn serves(server: &mut Standalone, lines: &[u8]) {
    server.restart();
    assert!(consume(server, "s").ok().stdout == lines, "something is not as it was sent");
    server.stop();
}

/// Reading fails, says why, and hands out nothing but what was sent.
fn reads_fail(server: &Standalone, lines: &[u8], code: i32, words: &[&str]) {
    let ran = consume(server, "keep");
    let handed_out = ran.stdout.clone();
    ran.failed_with(code, words);
    assert!(handed_out.len() < lines.len(), "what is lost was handed out");
    assert!(lines.starts_with(&handed_out), "what was handed out is not what was sent");
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).expect("a name in plain letters")
}

#[test]
fn a_wiped_bookie_directory_is_refused_because_its_cookie_is_missing() {
    let home = home();
    let (server, _) = stopped_with_data(home.path());
    let bookie = server.data_dir().join("bookie");
    std::fs::remove_dir_all(&bookie).expect("it can be removed");
    refused_start(&server.data_dir(), &[], &["wiped"]);
}

#[test]
fn a_bookie_directory_of_another_node_is_refused() {
    let (first, second) = (home(), home());
    let (one, _) = stopped_with_data(first.path());
    let (other, _) = stopped_with_data(second.path());
    let target = one.data_dir().join("bookie");
    std::fs::remove_dir_all(&target).expect("it can be removed");
    std::fs::rename(other.data_dir().join("bookie"), &target).expect("one file system");
    refused_start(&one.data_dir(), &[], &["belongs to", "cluster"]);
}

/// Starts with the damage accepted: what is lost is said to be, and nothing is made up.
fn accepted_damage_is_no_empty_topic(home: &Path, lines: &[u8]) {
    let flags = [&SMALL_SEGMENTS[..], &["--set", "bookie.accept_damage=true"]].concat();
    let mut server = Standalone::start_with(home, &flags);
    server.expect_in_log("served in spite of damage damage=segment-00000001.seg");
    // The metadata know what was there; a standalone has nobody who could bring it back.
    server.allow_in_log("entries of lost segments are missing here");
    // Of the runs before, in the same log.
    server.allow_in_log("a spare segment file is gone");
    reads_fail(&server, lines, 1, &["unknown whether", "stored"]);
    server.kill();
}

#[test]
fn a_missing_segment_is_named_and_never_reads_as_an_empty_topic() {
    let home = home();
    let (mut server, lines) = stopped_with_data(home.path());
    let data = server.data_dir();
    let holds_messages = |file: &PathBuf| {
        let bytes = std::fs::read(file).expect("it can be read");
        !groups(&bytes).is_empty()
    };
    let (files, spare): (Vec<_>, Vec<_>) = segments(&data).into_iter().partition(holds_messages);
    assert!(files.len() > 2, "{files:?}");
    let aside = home.path().join("aside");
    for file in &files {
        std::fs::rename(file, &aside).expect("one file system");
        refused_start(&data, &[], &[name(file), "does not exist", "Restore"]);
        std::fs::rename(&aside, file).expect("one file system");
    }
    // Files for later segments are no loss.
    assert!(!spare.is_empty(), "the next segment was prepared");
    spare.iter().for_each(|file| std::fs::remove_file(file).expect("it is there"));
    server.expect_in_log("a spare segment file is gone");
    serves(&mut server, &lines);
    std::fs::remove_file(&files[0]).expect("it is there");
    drop(server);
    accepted_damage_is_no_empty_topic(home.path(), &lines);
}

#[test]
fn swapped_segments_and_a_damaged_index_are_named() {
    let home = home();
    let (mut server, lines) = stopped_with_data(home.path());
    let data = server.data_dir();
    let files = segments(&data);
    let aside = home.path().join("aside");
    let swap = || {
        std::fs::rename(&files[0], &aside).expect("one file system");
        std::fs::rename(&files[1], &files[0]).expect("one file system");
        std::fs::rename(&aside, &files[1]).expect("one file system");
    };
    swap();
    refused_start(&data, &[], &[name(&files[0]), name(&files[1]), "another segment"]);
    swap();
    // The index of a sealed segment is right behind its last group.
    let flip = |bytes: &mut Vec<u8>| {
        let last = groups(bytes).pop().expect("there are messages");
        bytes[last.offset + last.bytes + 8] ^= 1;
    };
    change(&files[0], flip);
    refused_start(&data, &[], &[name(&files[0]), "index"]);
    change(&files[0], flip);
    // An intact index of another segment, at the right place.
    let other = {
        let bytes = std::fs::read(&files[1]).expect("it can be read");
        let last = groups(&bytes).pop().expect("there are messages");
        bytes[last.offset + last.bytes..].to_vec()
    };
    let whole = std::fs::read(&files[0]).expect("it can be read");
    let last = groups(&whole).pop().expect("there are messages");
    let index = last.offset + last.bytes;
    change(&files[0], |bytes| {
        let room = &mut bytes[index..];
        let len = room.len().min(other.len());
        room[..len].copy_from_slice(&other[..len]);
    });
    refused_start(&data, &[], &[name(&files[0]), "index is damaged or another segment's"]);
    // A file that is cut, in its messages or in its index.
    for bytes in [index / 8_192 * 4_096, index + 4_096, 4_096, 0] {
        std::fs::write(&files[0], &whole[..bytes]).expect("it can be written");
        refused_start(&data, &[], &[name(&files[0]), "Restore"]);
    }
    std::fs::write(&files[0], &whole).expect("it can be written");
    serves(&mut server, &lines);
}

#[test]
fn a_changed_byte_in_a_sealed_segment_is_an_error_and_never_wrong_data() {
    let home = home();
    let (mut server, lines) = stopped_with_data(home.path());
    let file = segments(&server.data_dir()).remove(0);
    let flip = |bytes: &mut Vec<u8>| {
        let all = groups(bytes);
        let group = all.iter().rev().find(|group| group.first_payload.1 > 10_000);
        let (at, len) = group.expect("there are messages").first_payload;
        bytes[at + len / 2] ^= 0x10;
    };
    change(&file, flip);
    // What is read is checked when it is read.
    server.restart();
    server.expect_in_log("stored bytes don't verify");
    server.expect_in_log("a stored entry is damaged");
    server.expect_in_log("the stored entry is corrupt");
    let words = ["no progress for 3s", "reading failed", "the stored entry is corrupt"];
    reads_fail(&server, &lines, 3, &words);
    server.stop();
    change(&file, flip);
    serves(&mut server, &lines);
}

/// The newest group of a log that was not closed, with its file.
fn newest_group(data: &Path) -> (PathBuf, Group) {
    let last = |file: PathBuf| {
        let group = groups(&std::fs::read(&file).expect("it can be read")).pop();
        group.map(|group| (file, group))
    };
    let newest = segments(data).into_iter().filter_map(last);
    newest.max_by_key(|(_, group)| group.sequence).expect("there are messages")
}

#[test]
fn a_torn_last_write_costs_nothing_that_was_acknowledged_before_it() {
    let home = home();
    let (mut server, lines) = with_data(home.path(), &NO_PROOF);
    drop(against_with_input(&server, &["produce", "t"], b"the last\n").ok());
    server.kill();
    let (file, group) = newest_group(&server.data_dir());
    assert!(group.records > 0, "{group:?}");
    change(&file, |bytes| bytes[group.first_payload.0..group.offset + group.bytes].fill(0));
    server.restart();
    let read = consume(&server, "s").ok().stdout;
    // The test took from the disk what had been acknowledged; a real tear is never acknowledged.
    let rest = read.strip_prefix(lines.as_slice()).expect("everything before is there");
    assert!(rest.is_empty() || rest == b"the last\n", "{}", String::from_utf8_lossy(rest));
    drop(against_with_input(&server, &["produce", "t"], b"goes on\n").ok());
    assert_eq!(consume(&server, "s").ok().stdout, b"goes on\n");
    server.stop();
}

#[test]
fn damage_before_the_last_write_of_a_killed_server_is_named_and_no_torn_end() {
    let home = home();
    let (mut server, lines) = with_data(home.path(), &NO_PROOF);
    server.kill();
    let data = server.data_dir();
    let (file, newest) = newest_group(&data);
    let flip = |bytes: &mut Vec<u8>| {
        let all = groups(bytes);
        let earlier = all.iter().find(|group| group.first_payload.1 > 10_000);
        let earlier = earlier.expect("there are messages");
        assert!(earlier.sequence < newest.sequence, "it is not the last one");
        let (at, len) = earlier.first_payload;
        bytes[at + len / 2] ^= 0x10;
    };
    change(&file, flip);
    refused_start(&data, &[], &[name(&file), "are damaged", "accept the damage"]);
    change(&file, flip);
    serves(&mut server, &lines);
}
