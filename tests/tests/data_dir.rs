//! Data directories that a server must leave alone: not writable, or written by a newer release.
//! It says so, ends with an error, changes nothing, and serves everything once that is mended.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use geminga_proto::v1::record::{AnyRecord, ClusterRecord};
use geminga_tests::bookie_files::{
    change, segments, set_cookie_version, set_manifest_version, set_segment_version,
};
use geminga_tests::cli::{against, against_with_input, command_of, run_to_its_end};
use geminga_tests::disk::SmallDisk;
use geminga_tests::standalone::{Standalone, home, refused_start};
use prost::Message;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

const LINES: &[u8] = b"one\ntwo\nthree\n";

/// A stopped server with some messages in its directory.
fn stopped_with_data(home: &Path) -> Standalone {
    let mut server = Standalone::start(home);
    drop(against_with_input(&server, &["produce", "t"], LINES).ok());
    server.stop();
    server
}

/// Demands that everything is there.
fn serves(server: &mut Standalone) {
    server.restart();
    let read = against(server, &["consume", "t", "-s", "s", "--until-caught-up"]).ok();
    assert_eq!(read.stdout, LINES);
    server.stop();
}

/// Every file below a directory with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir).expect("the directory is there") {
        let path = entry.expect("it can be listed").path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            let bytes = std::fs::read(&path).expect("it can be read");
            found.insert(path, bytes);
        }
    }
    found
}

/// Everything that a server has stored: the bookie's bytes, and what the metadata hold, which redb
/// keeps in a file that it changes at every opening.
fn stored(data: &Path) -> (BTreeMap<PathBuf, Vec<u8>>, Vec<String>) {
    let database = metadata(data);
    let read = database.begin_read().expect("it can be read");
    let mut rows = Vec::new();
    for entry in read.open_table(STORE).expect("it is documented").iter().expect("it is readable") {
        let (key, value) = entry.expect("it is readable");
        rows.push(format!("{} = {}", key.value(), value.value()));
    }
    for entry in read.open_table(PAIRS).expect("it is documented").iter().expect("it is readable") {
        let (key, value) = entry.expect("it is readable");
        rows.push(format!("{} = {:?}", key.value(), value.value()));
    }
    (contents(&data.join("bookie")), rows)
}

/// Demands a refusal that names both versions, of which `known` is the newest that is read, and
/// changes nothing.
fn refuses_the_version(data: &Path, known: u32, words: &[&str]) {
    let before = stored(data);
    let text = refused_start(data, &[], words);
    let newer = format!("version {}", known + 1);
    assert!(text.contains(&newer) && text.contains(&format!("up to {known}")), "{text}");
    assert!(text.contains("release that wrote it"), "{text}");
    let after = stored(data);
    let names = |files: &BTreeMap<PathBuf, _>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&before.0), names(&after.0), "files were made or removed");
    for (path, bytes) in &before.0 {
        assert!(after.0.get(path) == Some(bytes), "{} was changed", path.display());
    }
    assert_eq!(before.1, after.1, "the metadata were changed");
}

#[test]
fn a_bookies_files_of_a_newer_release_are_refused_by_version_and_left_alone() {
    let home = home();
    let mut server = stopped_with_data(home.path());
    let data = server.data_dir();
    let bookie = data.join("bookie");
    type SetVersion = fn(&mut [u8], u16);
    let segment = segments(&data).into_iter().next().expect("there is one");
    let cases: [(PathBuf, SetVersion, u16, &str); 3] = [
        (bookie.join("cookie"), set_cookie_version, 1, "cookie"),
        (bookie.join("manifest-b"), set_manifest_version, 2, "manifest"),
        (segment, set_segment_version, 1, "segment"),
    ];
    for (path, set_version, known, word) in cases {
        change(&path, |bytes| set_version(bytes, known + 1));
        refuses_the_version(&data, known.into(), &[word, "data"]);
        change(&path, |bytes| set_version(bytes, known));
    }
    serves(&mut server);
}

#[test]
fn a_manifest_of_an_older_release_is_read_and_written_anew() {
    let home = home();
    let mut server = stopped_with_data(home.path());
    let bookie = server.data_dir().join("bookie");
    let copies = ["manifest-a", "manifest-b"].map(|name| bookie.join(name));
    let version = |path: &Path| std::fs::read(path).expect("it can be read")[8];
    for copy in &copies {
        assert_eq!(version(copy), 2);
        change(copy, |bytes| set_manifest_version(bytes, 1));
        assert_eq!(version(copy), 1);
    }
    serves(&mut server);
    assert_eq!(copies.map(|copy| version(&copy)), [2, 2]);
}

const STORE: TableDefinition<'static, &str, u64> = TableDefinition::new("store");
const PAIRS: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("pairs");
/// Checksum, revision and lease in front of a record.
const ROW_HEADER_BYTES: usize = 20;

fn metadata(data: &Path) -> Database {
    Database::open(data.join("metadata").join("metadata.redb")).expect("it is a redb file")
}

