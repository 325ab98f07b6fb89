//! Users, passwords, and certificates.

use std::path::PathBuf;

use etcd_client::{Client, ConnectOptions, Permission};
use geminga_meta::store::etcd::{ConnectError, EtcdCredentials, EtcdIdentity, EtcdTls};
use geminga_meta::store::{Revision, WatchError};
use geminga_tests::etcd::EtcdTlsFiles;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::*;

const ROOT_PASSWORD: &str = "root-secret";
const PASSWORD: &str = "geminga-secret";

/// A user that may do everything below the prefix, and nothing else; from now on, everybody needs
/// to be one.
async fn enable_authentication(etcd: &Etcd, prefix: &str) {
    let mut client = raw(etcd).await;
    client.user_add("root", ROOT_PASSWORD, None).await.expect("added");
    client.user_grant_role("root", "root").await.map(drop).or_else(ignore).expect("granted");
    client.role_add("root").await.map(drop).or_else(ignore).expect("added");
    client.user_grant_role("root", "root").await.expect("granted");
    client.user_add("geminga", PASSWORD, None).await.expect("added");
    client.role_add("geminga").await.expect("added");
    let ours = Permission::read_write(prefix).with_prefix();
    client.role_grant_permission("geminga", ours).await.expect("granted");
    client.user_grant_role("geminga", "geminga").await.expect("granted");
    client.auth_enable().await.expect("enabled");
}

/// The role `root` is there already or not, depending on etcd's version.
fn ignore(_: etcd_client::Error) -> Result<(), etcd_client::Error> {
    Ok(())
}

fn with_password(etcd: &Etcd, password: &str) -> EtcdConfig {
    let mut config = config(etcd);
    let (user, password) = ("geminga".to_owned(), password.to_owned());
    config.credentials = Some(EtcdCredentials { user, password });
    config
}

/// Demands that access is denied, and that the reason names this and no password.
fn assert_denied<T: std::fmt::Debug>(answer: Result<T, StoreError>, word: &str) {
    let Err(StoreError::Denied(why)) = answer else { panic!("not denied: {answer:?}") };
    assert!(why.contains(word), "{word} is not named: {why}");
    assert!(!why.contains("secret"), "a password is shown: {why}");
}

