//! Disks that lose, swap or flip bytes under a stopped server: it says what is wrong, and never
//! takes missing data for data that was never there.

use std::path::{Path, PathBuf};

use geminga_tests::cli::{against, against_with_input, command};
use geminga_tests::standalone::{Standalone, home};

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the data directory is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A stopped server's directory with some messages in it.
fn stopped_with_data(home: &Path) -> Standalone {
    let mut server = Standalone::start(home);
    let lines: String = (0..2_000).map(|n| format!("message {n} {}\n", "x".repeat(200))).collect();
    drop(against_with_input(&server, &["produce", "t"], lines.as_bytes()).ok());
    server.stop();
    server
}

fn refused(server: &Standalone) -> String {
    let mut command = command(&["standalone", "--grpc-port", "0", "--admin-port", "0"]);
    command.args(["--bookie-port", "0", "--data-dir"]).arg(server.data_dir());
    let ran: geminga_tests::cli::Ran = command.output().expect("the binary starts").into();
    let text = ran.stderr.clone();
    ran.failed_with(&[]);
    text
}

#[test]
fn a_wiped_bookie_directory_is_refused_because_its_cookie_is_missing() {
    let home = home();
    let server = stopped_with_data(home.path());
    let bookie = server.data_dir().join("bookie");
    std::fs::remove_dir_all(&bookie).expect("it can be removed");
    let text = refused(&server);
    assert!(text.contains("wiped"), "{text}");
}

#[test]
fn a_bookie_directory_of_another_node_is_refused() {
    let (first, second) = (home(), home());
    let (one, other) = (stopped_with_data(first.path()), stopped_with_data(second.path()));
    let target = one.data_dir().join("bookie");
    std::fs::remove_dir_all(&target).expect("it can be removed");
    std::fs::rename(other.data_dir().join("bookie"), &target).expect("one file system");
    let text = refused(&one);
    assert!(text.contains("cookie") || text.contains("cluster"), "{text}");
}

#[test]
fn a_missing_segment_never_reads_as_an_empty_topic() {
    let home = home();
    let mut server = stopped_with_data(home.path());
    let segments: Vec<PathBuf> = files_below(&server.data_dir().join("bookie"))
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    assert!(!segments.is_empty(), "a bookie has segments");
    for segment in &segments {
        std::fs::remove_file(segment).expect("it can be removed");
    }
    let port = ["--grpc-port", "0", "--admin-port", "0", "--bookie-port", "0"];
    let mut command = command(&["standalone", "--data-dir"]);
    command.arg(server.data_dir()).args(port);
    // Either it refuses to start and names the segment, or it serves and says that it can't read;
    // never does it answer that there is nothing.
    server.expect_in_log("segment");
    server.expect_in_log("state log");
    server.expect_in_log("unavailable");
    server.expect_in_log("unknown");
    let started = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.restart()));
    if started.is_ok() {
        let args = ["consume", "t", "-s", "s", "--until-caught-up", "--timeout", "2s"];
        let ran = against(&server, &args);
        assert_ne!(ran.code, Some(0), "it read nothing and called that success");
        server.kill();
    }
}
