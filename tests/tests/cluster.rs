//! A cluster of real processes as a user sees it: made by one command, used by the command line
//! over the list of its brokers, going on when the owner of a topic is killed, stopped cleanly.

use etcd_client::Client;
use geminga_tests::cli::{Reached, against, against_with_input, command, run_to_its_end};
use geminga_tests::cluster::{Cluster, Plan};
use geminga_tests::etcd::Etcd;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn numbers(from: u32, to: u32) -> Vec<u8> {
    (from..to).flat_map(|number| format!("{number}\n").into_bytes()).collect()
}

#[test]
fn messages_outlive_the_kill_of_the_broker_that_took_them() {
    let mut cluster = Cluster::up(&Plan::with_long_leases());
    drop(against_with_input(&cluster, &["produce", "t"], &numbers(0, 1_000)).ok());
    let first = against(&cluster, &["consume", "t", "-s", "s", "--count", "400"]).ok();
    assert_eq!(first.stdout, numbers(0, 400));
    let owner = cluster.owner_of("t");
    cluster.kill(&owner);
    drop(against_with_input(&cluster, &["produce", "t"], &numbers(1_000, 1_100)).ok());
    let rest = against(&cluster, &["consume", "t", "-s", "s", "--count", "700"]).ok();
    assert_eq!(rest.stdout, numbers(400, 1_100), "in order, and none that was acknowledged");
    assert_ne!(cluster.owner_of("t"), owner);
    cluster.start(&owner);
    cluster.down();
}

#[test]
fn administration_shows_every_node_and_what_is_degraded() {
    let mut cluster = Cluster::up(&Plan { zones: 3, ..Plan::with_long_leases() });
    drop(against_with_input(&cluster, &["produce", "t"], b"a\n").ok());
    let json = |cluster: &Cluster, args: &[&str]| {
        let args = [&["admin"], args, &["--output", "json"]].concat();
        against(cluster, &args).ok().json()
    };
    let brokers = json(&cluster, &["brokers", "list"]);
    assert_eq!(brokers["brokers"].as_array().map(Vec::len), Some(2), "{brokers}");
    let bookies = json(&cluster, &["bookies", "list"]);
    let zones: Vec<_> = bookies["bookies"].as_array().into_iter().flatten().collect();
    assert_eq!(zones.len(), 3, "{bookies}");
    assert_eq!(zones[0]["zone"], "zone-1", "{bookies}");
    let status = json(&cluster, &["cluster", "status"]);
    assert_eq!(
        (&status["status"], &status["problems"]),
        (&"healthy".into(), &Vec::<u8>::new().into())
    );
    let table = against(&cluster, &["admin", "cluster", "status"]).ok();
    assert!(String::from_utf8_lossy(&table.stdout).contains("healthy"));

    // A bundle moves when it is unloaded from a broker that stops, and nothing is lost by it.
    let owner = cluster.owner_of("t");
    let bundles = json(&cluster, &["bundles", "list", "public/default"]);
    let owned = bundles["bundles"].as_array().into_iter().flatten();
    let owned = owned.filter(|bundle| bundle["owner"] == owner.as_str());
    let bundle = owned.filter_map(|bundle| bundle["bundle"].as_str()).next().expect("it owns one");
    drop(against(&cluster, &["admin", "bundles", "unload", "public/default", bundle]).ok());
    cluster.stop(&owner);
    assert_ne!(cluster.owner_of("t"), owner);

    cluster.kill("bookie-2");
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let ran = against(&cluster, &["admin", "cluster", "status", "--output", "json"]);
        if ran.code == Some(4) {
            let problems = ran.json()["problems"].to_string();
            assert!(problems.contains("bookie-2"), "{problems}");
            break;
        }
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        assert!(std::time::Instant::now() < deadline, "a dead bookie is no problem?");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.start("bookie-2");
    cluster.start(&owner);
    cluster.down();
}

#[test]
fn what_is_set_for_all_reaches_the_first_namespace_too() {
    let set = vec![("broker.bundles_per_namespace", "1")];
    let cluster = Cluster::up(&Plan { bookies: 1, brokers: 1, set, ..Plan::with_long_leases() });
    let args = ["admin", "bundles", "list", "public/default", "--output", "json"];
    let listed = against(&cluster, &args).ok().json();
    let bundles = listed["bundles"].as_array().into_iter().flatten();
    let bundles: Vec<_> = bundles.map(|bundle| &bundle["bundle"]).collect();
    assert_eq!(bundles, ["00000000-ffffffff"], "{listed}");
    cluster.down();
}

