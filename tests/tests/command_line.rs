//! The command line's contract with scripts: exit codes, and what `--output json` holds.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use geminga_tests::cli::{Ran, against, against_with_input, client, run};
use geminga_tests::standalone::{Standalone, home};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Long enough for any machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// A measurement that is over soon.
const SHORT: [&str; 8] =
    ["--output", "json", "--duration", "200ms", "--warmup", "100ms", "--size", "1KiB"];

/// Demands a measurement without errors that has the fields which `scripts/bench` reads.
fn is_a_measurement(ran: Ran, test: &str) -> Value {
    let report = ran.ok().json();
    assert_eq!(report["test"], test, "{report}");
    assert_eq!((report["errors"].as_u64(), &report["first_error"]), (Some(0), &Value::Null));
    for name in ["messages", "bytes", "seconds", "messages_per_s", "bytes_per_s"] {
        assert!(report[name].as_f64().is_some_and(|figure| figure > 0.0), "{name}: {report}");
    }
    let latency = |name: &str| report["latency_ms"][name].as_f64().expect("a latency");
    assert!(latency("p50") > 0.0, "{report}");
    assert!(latency("p50") <= latency("p99") && latency("p99") <= latency("p99.9"), "{report}");
    assert!(latency("p99.9") <= latency("max"), "{report}");
    let sync_mode = report["durability"]["sync_mode"].as_str().expect("how writes get durable");
    assert!(["direct-dsync", "fdatasync"].contains(&sync_mode), "{report}");
    report
}

/// The same of a load over the network, whose durability is the server's.
fn is_a_servers_measurement(ran: Ran, test: &str) -> Value {
    let report = is_a_measurement(ran, test);
    for name in ["write_quorum", "ack_quorum"] {
        assert_eq!(report["durability"][name].as_u64(), Some(1), "{report}");
    }
    report
}

#[test]
fn perf_measures_publishing_and_consuming_in_json() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let perf = |args: &[&str]| against(&server, &[&["perf"], args, &SHORT].concat());
    let report = is_a_servers_measurement(perf(&["produce", "load"]), "produce");
    let messages = report["messages"].as_u64().expect("a count");
    assert_eq!(report["bytes"].as_u64(), Some(messages * 1024), "{report}");
    // It ends when nothing is left, so there is no time for a warm-up.
    let consume = ["perf", "consume", "load", "--warmup", "0s", "--output", "json"];
    is_a_servers_measurement(against(&server, &consume), "consume");
    is_a_servers_measurement(perf(&["roundtrip", "trip"]), "roundtrip");
    let one = perf(&["produce", "one", "--in-flight", "1", "--batching", "off"]);
    is_a_servers_measurement(one, "produce");
    server.stop();
}

#[test]
fn perf_keeps_to_a_rate() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let args = ["perf", "produce", "load", "--rate", "500"];
    let report =
        is_a_servers_measurement(against(&server, &[&args[..], &SHORT].concat()), "produce");
    assert_eq!(report["load"]["rate"].as_u64(), Some(500), "{report}");
    // Messages are due at start + n / rate: those of 300 ms, however late they are sent.
    let stats = against(&server, &["admin", "topics", "stats", "load", "--output", "json"]).ok();
    assert_eq!(stats.json()["msgInCounter"].as_u64(), Some(150));
    server.stop();
}

#[test]
fn perf_roundtrip_goes_on_beside_a_stalled_consumer_and_leaves_no_subscription() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let args = ["perf", "roundtrip", "load", "--consumers", "3", "--stalled", "1"];
    let ran = against(&server, &[&args[..], &SHORT].concat());
    let report = is_a_servers_measurement(ran, "roundtrip");
    let load = &report["load"];
    assert_eq!((load["consumers"].as_u64(), load["stalled"].as_u64()), (Some(3), Some(1)));
    let stats = against(&server, &["admin", "topics", "stats", "load", "--output", "json"]).ok();
    let stats = stats.json();
    assert_eq!(stats["subscriptions"].as_object().map(serde_json::Map::len), Some(0), "{stats}");
    server.stop();
}

#[test]
fn perf_uses_new_topics_for_the_first_time() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let args = ["perf", "topics", "fresh", "--count", "20", "--in-flight", "4", "--size", "100"];
    let ran = against(&server, &[&args[..], &["--output", "json"]].concat());
    let report = is_a_servers_measurement(ran, "topics");
    assert_eq!((report["messages"].as_u64(), report["bytes"].as_u64()), (Some(20), Some(2_000)));
    let listed = against(&server, &["admin", "topics", "list", "public/default"]).ok();
    let listed = String::from_utf8(listed.stdout).expect("text");
    assert_eq!(listed.matches("public/default/fresh-").count(), 20, "{listed}");
    server.stop();
}

