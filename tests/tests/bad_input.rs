//! What people, disks and networks get wrong ends in a clear error, and nothing is lost.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use geminga_proto::env::{Random, SeededRandom};
use geminga_tests::cli::{Ran, against, against_with_input, command, run};
use geminga_tests::http;
use geminga_tests::standalone::{Standalone, home, refused_start};
use tokio::net::TcpSocket;

/// A port that is taken, so that nobody else gets it, and refuses connections: nothing listens.
struct ClosedPort {
    address: SocketAddr,
    _socket: TcpSocket,
}

impl ClosedPort {
    fn take() -> Self {
        let socket = TcpSocket::new_v4().expect("a socket can be made");
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let address = socket.local_addr().expect("it is bound");
        Self { address, _socket: socket }
    }
}

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
    const FORM: &str = "expected persistent://tenant/namespace/topic, tenant/namespace/topic or";
    let long = "x".repeat(600);
    for (topic, why) in [
        ("a/b", FORM),
        ("../../etc/passwd", FORM),
        ("non-persistent://public/default/t", "non-persistent topics are not supported"),
        ("a b", "must not contain spaces or control characters"),
        ("", "must not be empty"),
        (&long, "is longer than 512 bytes"),
    ] {
        // One that is too long is named by its beginning.
        let named = format!("{topic:?}").chars().take(60).collect::<String>();
        let produced = against_with_input(&server, &["produce", topic], b"x\n");
        produced.failed_with(2, &["can't publish to topic", &named, why]);
        let consumed = against(&server, &["consume", topic, "-s", "s", "--count", "1"]);
        consumed.failed_with(2, &["can't consume from topic", &named, why]);
        against(&server, &["admin", "topics", "stats", topic]).failed_with(2, &[&named, why]);
    }
    let admin = server.ports().admin.clone();
    for (path, status, why) in [
        ("..%2f..%2fetc", 412, "must not contain /"),
        ("a%00b", 412, "must not contain spaces or control characters"),
        ("%ff%fe", 400, "not UTF-8"),
        ("a%20b", 412, "must not contain spaces or control characters"),
    ] {
        let path = format!("/admin/v2/persistent/public/default/{path}/stats");
        let (answered, body) = http::request("GET", &admin, &path, "");
        assert_eq!(answered, status, "{path}: {body}");
        let body: serde_json::Value = serde_json::from_str(&body).expect("errors are JSON");
        let reason = body["reason"].as_str().expect("errors have a reason");
        assert!(reason.contains(why), "{path}: {reason}");
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
    ran.failed_with(
        1,
        &["the message has 6291456 bytes, more than", "max_message_size", "split it"],
    );
    still_works(&server, "t");
    server.stop();
}

#[test]
fn an_unknown_topic_is_refused_when_automatic_creation_is_off() {
    let home = home();
    let flags = ["--set", "broker.auto_topic_creation=false"];
    let mut server = Standalone::start_with(home.path(), &flags);
    let missing =
        "topic persistent://public/default/t does not exist and automatic creation is off";
    against_with_input(&server, &["produce", "t"], b"x\n").failed_with(1, &[missing]);
    let consume = ["consume", "t", "-s", "s", "--count", "1", "--timeout", "2s"];
    against(&server, &consume).failed_with(1, &[missing]);
    drop(against(&server, &["admin", "topics", "create", "t"]).ok());
    still_works(&server, "t");
    server.stop();
}

#[test]
fn a_port_in_use_is_named() {
    let home = home();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    for (flag, of) in [
        ("--grpc-port", "messaging API"),
        ("--admin-port", "admin API"),
        ("--bookie-port", "storage node"),
    ] {
        let refusal = format!("can't listen on 127.0.0.1:{port} ({of})");
        let words = [refusal.as_str(), "choose another one with", flag, "Address already in use"];
        refused_start(&home.path().join("data"), &[flag, &port], &words);
    }
}