fn store_error(answer: Result<EtcdStore, ConnectError>) -> Result<EtcdStore, StoreError> {
    answer.map_err(|error| match error {
        ConnectError::Store(error) => error,
        ConnectError::Config(error) => panic!("the settings are refused: {error}"),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_gets_as_far_as_its_password_and_its_permissions_go() {
    let mut real = Real::start().await;
    let env = Env::system();
    let useless = EtcdStore::connect(with_password(&real.etcd, PASSWORD), env.clone()).await;
    assert_denied(store_error(useless), "no authentication");
    put(&*real.store, "before", "1").await.expect("anybody may, still");
    enable_authentication(&real.etcd, &config(&real.etcd).prefix).await;

    assert_denied(put(&*real.store, "a", "1").await, "user");
    let nobody = EtcdStore::connect(config(&real.etcd), env.clone()).await;
    assert_denied(store_error(nobody), "user");
    let wrong = EtcdStore::connect(with_password(&real.etcd, "wrong-secret"), env.clone()).await;
    assert_denied(store_error(wrong), "password");
    let mut elsewhere = with_password(&real.etcd, PASSWORD);
    elsewhere.prefix = "/other/".to_owned();
    assert_denied(store_error(EtcdStore::connect(elsewhere, env).await), "prefix");

    let store = connect(with_password(&real.etcd, PASSWORD)).await;
    put(&*store, "a", "1").await.expect("it may");
    let mut watch = store.watch("", store.last_revision()).await.expect("it may");
    // etcd forgets its sessions when it is started again.
    real.etcd.stop(0);
    real.etcd.restart(0);
    let ended = tokio::time::timeout(PATIENCE, watch.next()).await.expect("it ends");
    assert!(matches!(ended, Err(WatchError::Lost(_))), "{ended:?}");
    eventually(async || put(&*store, "a", "2").await).await;
    let mut watch = store.watch("a", Revision(1)).await.expect("it may again");
    let events = tokio::time::timeout(PATIENCE, watch.next()).await.expect("they come");
    assert!(!events.expect("the watch goes on").is_empty());

    let root = ConnectOptions::new().with_user("root", ROOT_PASSWORD);
    let mut root = Client::connect(real.etcd.endpoints(), Some(root)).await.expect("root may");
    // Any change of the rights makes earlier sessions old; that isn't news for anyone.
    root.role_add("another").await.expect("added");
    put(&*store, "a", "3").await.expect("it authenticates again");
    store.watch("", store.last_revision()).await.expect("it may");
    root.user_change_password("geminga", "changed-secret").await.expect("changed");
    let deadline = Instant::now() + PATIENCE;
    while put(&*store, "a", "4").await.is_ok() {
        assert!(Instant::now() < deadline, "the old password is good for ever");
    }
    assert_denied(put(&*store, "a", "4").await, "password");
}

/// Certificates in files, since etcd reads files.
struct Certificates {
    authority: CertifiedIssuer<'static, KeyPair>,
    dir: PathBuf,
}

impl Certificates {
    fn new(dir: PathBuf) -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key can be made");
        let authority = CertifiedIssuer::self_signed(params, key).expect("signed");
        Self { authority, dir }
    }

    fn authority_pem(&self) -> Vec<u8> {
        self.authority.pem().into_bytes()
    }

    /// A certificate for loopback, with its key.
    fn issue(&self) -> EtcdIdentity {
        let names = vec!["127.0.0.1".to_owned(), "localhost".to_owned()];
        let params = CertificateParams::new(names).expect("valid names");
        let key = KeyPair::generate().expect("a key can be made");
        let cert = params.signed_by(&key, &self.authority).expect("signed");
        let (cert_pem, key_pem) = (cert.pem().into_bytes(), key.serialize_pem().into_bytes());
        EtcdIdentity { cert_pem, key_pem }
    }

    fn write(&self, name: &str, pem: &[u8]) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::write(&path, pem).expect("a file can be written");
        path
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_by_both_sides() {
    let home = home();
    let certificates = Certificates::new(home.path().to_owned());
    let server = certificates.issue();
    let tls = EtcdTlsFiles {
        cert: certificates.write("server.pem", &server.cert_pem),
        key: certificates.write("server.key", &server.key_pem),
        client_ca: Some(certificates.write("ca.pem", &certificates.authority_pem())),
    };
    let options = EtcdOptions { tls: Some(tls), ..EtcdOptions::default() };
    let etcd = Etcd::start_with(home.path(), &options);
    let with = |ca_pem: Vec<u8>, identity: Option<EtcdIdentity>| {
        let mut config = config(&etcd);
        config.tls = Some(EtcdTls { ca_pem, identity });
        EtcdStore::connect(config, Env::system())
    };
    let ours = certificates.authority_pem();
    let mut right = config(&etcd);
    right.tls = Some(EtcdTls { ca_pem: ours.clone(), identity: Some(certificates.issue()) });
    put(&*connect(right).await, "a", "1").await.expect("written");

    let strangers = Certificates::new(home.path().to_owned());
    let wrong_server = with(strangers.authority_pem(), Some(certificates.issue())).await;
    let Err(StoreError::Unavailable(why)) = store_error(wrong_server) else {
        panic!("etcd's certificate is not checked")
    };
    assert!(why.contains("certificate") && why.contains(&etcd.url(0)), "{why}");
    for identity in [None, Some(strangers.issue())] {
        let unknown = store_error(with(ours.clone(), identity).await);
        let Err(StoreError::Unavailable(why)) = unknown else { panic!("a stranger got in") };
        assert!(why.contains(&etcd.url(0)), "{why}");
    }
    let mut config = config(&etcd);
    config.endpoints = vec![etcd.url(0).replace("https", "http")];
    let plain = store_error(EtcdStore::connect(config, Env::system()).await);
    assert!(matches!(plain, Err(StoreError::Unavailable(_))), "{plain:?}");
    let mut config = EtcdConfig::new(&ClusterId::new("test").expect("valid"));
    config.endpoints = etcd.endpoints();
    let refused = EtcdStore::connect(config, Env::system()).await;
    assert!(matches!(refused, Err(ConnectError::Config(error)) if error.name == "ca_file"));
}
