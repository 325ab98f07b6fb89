//! Checks of the resolved settings: what no component checks, and what only a cluster's processes
//! use, so that a mistake is told before they start.

use std::path::Path;
use std::time::Duration;

use geminga_proto::id::BrokerId;

use super::layers::Layers;
use super::settings::Settings;
use super::units::Span;
use super::{ConfigError, urls};

/// Looking at all ledgers more often than so would be all that etcd does.
const SHORT_SCAN: Duration = Duration::from_millis(100);

impl Settings {
    /// Checks what no component checks.
    pub(super) fn validate(&self, layers: &Layers) -> Result<(), ConfigError> {
        for (key, urls) in [("service_url", &self.service_url), ("admin_url", &self.admin_url)] {
            if let Err(why) = urls::parse_list(urls, &["http"]) {
                return Err(layers.invalid(key, &why));
            }
        }
        self.validate_cluster(layers)?;
        let ports = [
            ("grpc_port", self.grpc_port),
            ("admin_port", self.admin_port),
            ("bookie_port", self.bookie_port),
            ("metrics_port", self.metrics_port),
        ];
        for (at, (key, port)) in ports.iter().enumerate() {
            if let Some((other, _)) = ports[..at].iter().find(|(_, p)| p == port && *port != 0) {
                return Err(layers.invalid(key, &format!("{other} is the same port")));
            }
        }
        let host = &self.advertised_address;
        if host.is_empty() || host.contains(['/', ' ']) || host.contains("://") {
            let why = "it must be a host name or address without a port";
            return Err(layers.invalid("advertised_address", why));
        }
        if self.worker_threads > 1_024 {
            return Err(layers.invalid("worker_threads", "it must be at most 1024"));
        }
        Ok(())
    }

    /// Checks what only a cluster's processes use, so that a mistake is told before they start.
    fn validate_cluster(&self, layers: &Layers) -> Result<(), ConfigError> {
        let refuse = |key: &str, why: &str| Err(layers.invalid(key, why));
        let names = [
            ("cluster_name", &self.cluster_name),
            ("broker_id", &self.broker_id),
            ("bookie_id", &self.bookie_id),
        ];
        for (key, name) in names {
            // All names are made of the same characters.
            if BrokerId::new(name).is_err() {
                return refuse(key, "use 1 to 64 letters, digits, '-', '_' or '.'");
            }
        }
        let from = &self.metadata;
        let secure = match urls::parse_list(&from.endpoints, &["http", "https"]) {
            Ok(urls) => urls.iter().any(|url| url.starts_with("https://")),
            Err(why) => return refuse("metadata.endpoints", &why),
        };
        let named = |path: &Path| !path.as_os_str().is_empty();
        if !from.password.is_empty() && named(&from.password_file) {
            return refuse(
                "metadata.password_file",
                "metadata.password is set too; use one of them",
            );
        }
        let has_password = !from.password.is_empty() || named(&from.password_file);
        if from.user.is_empty() && has_password {
            return refuse("metadata.user", "there is a password, so it must be set");
        }
        if !from.user.is_empty() && !has_password {
            return refuse("metadata.user", "it needs metadata.password or metadata.password_file");
        }
        let files = [("ca", &from.ca_file), ("cert", &from.cert_file), ("key", &from.key_file)];
        for (key, path) in files {
            if named(path) && !secure {
                let why = "it is for TLS, but no URL of metadata.endpoints begins with https://";
                return refuse(&format!("metadata.{key}_file"), why);
            }
        }
        if secure && !named(&from.ca_file) {
            return refuse("metadata.ca_file", "https:// in metadata.endpoints needs it");
        }
        match (named(&from.cert_file), named(&from.key_file)) {
            (true, false) => refuse("metadata.key_file", "metadata.cert_file needs it"),
            (false, true) => refuse("metadata.cert_file", "metadata.key_file needs it"),
            _ => self.validate_times(layers),
        }
    }

    /// The least that can work at all.
    fn validate_times(&self, layers: &Layers) -> Result<(), ConfigError> {
        let least = |key: &str, span: Span, least: Span| match span < least {
            true => Err(layers.invalid(key, &format!("it must be at least {least}"))),
            false => Ok(()),
        };
        let short = Span(Duration::from_millis(10));
        least("metadata.connect_timeout", self.metadata.connect_timeout, short)?;
        least("metadata.request_timeout", self.metadata.request_timeout, short)?;
        // What etcd grants comes in whole seconds.
        let second = Span(Duration::from_secs(1));
        least("repair.lease_ttl", self.repair.lease_ttl, second)?;
        least("repair.scan_interval", self.repair.scan_interval, Span(SHORT_SCAN))?;
        least("bookie.lease_ttl", self.bookie.lease_ttl, second)
    }
}