#[test]
fn a_data_directory_in_use_is_refused_and_its_owner_goes_on() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let owner = format!("are in use by another process (pid {})", server.process_id());
    refused_start(&server.data_dir(), &[], &[&owner, "stop it, or use another data directory"]);
    still_works(&server, "t");
    server.stop();
}

#[test]
fn a_data_directory_that_is_a_file_is_refused() {
    let home = home();
    let path = home.path().join("data");
    std::fs::write(&path, b"").expect("a temporary file can be written");
    refused_start(&path, &[], &["it is a file; name a directory with --data-dir"]);
    assert_eq!(std::fs::read(&path).expect("it is still a file"), b"");
}

#[test]
fn settings_with_a_typo_are_refused_with_the_nearest_name() {
    let home = home();
    let config = home.path().join("geminga.toml");
    std::fs::write(&config, "[broker]\nauto_topic_creatoin = true\n").expect("it can be written");
    let config = config.to_str().expect("temporary paths are text");
    let ran = run(&["standalone", "--config", config, "--print-config"]);
    let nearest = "did you mean \"broker.auto_topic_creation\"?";
    let unknown = "unknown setting \"broker.auto_topic_creatoin\" in";
    ran.failed_with(2, &[unknown, &format!("in file {config}"), nearest]);
    let ran = run(&["standalone", "--set", "broker.auto_topic_creatoin=true", "--print-config"]);
    ran.failed_with(2, &[unknown, "in command line", nearest]);
    let mut environment = command(&["standalone", "--print-config"]);
    environment.env("GEMINGA_BROKER_AUTO_TOPIC_CREATOIN", "true");
    let ran: Ran = environment.output().expect("the binary starts").into();
    let unknown = "in environment variable GEMINGA_BROKER_AUTO_TOPIC_CREATOIN";
    ran.failed_with(2, &[unknown, "did you mean \"GEMINGA_BROKER_AUTO_TOPIC_CREATION\"?"]);
    std::fs::write(config, "[broker]\nmax_message_bytes = \"5 apples\"\n").expect("written");
    let ran = run(&["standalone", "--config", config, "--print-config"]);
    let wrong = format!("broker.max_message_bytes can't be \"5 apples\" (file {config})");
    ran.failed_with(2, &[&wrong, "is no size; write for example"]);
}

#[test]
fn without_a_server_a_client_says_what_it_could_not_reach() {
    let closed = ClosedPort::take();
    let url = format!("http://{}", closed.address);
    let refused = "Connection refused";
    let ran = run(&["admin", "topics", "list", "public/default", "--admin-url", &url]);
    let said = format!("can't reach the admin API at {url}");
    ran.failed_with(1, &[&said, refused, "--admin-url"]);
    let args = ["produce", "t", "--service-url", &url, "--timeout", "1s"];
    let said = format!("can't connect to {url}");
    run(&args).failed_with(1, &[&said, refused, "is a broker running there"]);
}

#[test]
fn a_client_on_the_wrong_port_is_told() {
    let home = home();
    let mut server = Standalone::start(home.path());
    let bookie = format!("http://{}", server.ports().bookie);
    for wrong in [server.admin_url(), bookie.clone()] {
        // Whether its refusal or the end of the connection is seen first is a race.
        let words = [wrong.as_str(), "gRPC port (by default 6660)"];
        for command in [&["produce", "t"][..], &["consume", "t", "-s", "s", "--count", "1"]] {
            let args = [command, &["--service-url", &wrong, "--timeout", "2s"]].concat();
            against_with_input(&server, &args, b"x\n").failed_with(1, &words);
        }
    }
    for wrong in [server.service_url(), bookie] {
        let args = ["admin", "topics", "list", "public/default", "--admin-url", &wrong];
        // The same race.
        against(&server, &args).failed_with(1, &[&wrong, "admin port", "8080"]);
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
