//! What goes in comes out: real files through `produce` and `consume`, byte for byte.

use std::path::Path;

use geminga_tests::cli::{against, against_with_input};
use geminga_tests::corpus;
use geminga_tests::standalone::{Standalone, home};

const LINES: usize = 100_000;

fn write(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path = dir.join(name);
    std::fs::write(&path, bytes).expect("a temporary file can be written");
    path.to_str().expect("temporary paths are text").to_owned()
}

/// Produces a text file, consumes its first half, restarts the server, consumes the rest.
fn a_text_file_comes_back_in_two_halves(produce_flags: &[&str]) {
    let home = home();
    let mut server = Standalone::start(home.path());
    let text = corpus::text(LINES);
    let file = write(home.path(), "text", &text);

    let mut args = vec!["produce", "docs", "--file", &file, "--output", "json"];
    args.extend(produce_flags);
    let produced = against(&server, &args).ok().json();
    assert_eq!(produced["messages"].as_u64(), Some(LINES as u64), "{produced}");

    let half = (LINES / 2).to_string();
    let first = against(&server, &["consume", "docs", "-s", "reader", "--count", &half]).ok();
    server.stop();
    server.restart();
    let rest = against(&server, &["consume", "docs", "-s", "reader", "--until-caught-up"]).ok();

    let mut read = first.stdout;
    assert_eq!(read.iter().filter(|byte| **byte == b'\n').count(), LINES / 2);
    read.extend(rest.stdout);
    assert!(read == text, "{} bytes came back of {}", read.len(), text.len());

    let nothing = against(&server, &["consume", "docs", "-s", "reader", "--until-caught-up"]).ok();
    assert_eq!(nothing.stdout, b"");
    server.stop();
}

#[test]
fn a_text_file_survives_a_restart_between_its_halves() {
    a_text_file_comes_back_in_two_halves(&[]);
}

#[test]
fn a_text_file_compressed_with_zstd_survives_a_restart_between_its_halves() {
    a_text_file_comes_back_in_two_halves(&["--compression", "zstd"]);
}

#[test]
fn a_text_file_compressed_with_lz4_survives_a_restart_between_its_halves() {
    a_text_file_comes_back_in_two_halves(&["--compression", "lz4"]);
}

#[test]
fn a_binary_file_comes_back_whole() {
    let home = home();
    let mut server = Standalone::start(home.path());
    // The test's own executable: megabytes of bytes that are no text.
    let exe = std::fs::read(std::env::current_exe().expect("a test runs from a file"));
    let mut bytes = exe.expect("it can be read");
    bytes.truncate(4 << 20);
    let file = write(home.path(), "binary", &bytes);
    let sent = against(&server, &["produce", "blobs", "--file", &file, "--whole-file"]);
    drop(sent.ok());
    let args = ["consume", "blobs", "-s", "s", "--count", "1", "--whole-file"];
    let read = against(&server, &args).ok();
    assert!(read.stdout == bytes, "{} bytes came back of {}", read.stdout.len(), bytes.len());
    server.stop();
}

#[test]
fn a_last_line_without_newline_is_sent_and_the_summary_says_so() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let sent = against_with_input(&server, &["produce", "t", "--file", "-"], b"one\n\nthree").ok();
    assert!(sent.stderr.contains("the last line had no newline"), "{}", sent.stderr);
    let read = against(&server, &["consume", "t", "-s", "s", "--until-caught-up"]).ok();
    assert_eq!(read.stdout, b"one\n\nthree\n");
    server.stop();
}

#[test]
fn count_acknowledges_exactly_so_many_in_the_middle_of_a_batch() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let input: String = (0..100).map(|n| format!("{n}\n")).collect();
    drop(against_with_input(&server, &["produce", "t"], input.as_bytes()).ok());
    let mut read = Vec::new();
    for count in ["1", "7", "30", "62"] {
        let part = against(&server, &["consume", "t", "-s", "s", "--count", count]).ok();
        assert_eq!(part.stdout.iter().filter(|b| **b == b'\n').count().to_string(), count);
        read.extend(part.stdout);
    }
    assert_eq!(String::from_utf8_lossy(&read), input);
    server.stop();
}

#[test]
fn consuming_an_empty_topic_without_progress_ends_with_exit_code_3() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let args = ["consume", "t", "-s", "s", "--count", "1", "--timeout", "1s"];
    let ran = against(&server, &args);
    assert_eq!(ran.code, Some(3), "{}", ran.stderr);
    server.stop();
}

#[test]
fn each_subscription_gets_every_message_and_latest_starts_at_the_end() {
    let home = home();
    let mut server = Standalone::start(home.path());
    drop(against_with_input(&server, &["produce", "t"], b"old\n").ok());
    let caught_up = |subscription: &str, from: &str| {
        let args = ["consume", "t", "-s", subscription, "--from", from, "--until-caught-up"];
        against(&server, &args).ok().stdout
    };
    assert_eq!(caught_up("late", "latest"), b"");
    drop(against_with_input(&server, &["produce", "t"], b"new\n").ok());
    assert_eq!(caught_up("late", "latest"), b"new\n");
    assert_eq!(caught_up("a", "earliest"), b"old\nnew\n");
    assert_eq!(caught_up("b", "earliest"), b"old\nnew\n");
    server.stop();
}
