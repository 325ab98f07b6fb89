//! The order of the layers, and what is refused.

use super::*;
use toml::Value;

fn global(config: Option<PathBuf>, set: &[&str]) -> GlobalArgs {
    let set = set.iter().map(|text| (*text).to_owned()).collect();
    GlobalArgs { config, print_config: false, set, log: None }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("writes");
    file
}

fn environment(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn from_file(text: &str) -> Result<Resolved, ConfigError> {
    let file = file(text);
    resolve(&global(Some(file.path().to_owned()), &[]), &[], &[])
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let file = file(
        "grpc_port = 1\nadmin_port = 1\nbookie_port = 1\n[broker]\ntail_cache_bytes = \"1MiB\"",
    );
    let environment = environment(&[
        ("GEMINGA_ADMIN_PORT", "2"),
        ("GEMINGA_BOOKIE_PORT", "2"),
        ("GEMINGA_BROKER_MAX_MESSAGE_BYTES", "2MiB"),
    ]);
    let flags = [("bookie_port", Value::Integer(3))];
    let resolved = resolve(&global(Some(file.path().to_owned()), &[]), &flags, &environment);
    let settings = resolved.expect("valid").settings;
    assert_eq!((settings.grpc_port, settings.admin_port, settings.bookie_port), (1, 2, 3));
    assert_eq!(settings.broker.tail_cache_bytes, units::ByteSize(1 << 20));
    assert_eq!(settings.broker.max_message_bytes, units::ByteSize(2 << 20));
    assert_eq!(settings.service_url, Settings::default().service_url);
}

#[test]
fn a_file_named_by_the_environment_is_read() {
    let file = file("grpc_port = 7");
    let path = file.path().display().to_string();
    let resolved = resolve(&global(None, &[]), &[], &environment(&[("GEMINGA_CONFIG", &path)]));
    assert_eq!(resolved.expect("valid").settings.grpc_port, 7);
}

#[test]
fn an_unknown_key_is_refused_with_the_nearest_that_exists() {
    let suggested = |result: Result<Resolved, ConfigError>| match result {
        Err(ConfigError::Unknown { suggestion, .. }) => suggestion,
        other => panic!("not refused as unknown: {other:?}"),
    };
    let named = |name: &str| Some(name.to_owned());
    assert_eq!(suggested(from_file("grcp_port = 1")), named("grpc_port"));
    assert_eq!(
        suggested(from_file("[broker]\ntail_cahce_bytes = 1")),
        named("broker.tail_cache_bytes")
    );
    assert_eq!(suggested(from_file("tail_cache = 1")), named("broker.tail_cache_bytes"));
    assert_eq!(
        suggested(from_file("[brokr]\ntail_cache_bytes = 1")),
        named("broker.tail_cache_bytes")
    );
    assert_eq!(suggested(from_file("completely_different = 1")), None);
    let typo = environment(&[("GEMINGA_GRPC_PROT", "1")]);
    assert_eq!(suggested(resolve(&global(None, &[]), &[], &typo)), named("GEMINGA_GRPC_PORT"));
    let set = global(None, &["broker.retentoin=1h"]);
    assert_eq!(suggested(resolve(&set, &[], &[])), named("broker.retention"));
}

#[test]
fn a_value_that_cannot_be_is_refused_with_its_name_and_origin() {
    for (text, key) in [
        ("grpc_port = 70000", "grpc_port"),
        ("grpc_port = \"x\"", "grpc_port"),
        ("grpc_port = -1", "grpc_port"),
        ("[broker]\ntail_cache_bytes = \"a lot\"", "broker.tail_cache_bytes"),
        ("[broker]\nauto_topic_creation = 1", "broker.auto_topic_creation"),
        ("[broker]\nretention = 5", "broker.retention"),
        ("[bookie]\nsync_mode = \"none\"", "bookie.sync_mode"),
        ("bind = \"localhost\"", "bind"),
        ("service_url = \"https://a:1\"", "service_url"),
        ("admin_url = \"localhost:8080\"", "admin_url"),
        ("grpc_port = 8080", "admin_port"),
        ("advertised_address = \"http://a\"", "advertised_address"),
        ("worker_threads = 60000", "worker_threads"),
        ("broker = 1", "broker"),
        ("service_url = \"http://a:1,\"", "service_url"),
        ("cluster_name = \"a/b\"", "cluster_name"),
        ("broker_id = \"\"", "broker_id"),
        ("bookie_id = \"a b\"", "bookie_id"),
        ("[metadata]\nendpoints = \"\"", "metadata.endpoints"),
        ("[metadata]\nendpoints = \"https://a:1\"", "metadata.ca_file"),
        ("[metadata]\nca_file = \"a.pem\"", "metadata.ca_file"),
        ("[metadata]\nuser = \"root\"", "metadata.user"),
        ("[metadata]\npassword = \"x\"", "metadata.user"),
        ("[metadata]\npassword = 12345678", "metadata.password"),
        ("[metadata]\nwait = \"0s\"", "metadata.wait"),
        ("[metadata]\nrequest_timeout = \"1ms\"", "metadata.request_timeout"),
        ("[bookie]\nlease_ttl = \"999ms\"", "bookie.lease_ttl"),
        ("[ledger]\nwrite_quorum = \"most\"", "ledger.write_quorum"),
        ("[ledger]\nwrite_quorum = -1", "ledger.write_quorum"),
    ] {
        match from_file(text) {
            Err(ConfigError::Invalid { key: found, origin, .. }) => {
                assert_eq!(found, key, "{text}");
                // What is missing, or collides, may not be what the file holds.
                let elsewhere = ["admin_port", "metadata.ca_file", "metadata.user"].contains(&key);
                let expected = elsewhere || matches!(origin, Origin::File(_));
                assert!(expected, "{text}: {origin}");
            }
            Err(ConfigError::Unknown { key: found, .. }) => assert_eq!(found, key, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
    let bad = environment(&[("GEMINGA_BROKER_AUTO_TOPIC_CREATION", "perhaps")]);
    let error = resolve(&global(None, &[]), &[], &bad).expect_err("refused").to_string();
    assert!(error.contains("GEMINGA_BROKER_AUTO_TOPIC_CREATION"), "{error}");
    let missing = global(Some(PathBuf::from("/nonexistent/geminga.toml")), &[]);
    assert!(matches!(resolve(&missing, &[], &[]), Err(ConfigError::Unreadable { .. })));
    assert!(matches!(from_file("grpc_port = = 1"), Err(ConfigError::Syntax { .. })));
}

#[test]
fn what_is_printed_can_be_read_back_and_says_where_it_is_from() {
    let set = global(None, &["broker.retention=90m", "bookie.max_bytes=10GiB", "bind=::1"]);
    let resolved = resolve(&set, &[], &[]).expect("valid");
    let printed = resolved.print();
    assert!(printed.contains("# set by: command line\nretention = \"90m\""), "{printed}");
    assert!(printed.contains("[GEMINGA_BROKER_RETENTION]"), "{printed}");
    assert_eq!(from_file(&printed).expect("valid").settings, resolved.settings);
    let undescribed = printed.lines().filter(|line| line.starts_with("#  ["));
    assert_eq!(undescribed.count(), 0, "every setting is described");
}

#[test]
fn a_password_is_used_and_never_shown() {
    let file = file("[metadata]\nuser = \"root\"\npassword = \"hunter2\"");
    let resolved = resolve(&global(Some(file.path().to_owned()), &[]), &[], &[]).expect("valid");
    assert_eq!(resolved.settings.metadata.password.reveal(), "hunter2");
    let printed = resolved.print();
    assert!(printed.contains("it is set, and not shown"), "{printed}");
    assert!(printed.contains("GEMINGA_METADATA_PASSWORD]"), "{printed}");
    for shown in [printed, format!("{:?}", resolved.settings)] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
    for text in ["password = 12345678", "password = [\"12345678\"]"] {
        let error = from_file(&format!("[metadata]\n{text}")).expect_err("refused").to_string();
        assert!(error.contains("metadata.password") && !error.contains("12345678"), "{error}");
    }
    let error = from_file("[metadata]\npassword = \"hunter2").expect_err("refused").to_string();
    assert!(error.contains("line 2") && !error.contains("hunter2"), "{error}");
    let urls = ["service_url = ", "admin_url = ", "[metadata]\nendpoints = "];
    for setting in urls {
        let wrong = ["\"http://root:hunter2@a:1\"", "[\"http://root:hunter2@a:1\"]"];
        for value in wrong.iter().chain(&["\"http://root:hunter2@a:1"]) {
            let error = from_file(&format!("{setting}{value}")).expect_err("refused").to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let error = from_file(&format!("{setting}{}", wrong[0])).expect_err("refused").to_string();
        assert!(error.contains("must not name a user or password"), "{error}");
    }
    let unset = from_file("").expect("valid").print();
    assert!(unset.contains("\npassword = \"\"\n"), "{unset}");
}

#[test]
fn auto_or_a_number_or_a_time_is_read_from_file_and_environment() {
    let settings = from_file("[ledger]\nwrite_quorum = 5\n[metadata]\nwait = \"3s\"");
    let settings = settings.expect("valid").settings;
    assert_eq!(settings.ledger.write_quorum, units::Auto(Some(5)));
    assert_eq!(settings.ledger.ack_quorum, units::Auto(None));
    let wait = units::Span(std::time::Duration::from_secs(3));
    assert_eq!(settings.metadata.wait, units::Auto(Some(wait)));
    let set = environment(&[("GEMINGA_LEDGER_ACK_QUORUM", "2"), ("GEMINGA_METADATA_WAIT", "auto")]);
    let settings = resolve(&global(None, &[]), &[], &set).expect("valid").settings;
    assert_eq!(settings.ledger.ack_quorum, units::Auto(Some(2)));
    assert_eq!(settings.metadata.wait, units::Auto(None));
}
