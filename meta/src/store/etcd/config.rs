//! The settings of [`super::EtcdStore`]: built by the composition root, checked once.
//!
//! Invariant: no `Debug` or error text shows a password or a private key.

use std::fmt;
use std::time::Duration;

use geminga_proto::id::ClusterId;
use tonic::transport::Uri;

use crate::keys;

/// Longest prefix in bytes: what `MAX_TXN_BYTES` leaves has room for one before every key.
pub const MAX_PREFIX_BYTES: usize = 128;
/// Most endpoints. etcd clusters have three to seven members.
pub const MAX_ENDPOINTS: usize = 16;

/// How to reach etcd and what is ours in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// URLs of members, `http://host:port` or `https://host:port`; at least one.
    pub endpoints: Vec<String>,
    /// User and password, if etcd has authentication.
    pub credentials: Option<EtcdCredentials>,
    /// Certificates, for `https` endpoints.
    pub tls: Option<EtcdTls>,
    /// Put before every key, for example `/geminga/{cluster}/`. What lies outside is not touched.
    pub prefix: String,
    /// How long a request may take in all, failing over to other endpoints included.
    pub request_timeout: Duration,
    /// How long connecting to one endpoint may take, TLS included.
    pub connect_timeout: Duration,
}

/// A user of etcd.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdCredentials {
    /// The user's name.
    pub user: String,
    /// The password.
    pub password: String,
}

/// Certificates, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signed the members' certificates.
    pub ca_pem: Vec<u8>,
    /// Our own certificate, if etcd asks for one.
    pub identity: Option<EtcdIdentity>,
}

/// A client certificate with its private key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdIdentity {
    /// The certificate, with the chain to its issuer.
    pub cert_pem: Vec<u8>,
    /// The private key.
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for EtcdCredentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EtcdCredentials").field("user", &self.user).finish_non_exhaustive()
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = self.identity.is_some();
        formatter.debug_struct("EtcdTls").field("identity", &identity).finish_non_exhaustive()
    }
}

impl fmt::Debug for EtcdIdentity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EtcdIdentity").finish_non_exhaustive()
    }
}

/// A setting that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata setting {name}: {why}")]
pub struct EtcdConfigError {
    /// The setting, as it is called in files and on the command line.
    pub name: &'static str,
    /// What is wrong with it.
    pub why: String,
}

fn refuse(name: &'static str, why: impl Into<String>) -> Result<(), EtcdConfigError> {
    Err(EtcdConfigError { name, why: why.into() })
}

impl EtcdConfig {
    /// The defaults for a cluster: etcd on this machine, without authentication.
    #[must_use]
    pub fn new(cluster: &ClusterId) -> Self {
        Self {
            endpoints: vec!["http://localhost:2379".to_owned()],
            credentials: None,
            tls: None,
            prefix: keys::root(cluster),
            request_timeout: Duration::from_secs(3),
            connect_timeout: Duration::from_secs(1),
        }
    }

    /// Refuses what can't work, by the setting's name.
    ///
    /// # Errors
    /// [`EtcdConfigError`] for the first setting that makes no sense.
    pub fn validate(&self) -> Result<(), EtcdConfigError> {
        if self.endpoints.is_empty() {
            return refuse("endpoints", "no endpoint is given");
        }
        if self.endpoints.len() > MAX_ENDPOINTS {
            return refuse("endpoints", format!("more than {MAX_ENDPOINTS} endpoints"));
        }
        for endpoint in &self.endpoints {
            self.check_endpoint(endpoint)?;
        }
        if let Some(EtcdCredentials { user, password }) = &self.credentials {
            if user.is_empty() {
                return refuse("user", "a password is given, but no user");
            }
            if password.is_empty() {
                return refuse("password", format!("user {user:?} has no password"));
            }
        }
        if let Some(tls) = &self.tls {
            check_pem("ca_file", &tls.ca_pem, "CERTIFICATE")?;
            if let Some(identity) = &tls.identity {
                check_pem("cert_file", &identity.cert_pem, "CERTIFICATE")?;
                check_pem("key_file", &identity.key_pem, "PRIVATE KEY")?;
            }
        }
        if self.prefix.is_empty() || !self.prefix.ends_with('/') {
            return refuse("prefix", format!("{:?} does not end in '/'", self.prefix));
        }
        if self.prefix.len() > MAX_PREFIX_BYTES || self.prefix.chars().any(char::is_control) {
            let why = format!("longer than {MAX_PREFIX_BYTES} bytes, or with a control character");
            return refuse("prefix", why);
        }
        for (name, time) in
            [("request_timeout", self.request_timeout), ("connect_timeout", self.connect_timeout)]
        {
            if !(Duration::from_millis(10)..=Duration::from_secs(600)).contains(&time) {
                return refuse(name, format!("{time:?} is not between 10 ms and 600 s"));
            }
        }
        Ok(())
    }

