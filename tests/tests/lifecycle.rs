//! Starting, serving and stopping as an operator sees them.

use geminga_tests::cli::{against, against_with_input};
use geminga_tests::http;
use geminga_tests::standalone::{Standalone, home};

#[test]
fn a_server_is_ready_when_its_ready_file_appears_and_ends_with_exit_code_0() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let admin = server.ports().admin.clone();
    assert_eq!(http::request("GET", &admin, "/readyz", "").0, 200);
    assert_eq!(http::request("GET", &admin, "/livez", "").0, 200);
    assert!(http::get(&admin, "/metrics").contains("# TYPE geminga_"));
    server.stop();
}

#[test]
fn a_server_says_at_start_how_it_makes_writes_durable() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let log = server.log();
    assert!(log.contains("direct-dsync") || log.contains("fdatasync"), "{log}");
    server.stop();
}

#[test]
fn administration_shows_topics_subscriptions_and_ledgers() {
    let home = home();
    let mut server = Standalone::start(home.path());
    drop(against_with_input(&server, &["produce", "orders"], b"a\nb\nc\n").ok());
    drop(against(&server, &["consume", "orders", "-s", "audit", "--count", "2"]).ok());
    let json = |args: &[&str]| {
        let args: Vec<&str> = args.iter().chain(&["--output", "json"]).copied().collect();
        against(&server, &args).ok().json()
    };
    let topics = json(&["admin", "topics", "list", "public/default"]);
    assert!(topics.to_string().contains("persistent://public/default/orders"), "{topics}");
    let stats = json(&["admin", "topics", "stats", "orders"]);
    assert_eq!(stats["subscriptions"]["audit"]["msgBacklog"].as_u64(), Some(1), "{stats}");
    assert_eq!(stats["msgInCounter"].as_u64(), Some(3), "{stats}");
    let ledgers = json(&["admin", "ledgers", "list"]);
    assert!(ledgers.to_string().contains("OPEN") || ledgers.to_string().contains("open"));
    let table = against(&server, &["admin", "subscriptions", "list", "orders"]).ok();
    assert!(String::from_utf8_lossy(&table.stdout).contains("audit"));
    let dump = json(&["admin", "meta", "dump"]);
    assert!(dump.to_string().contains("orders"), "{dump}");
    server.stop();
}

#[test]
fn a_reset_subscription_reads_again_from_the_earliest_message() {
    let home = home();
    let mut server = Standalone::start(home.path());
    drop(against_with_input(&server, &["produce", "t"], b"a\nb\n").ok());
    let read = || against(&server, &["consume", "t", "-s", "s", "--until-caught-up"]).ok().stdout;
    // The second subscription keeps the data when the first has consumed it.
    drop(against(&server, &["consume", "t", "-s", "keeper", "--count", "1"]).ok());
    assert_eq!(read(), b"a\nb\n");
    assert_eq!(read(), b"");
    let reset = ["admin", "subscriptions", "reset", "t", "-s", "s", "--to", "earliest"];
    drop(against(&server, &reset).ok());
    assert_eq!(read(), b"a\nb\n");
    server.stop();
}

#[test]
fn a_deleted_topic_is_gone_and_one_made_anew_under_its_name_is_empty() {
    let home = home();
    let mut server = Standalone::start(home.path());
    drop(against_with_input(&server, &["produce", "t"], b"old\n").ok());
    drop(against(&server, &["admin", "topics", "delete", "t", "--force"]).ok());
    drop(against_with_input(&server, &["produce", "t"], b"new\n").ok());
    let read = against(&server, &["consume", "t", "-s", "s", "--until-caught-up"]).ok();
    assert_eq!(read.stdout, b"new\n");
    server.stop();
}