fn set_store_version(data: &Path, version: u64) {
    let database = metadata(data);
    let write = database.begin_write().expect("it can be written");
    {
        let mut store = write.open_table(STORE).expect("the table is documented");
        let before = store.insert("format", version).expect("it can be written");
        assert!(before.is_some(), "the key is documented");
    }
    write.commit().expect("it can be written");
}

/// Changes the record of the cluster, checksum included.
fn change_cluster(data: &Path, change: impl FnOnce(&mut ClusterRecord)) {
    const KEY: &str = "cluster";
    let database = metadata(data);
    let read = database.begin_read().expect("it can be read");
    let pairs = read.open_table(PAIRS).expect("the table is documented");
    let row = pairs.get(KEY).expect("it can be read").expect("the key is documented");
    let (head, value) = row.value().split_at(ROW_HEADER_BYTES);
    let any = AnyRecord::decode(value).expect("every record begins so");
    let mut record = ClusterRecord::decode(value).expect("a record");
    assert_eq!(any.stamp, record.stamp);
    change(&mut record);
    let rest = [&head[4..], &record.encode_to_vec()].concat();
    let crc = crc32c::crc32c(&[KEY.as_bytes(), &rest].concat());
    let changed = [&crc.to_le_bytes()[..], &rest].concat();
    let write = database.begin_write().expect("it can be written");
    {
        let mut pairs = write.open_table(PAIRS).expect("the table is documented");
        pairs.insert(KEY, changed.as_slice()).expect("it can be written");
    }
    write.commit().expect("it can be written");
}

fn set_record_version(record: &mut ClusterRecord, version: u32) {
    record.stamp.as_mut().expect("every record has one").version = version;
}

#[test]
fn metadata_of_a_newer_release_are_refused_by_version_and_left_alone() {
    let home = home();
    let mut server = stopped_with_data(home.path());
    let data = server.data_dir();
    set_store_version(&data, 2);
    refuses_the_version(&data, 1, &["metadata.redb"]);
    set_store_version(&data, 1);
    change_cluster(&data, |record| record.format_version = 2);
    refuses_the_version(&data, 1, &["metadata"]);
    change_cluster(&data, |record| record.format_version = 1);
    change_cluster(&data, |record| set_record_version(record, 2));
    refuses_the_version(&data, 1, &["cluster"]);
    change_cluster(&data, |record| set_record_version(record, 1));
    serves(&mut server);
}

#[test]
fn a_read_only_disk_is_refused_and_served_when_it_is_writable_again() {
    let home = home();
    let Some(mut disk) = SmallDisk::mount(128 << 20) else {
        return refuses_what_the_user_may_not_write(home.path());
    };
    disk.hold_data_of(home.path());
    let mut server = stopped_with_data(home.path());
    disk.set_read_only(true);
    refused_start(&server.data_dir(), &[], &["data", "can't be written", "mount"]);
    let new = disk.path().join("new");
    refused_start(&new, &[], &["new", "name a directory", "Read-only"]);
    disk.set_read_only(false);
    serves(&mut server);
}

/// A user without rights: another one if this is root, for whom modes mean nothing.
fn without_rights(home: &Path, data: &Path) -> Command {
    let readable = PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(home, readable).expect("its owner may");
    let binary = home.join("geminga");
    // By another process: a file that this one has open for writing, and with it every child that
    // another test starts meanwhile, couldn't be executed.
    let copied = Command::new("cp").arg(geminga_tests::binary()).arg(&binary).status();
    assert!(copied.expect("cp is there").success(), "the binary can be copied");
    let free_ports = ["--grpc-port", "0", "--admin-port", "0", "--bookie-port", "0"];
    let mut command = command_of(&binary, &["standalone"]);
    command.args(free_ports);
    command.arg("--data-dir").arg(data).current_dir(home);
    if rustix::process::geteuid().is_root() {
        const NOBODY: u32 = 65_534;
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn set_mode(dir: &Path, mode: u32) {
    std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)).expect("its owner may");
}

fn refuses_what_the_user_may_not_write(home: &Path) {
    const PATIENCE: Duration = Duration::from_secs(60);
    let mut server = stopped_with_data(home);
    let data = server.data_dir();
    let files: Vec<PathBuf> = contents(&data).into_keys().collect();
    for file in &files {
        set_mode(file, 0o444);
    }
    for dir in [data.join("metadata"), data.join("bookie"), data.clone()] {
        set_mode(&dir, 0o555);
    }
    let ran = run_to_its_end(without_rights(home, &data), PATIENCE);
    ran.failed_with(1, &["data", "can't be written", "owner"]);
    let ran = run_to_its_end(without_rights(home, &data.join("new")), PATIENCE);
    ran.failed_with(1, &["new", "can't be made", "name a directory"]);
    for dir in [data.clone(), data.join("metadata"), data.join("bookie")] {
        set_mode(&dir, 0o755);
    }
    for file in &files {
        set_mode(file, 0o644);
    }
    serves(&mut server);
}

#[test]
fn a_directory_that_the_user_may_not_write_is_refused() {
    let home = home();
    refuses_what_the_user_may_not_write(home.path());
}