    fn check_endpoint(&self, endpoint: &str) -> Result<(), EtcdConfigError> {
        // An endpoint is shown in errors and logs.
        if endpoint.contains('@') {
            return refuse("endpoints", "user and password don't belong into a URL");
        }
        let shape = || format!("{endpoint:?} is not http://host:port or https://host:port");
        let Ok(uri) = endpoint.parse::<Uri>() else { return refuse("endpoints", shape()) };
        let path = uri.path_and_query().map_or("", |path| path.as_str());
        if uri.host().is_none_or(str::is_empty) || !matches!(path, "" | "/") {
            return refuse("endpoints", shape());
        }
        match (uri.scheme_str(), &self.tls) {
            (Some("http"), None) | (Some("https"), Some(_)) => Ok(()),
            (Some("http"), Some(_)) => {
                let why = format!("certificates are given, but {endpoint} is not https");
                refuse("endpoints", why)
            }
            (Some("https"), None) => {
                refuse("ca_file", format!("{endpoint} needs the certificate of who signed etcd's"))
            }
            _ => refuse("endpoints", shape()),
        }
    }
}

fn check_pem(name: &'static str, pem: &[u8], label: &str) -> Result<(), EtcdConfigError> {
    let text = String::from_utf8_lossy(pem);
    let begins = |line: &str| line.starts_with("-----BEGIN ") && line.contains(label);
    if text.lines().any(begins) { Ok(()) } else { refuse(name, format!("it has no PEM {label}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> EtcdConfig {
        EtcdConfig::new(&ClusterId::new("test").expect("valid"))
    }

    fn refused(change: impl FnOnce(&mut EtcdConfig)) -> EtcdConfigError {
        let mut config = config();
        change(&mut config);
        config.validate().expect_err("it must be refused")
    }

    fn pem(label: &str) -> Vec<u8> {
        format!("-----BEGIN {label}-----\nAA==\n-----END {label}-----\n").into_bytes()
    }

    #[test]
    fn the_defaults_are_valid_and_keep_to_the_clusters_prefix() {
        let config = config();
        assert_eq!(config.validate(), Ok(()));
        assert_eq!(config.prefix, "/geminga/test/");
    }

    #[test]
    fn what_cannot_work_is_refused_by_the_settings_name() {
        let endpoints = |urls: &[&str]| {
            let urls = urls.iter().map(ToString::to_string).collect();
            refused(|config| config.endpoints = urls).name
        };
        let garbage = ["localhost:2379", "ftp://a:1", "http://", "http://a:1/path", "http://a b"];
        for wrong in garbage {
            assert_eq!(endpoints(&[wrong]), "endpoints", "{wrong}");
        }
        assert_eq!(endpoints(&[]), "endpoints");
        assert_eq!(endpoints(&["http://a:1"; MAX_ENDPOINTS + 1]), "endpoints");
        assert_eq!(endpoints(&["https://a:1"]), "ca_file");
        let tls = |ca: &str, identity| Some(EtcdTls { ca_pem: pem(ca), identity });
        let https = |config: &mut EtcdConfig| config.endpoints = vec!["https://a:1".to_owned()];
        assert_eq!(refused(|config| config.tls = tls("CERTIFICATE", None)).name, "endpoints");
        let swapped = refused(|config| {
            https(config);
            config.tls = tls("PRIVATE KEY", None);
        });
        assert_eq!(swapped.name, "ca_file");
        let identity = EtcdIdentity { cert_pem: pem("CERTIFICATE"), key_pem: pem("CERTIFICATE") };
        let no_key = refused(|config| {
            https(config);
            config.tls = tls("CERTIFICATE", Some(identity));
        });
        assert_eq!(no_key.name, "key_file");
        assert_eq!(refused(|config| config.prefix = String::new()).name, "prefix");
        assert_eq!(refused(|config| config.prefix = "a".repeat(200) + "/").name, "prefix");
        let never = Duration::ZERO;
        assert_eq!(refused(|config| config.request_timeout = never).name, "request_timeout");
        assert_eq!(refused(|config| config.connect_timeout = never).name, "connect_timeout");
    }

    #[test]
    fn no_secret_is_shown() {
        let credentials = |user: &str, password: &str| {
            let (user, password) = (user.to_owned(), password.to_owned());
            Some(EtcdCredentials { user, password })
        };
        let mut config = config();
        config.credentials = credentials("geminga", "hunter2");
        let key_pem = b"-----BEGIN PRIVATE KEY-----\nhunter2\n".to_vec();
        let identity = Some(EtcdIdentity { cert_pem: pem("CERTIFICATE"), key_pem });
        config.tls = Some(EtcdTls { ca_pem: pem("CERTIFICATE"), identity });
        let shown = format!("{config:?}");
        assert!(shown.contains("geminga") && !shown.contains("hunter2"), "{shown}");
        assert_eq!(refused(|config| config.credentials = credentials("", "x")).name, "user");
        assert_eq!(refused(|config| config.credentials = credentials("x", "")).name, "password");
        let url = refused(|config| config.endpoints = vec!["http://u:hunter2@a:1".to_owned()]);
        assert!(!url.to_string().contains("hunter2"), "{url}");
    }
}