#[test]
fn perf_measures_log_and_disk_without_a_server_and_leaves_nothing() {
    let home = home();
    let dir = home.path().to_str().expect("temporary paths are text");
    let bookie = run(&[&["perf", "bookie", "--dir", dir][..], &SHORT].concat());
    let report = is_a_measurement(bookie, "bookie");
    assert!(report["load"]["writes"].as_u64().is_some_and(|writes| writes > 0), "{report}");
    let disk = ["perf", "disk", "--dir", dir, "--file-size", "1MiB", "--size", "4KiB"];
    let disk = run(&[&disk[..], &["--duration", "200ms", "--output", "json"]].concat());
    is_a_measurement(disk, "disk");
    let left: Vec<_> = std::fs::read_dir(dir).expect("it is there").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn completions_are_a_script_that_the_shell_takes() {
    let script = run(&["completions", "bash"]).ok().stdout;
    // The shell itself says whether it is one, and what it completes by it.
    let typed = "COMP_WORDS=(geminga pro); COMP_CWORD=1; _geminga geminga pro geminga\n\
                 printf '%s\\n' \"${COMPREPLY[@]}\"\n";
    let shell = std::process::Command::new("bash")
        .args(["--norc", "--noprofile", "-s"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut shell = shell.expect("bash is there");
    let mut input = shell.stdin.take().expect("it is piped");
    input.write_all(&script).and_then(|()| input.write_all(typed.as_bytes())).expect("it reads");
    drop(input);
    let ran: Ran = shell.wait_with_output().expect("it ends").into();
    assert_eq!(ran.stderr, "");
    assert_eq!(String::from_utf8_lossy(&ran.ok().stdout), "produce\n");
}

#[test]
fn a_wrong_command_line_ends_with_exit_code_2_and_starts_nothing() {
    let home = home();
    let dir = home.path().join("data");
    let data = dir.to_str().expect("temporary paths are text");
    for (args, words) in [
        (&["nonsense"][..], &["unrecognized subcommand 'nonsense'"][..]),
        (&["produce"], &["required arguments were not provided", "<TOPIC>"]),
        (&["consume", "t"], &["required arguments were not provided", "--subscription <NAME>"]),
        (&["consume", "t", "-s", "s", "--timeout", "0s"], &["--timeout must be more than 0"]),
        (
            &["consume", "t", "-s", "s", "--count", "1", "--until-caught-up"],
            &["'--count <N>' cannot be used with '--until-caught-up'"],
        ),
        (&["produce", "t", "--compression", "gzip"], &["use none, lz4 or zstd"]),
        (&["produce", "t", "--key-separator", ""], &["--key-separator"]),
        (&["perf", "roundtrip", "t", "--stalled", "1"], &["--stalled must leave a consumer"]),
        (&["perf", "roundtrip", "t", "--size", "4"], &["--size must be at least 16"]),
        (&["perf", "disk", "--dir", data, "--size", "100"], &["--size must be a multiple of 4KiB"]),
        (&["completions", "oops"], &["invalid value 'oops' for '<SHELL>'"]),
        (
            &["standalone", "--data-dir", data, "--set", "broker.retention=soon"],
            &["broker.retention can't be \"soon\""],
        ),
    ] {
        run(args).failed_with(2, words);
    }
    assert!(!dir.exists(), "something was started");
}

#[test]
fn what_stands_before_the_separator_is_the_key() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let args = ["produce", "t", "--key-separator", "::"];
    drop(against_with_input(&server, &args, b"a::1\nb::2::3\nplain\n::4\n").ok());
    let args = ["consume", "t", "-s", "s", "--count", "4", "--output", "json"];
    let read = String::from_utf8(against(&server, &args).ok().stdout).expect("text");
    let received: Vec<(Value, Value)> = read
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a JSON object on each line"))
        .map(|message| (message["key"].clone(), message["payload"].clone()))
        .collect();
    let expected = [
        ("a".into(), "1".into()),
        ("b".into(), "2::3".into()),
        (Value::Null, "plain".into()),
        ("".into(), "4".into()),
    ];
    assert_eq!(received, expected);
    server.stop();
}

#[test]
fn produce_keeps_to_a_rate() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let input: String = (0..51).map(|n| format!("{n}\n")).collect();
    let args = ["produce", "t", "--rate", "100", "--output", "json"];
    let summary = against_with_input(&server, &args, input.as_bytes()).ok().json();
    assert_eq!(summary["messages"].as_u64(), Some(51), "{summary}");
    // The last one is not sent before 50 / rate; that it is later says nothing.
    assert!(summary["seconds"].as_f64().is_some_and(|seconds| seconds >= 0.49), "{summary}");
    server.stop();
}

#[test]
fn what_was_compressed_comes_back_and_took_less_space() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let line = "the same words over and over ".repeat(100);
    let input = format!("{line}\n").repeat(100);
    let stored = |topic: &str, codec: &str| {
        let args = ["produce", topic, "--compression", codec];
        drop(against_with_input(&server, &args, input.as_bytes()).ok());
        let stats = against(&server, &["admin", "topics", "stats", topic, "--output", "json"]).ok();
        let args = ["consume", topic, "-s", "s", "--until-caught-up"];
        assert!(against(&server, &args).ok().stdout == input.as_bytes(), "{codec}");
        stats.json()["storageSize"].as_u64().expect("a size")
    };
    let plain = stored("plain", "none");
    assert!(plain > input.len() as u64, "{plain}");
    for codec in ["lz4", "zstd"] {
        let size = stored(codec, codec);
        assert!(size > 0 && size < plain / 5, "{codec}: {size} of {plain}");
    }
    server.stop();
}

