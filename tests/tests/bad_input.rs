//! What people, disks and networks get wrong ends in a clear error, and nothing is lost.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use geminga_proto::env::{Random, SeededRandom};
use geminga_tests::cli::{Ran, against, against_with_input, command, run};
use geminga_tests::http;
use geminga_tests::standalone::{Standalone, home, refused_start};

/// Produces and consumes one message, so that the server is seen to work.
fn still_works(server: &Standalone, topic: &str) {
    drop(against_with_input(server, &["produce", topic], b"works\n").ok());
    let read = against(server, &["consume", topic, "-s", "s", "--count", "1"]).ok();
    assert_eq!(read.stdout, b"works\n");
}

#[test]
fn malformed_and_hostile_topic_names_are_refused_by_name() {
    let home = home();
    let mut server = Standalone::start(home.path());
    for topic in ["a/b", "non-persistent://public/default/t", "../../etc/passwd", "a b", ""] {
        against_with_input(&server, &["produce", topic], b"x\n").failed_with(&["topic"]);
        against(&server, &["consume", topic, "-s", "s", "--count", "1"]).failed_with(&["topic"]);
        against(&server, &["admin", "topics", "stats", topic]).failed_with(&[]);
    }
    let long = "x".repeat(600);
    against_with_input(&server, &["produce", &long], b"x\n").failed_with(&["512"]);
    let admin = server.ports().admin.clone();
    for path in ["..%2f..%2fetc", "a%00b", "%ff%fe", "a%20b"] {
        let path = format!("/admin/v2/persistent/public/default/{path}/stats");
        let (status, body) = http::request("GET", &admin, &path, "");
        assert!((400..500).contains(&status), "{path}: {status} {body}");
        assert!(body.contains("reason"), "{path}: {body}");
    }
    still_works(&server, "t");
    server.stop();
}

#[test]
fn a_message_above_the_limit_is_refused_before_it_is_sent() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let file = home.path().join("large");
    std::fs::write(&file, vec![b'x'; 6 << 20]).expect("a temporary file can be written");
    let file = file.to_str().expect("temporary paths are text");
    let ran = against(&server, &["produce", "t", "--file", file, "--whole-file"]);
    ran.failed_with(&["max_message"]);
    still_works(&server, "t");
    server.stop();
}

#[test]
fn an_unknown_topic_is_refused_when_automatic_creation_is_off() {
    let home = home();
    let flags = ["--set", "broker.auto_topic_creation=false"];
    let mut server = Standalone::start_with(home.path(), &flags);
    against_with_input(&server, &["produce", "t"], b"x\n").failed_with(&["does not exist"]);
    let consume = ["consume", "t", "-s", "s", "--count", "1", "--timeout", "2s"];
    against(&server, &consume).failed_with(&["does not exist"]);
    drop(against(&server, &["admin", "topics", "create", "t"]).ok());
    still_works(&server, "t");
    server.stop();
}

#[test]
fn a_port_in_use_is_named() {
    let home = home();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    for flag in ["--grpc-port", "--admin-port", "--bookie-port"] {
        refused_start(&home.path().join("data"), &[flag, &port], &[&port]);
    }
}

#[test]
fn a_data_directory_in_use_is_refused_and_its_owner_goes_on() {
    let home = home();
    let mut server = Standalone::start(home.path());
    refused_start(&server.data_dir(), &[], &["use"]);
    still_works(&server, "t");
    server.stop();
}

#[test]
fn a_data_directory_that_is_a_file_is_refused() {
    let home = home();
    let file = home.path().join("file");
    std::fs::write(&file, b"").expect("a temporary file can be written");
    refused_start(&file, &[], &["file"]);
}

#[test]
fn settings_with_a_typo_are_refused_with_the_nearest_name() {
    let home = home();
    let config = home.path().join("geminga.toml");
    std::fs::write(&config, "[broker]\nauto_topic_creatoin = true\n").expect("it can be written");
    let config = config.to_str().expect("temporary paths are text");
    let ran = run(&["standalone", "--config", config, "--print-config"]);
    ran.failed_with(&[config, "auto_topic_creatoin", "auto_topic_creation"]);
    let ran = run(&["standalone", "--set", "broker.auto_topic_creatoin=true", "--print-config"]);
    ran.failed_with(&["command line", "auto_topic_creatoin", "auto_topic_creation"]);
    let mut environment = command(&["standalone", "--print-config"]);
    environment.env("GEMINGA_BROKER_AUTO_TOPIC_CREATOIN", "true");
    let ran: Ran = environment.output().expect("the binary starts").into();
    ran.failed_with(&["GEMINGA_BROKER_AUTO_TOPIC_CREATOIN", "GEMINGA_BROKER_AUTO_TOPIC_CREATION"]);
    std::fs::write(config, "[broker]\nmax_message_bytes = \"5 apples\"\n").expect("written");
    let ran = run(&["standalone", "--config", config, "--print-config"]);
    ran.failed_with(&["max_message_bytes", "5 apples"]);
}

#[test]
fn commands_of_later_versions_say_so() {
    for name in ["broker", "bookie", "repair"] {
        run(&[name]).failed_with(&["not"]);
    }
}

#[test]
fn without_a_server_a_client_says_what_it_could_not_reach() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("it is bound").to_string();
    drop(free);
    let url = format!("http://{address}");
    let ran = run(&["admin", "topics", "list", "public/default", "--admin-url", &url]);
    ran.failed_with(&[&address]);
    let args = ["produce", "t", "--service-url", &url, "--timeout", "1s"];
    run(&args).failed_with(&[&address]);
}

#[test]
fn a_client_on_the_wrong_port_is_told() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let bookie = format!("http://{}", server.ports().bookie);
    for wrong in [server.admin_url(), bookie.clone()] {
        let words = [wrong.as_str(), "gRPC port", "6660"];
        for command in [&["produce", "t"][..], &["consume", "t", "-s", "s", "--count", "1"]] {
            let args = [command, &["--service-url", &wrong, "--timeout", "2s"]].concat();
            against_with_input(&server, &args, b"x\n").failed_with(&words);
        }
    }
    for wrong in [server.service_url(), bookie] {
        let args = ["admin", "topics", "list", "public/default", "--admin-url", &wrong];
        against(&server, &args).failed_with(&[&wrong, "admin"]);
    }
    still_works(&server, "t");
    server.stop();
}

#[test]
fn truncated_and_random_bytes_on_every_port_do_no_harm() {
    let seed = geminga_tests::seed();
    eprintln!("GEMINGA_SEED={seed}");
    let random = SeededRandom::new(seed);
    let home = home();
    let mut server = Standalone::start(home.path());
    let ports = server.ports().clone();
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    for address in [&ports.grpc, &ports.admin, &ports.bookie] {
        for round in 0..60 {
            let mut socket = TcpStream::connect(address).expect("the port is open");
            let timeout = Some(Duration::from_millis(20));
            socket.set_read_timeout(timeout).expect("a time-out can be set");
            let mut bytes = match round % 3 {
                0 => Vec::new(),
                1 => PREFACE.to_vec(),
                _ => b"POST /admin/v2/tenants/x HTTP/1.1\r\nContent-Length: 99\r\n\r\n{".to_vec(),
            };
            let noise = random.below(300);
            bytes.extend((0..noise).map(|_| random.next_u64() as u8));
            bytes.truncate(random.below(400) as usize);
            // The server may hang up at any byte.
            drop(socket.write_all(&bytes));
            drop(socket.read(&mut [0; 64]));
        }
    }
    still_works(&server, "t");
    server.stop();
}