#[test]
fn a_record_that_can_not_be_used_is_named_and_the_rest_goes_on() {
    let mut cluster = Cluster::up(&Plan { brokers: 1, ..Plan::with_long_leases() });
    cluster.allow_in_log("a bookie's record can't be used");
    let produce =
        |cluster: &Cluster, topic| against_with_input(cluster, &["produce", topic], b"a\n");
    drop(against(&cluster, &["admin", "topics", "create", "bad"]).ok());
    drop(against(&cluster, &["admin", "topics", "unload", "bad"]).ok());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be made");
    let etcd = Client::connect([cluster.metadata_endpoints()], None);
    let mut etcd = runtime.block_on(etcd).expect("it answers");
    let (topic, bookie) = ("topics/public/default/bad", "bookies/bookie-1");
    for key in [topic, bookie] {
        let key = format!("/geminga/geminga/{key}");
        runtime.block_on(etcd.put(key, "no record", None)).expect("written");
    }
    produce(&cluster, "bad").failed_with(1, &["damaged", topic]);
    drop(produce(&cluster, "good").ok());
    let listed = against(&cluster, &["admin", "bookies", "list", "--output", "json"]).ok().json();
    let states = listed["bookies"].as_array().into_iter().flatten().map(|it| &it["state"]);
    assert_eq!(states.collect::<Vec<_>>(), ["unreadable", "writable", "writable"], "{listed}");
    let status = against(&cluster, &["admin", "cluster", "status"]);
    let table = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(table.contains("bookie-1") && table.contains("delete its key"), "{table}");
    status.failed_with(4, &["degraded"]);

    // As it says.
    let key = format!("/geminga/geminga/{bookie}");
    runtime.block_on(etcd.delete(key, None)).expect("deleted");
    cluster.stop("bookie-1");
    cluster.start("bookie-1");
    drop(against(&cluster, &["admin", "cluster", "status"]).ok());
    cluster.down();
}

#[test]
fn what_does_not_belong_is_refused_with_what_to_do() {
    let mut cluster = Cluster::up(&Plan { bookies: 3, brokers: 1, ..Plan::with_long_leases() });
    let endpoints = cluster.metadata_endpoints();
    let ran = |args: &[&str]| {
        let args = [args, &["--metadata-endpoints", &endpoints]].concat();
        run_to_its_end(command(&args), PATIENCE)
    };
    ran(&["cluster", "init"]).failed_with(1, &["initialised already"]);
    let made = ran(&["cluster", "init", "--if-absent", "--output", "json"]).ok().json();
    assert_eq!(made["created"].as_bool(), Some(false), "{made}");

    // Another name is another cluster, which nobody has made.
    let ports = ["--grpc-port", "0", "--admin-port", "0"];
    let broker = [&["broker", "--cluster-name", "other"], &ports[..]].concat();
    ran(&broker).failed_with(1, &["geminga cluster init"]);

    // A name that is taken.
    let broker = [&["broker", "--broker-id", "broker-1"], &ports[..]];
    ran(&broker.concat()).failed_with(1, &["broker-1", "running already", "another broker_id"]);
    let home = geminga_tests::standalone::home();
    let dir = home.path().to_str().expect("temporary paths are text");
    let bookie = ["bookie", "--bookie-id", "bookie-1", "--bookie-port", "0", "--data-dir", dir];
    ran(&bookie).failed_with(1, &["bookie-1", "is empty", "under a new name"]);
    // Nor with a copy of the first one's disk, which would pass for it.
    let copy = home.path().join("copy");
    cluster.stop("bookie-1");
    Etcd::copy_data(&cluster.dir().join("bookie-1/data"), &copy);
    cluster.start("bookie-1");
    let copy = copy.to_str().expect("temporary paths are text");
    let bookie = ["bookie", "--bookie-id", "bookie-1", "--data-dir", copy];
    let bookie = [&bookie[..], &["--bookie-port", "0", "--metrics-port", "0"]].concat();
    ran(&bookie).failed_with(1, &["bookie-1 is running already at", "another bookie_id"]);

    // An etcd that isn't there, and a bookie that is asked for topics.
    let nobody = ["cluster", "init", "--metadata-wait", "300ms", "--metadata-endpoints"];
    let nobody = [&nobody[..], &["http://127.0.0.1:1"]].concat();
    run_to_its_end(command(&nobody), PATIENCE).failed_with(1, &["http://127.0.0.1:1", "300ms"]);
    let bookie = format!("http://{}", cluster.address("bookie-1", "bookie"));
    let ran = command(&["produce", "t", "--service-url", &bookie]);
    let refused = run_to_its_end(ran, PATIENCE);
    refused.failed_with(1, &["is not a Geminga broker's gRPC port"]);
    assert!(cluster.service_url().starts_with("http://"));
    assert_eq!(Reached::admin_url(&cluster), cluster.admin_url());
    cluster.down();
}