/// Reads from a child's output until `enough`.
fn read_until(child: &mut Child, enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let output = child.stdout.as_mut().expect("it is piped");
    let (mut read, mut byte) = (Vec::new(), [0]);
    while !enough(&read) {
        assert_eq!(output.read(&mut byte).expect("a pipe can be read"), 1, "it ended early");
        read.push(byte[0]);
    }
    read
}

/// Ctrl-C, and the end of it.
fn interrupted(mut child: Child) -> Ran {
    let raw = i32::try_from(child.id()).expect("process ids fit");
    let pid = Pid::from_raw(raw).expect("a child's id is not 0");
    kill_process(pid, Signal::INT).expect("a child can be signalled");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("a child can be waited for").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("a child can be killed");
            panic!("Ctrl-C doesn't end it");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("it has ended").into()
}

fn piped(server: &Standalone, args: &[&str]) -> Child {
    let mut command = client(server, args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary starts")
}

#[test]
fn an_interrupted_consume_ends_with_exit_code_130_and_has_acknowledged_what_it_wrote() {
    let home = home();
    let mut server = Standalone::start(home.path());
    drop(against_with_input(&server, &["produce", "t"], b"one\ntwo\n").ok());
    // Nothing ends it but Ctrl-C, or the test's patience.
    let mut child = piped(&server, &["consume", "t", "-s", "s", "--timeout", "60s"]);
    assert_eq!(read_until(&mut child, |read| read.ends_with(b"two\n")), b"one\ntwo\n");
    // Written is not acknowledged yet; that follows at once, and the scenario waits for it.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let args = ["admin", "topics", "stats", "t", "--output", "json"];
        let stats = against(&server, &args).ok().json();
        if stats["subscriptions"]["s"]["msgBacklog"].as_u64() == Some(0) {
            break;
        }
        assert!(Instant::now() < deadline, "{stats}");
    }
    interrupted(child).failed_with(130, &["2 messages", "error: interrupted"]);
    let again = against(&server, &["consume", "t", "-s", "s", "--until-caught-up"]).ok();
    assert_eq!(again.stdout, b"");
    server.stop();
}

#[test]
fn an_interrupted_produce_ends_with_exit_code_130_and_says_what_is_stored() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let input: String = (0..1_000).map(|n| format!("{n}\n")).collect();
    // It waits between two messages for most of the time, and is far from its end.
    let mut child = piped(&server, &["produce", "t", "--rate", "2", "--output", "json"]);
    let stdin = child.stdin.as_mut().expect("it is piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    let deadline = Instant::now() + PATIENCE;
    while stored_messages(&server).is_none_or(|stored| stored < 2) {
        assert!(Instant::now() < deadline, "they are never stored");
        std::thread::sleep(Duration::from_millis(10));
    }
    let ran = interrupted(child);
    let summary = ran.json();
    let stored = summary["messages"].as_u64().expect("a count");
    assert!((2..1_000).contains(&stored), "{summary}");
    assert_eq!((&summary["sent"], &summary["failed"]), (&stored.into(), &0.into()), "{summary}");
    let said = format!("{stored} of {stored} messages acknowledged");
    ran.failed_with(130, &[&said, "error: interrupted"]);
    let read = against(&server, &["consume", "t", "-s", "s", "--until-caught-up"]).ok();
    let expected: String = (0..stored).map(|n| format!("{n}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&read.stdout), expected);
    server.stop();
}

/// Of topic `t`; none as long as it doesn't exist.
fn stored_messages(server: &Standalone) -> Option<u64> {
    let ran = against(server, &["admin", "topics", "stats", "t", "--output", "json"]);
    if ran.code == Some(0) { ran.json()["msgInCounter"].as_u64() } else { None }
}
