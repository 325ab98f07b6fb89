//! The flags' layer: which flag is which setting.

use std::path::PathBuf;

use toml::Value;

use crate::args::ClientArgs;
use crate::args::cluster::{BookieArgs, BrokerArgs, ClusterArgs, ClusterCommand, MetadataArgs};
use crate::args::cluster::{InitArgs, NodeArgs, RepairArgs};
use crate::args::standalone::StandaloneArgs;

/// Settings by name.
type Given = Vec<(&'static str, Value)>;

/// Flags that are settings.
pub trait AsSettings {
    /// Settings by name: those that were given.
    fn as_settings(&self) -> Given;
}

fn text(key: &'static str, text: Option<&String>) -> Option<(&'static str, Value)> {
    Some((key, Value::String(text?.clone())))
}

fn path(key: &'static str, path: Option<&PathBuf>) -> Option<(&'static str, Value)> {
    Some((key, Value::String(path?.display().to_string())))
}

fn port(key: &'static str, port: Option<u16>) -> Option<(&'static str, Value)> {
    Some((key, Value::Integer(port?.into())))
}

impl AsSettings for ClientArgs {
    fn as_settings(&self) -> Given {
        let given = [
            text("service_url", self.service_url.as_ref()),
            text("admin_url", self.admin_url.as_ref()),
            text("tenant", self.tenant.as_ref()),
            text("namespace", self.namespace.as_ref()),
        ];
        given.into_iter().flatten().collect()
    }
}

impl AsSettings for StandaloneArgs {
    fn as_settings(&self) -> Given {
        let given = [
            path("data_dir", self.data_dir.as_ref()),
            text("bind", self.bind.map(|bind| bind.to_string()).as_ref()),
            text("advertised_address", self.advertised_address.as_ref()),
            port("grpc_port", self.grpc_port),
            port("admin_port", self.admin_port),
            port("bookie_port", self.bookie_port),
        ];
        given.into_iter().flatten().collect()
    }
}

impl AsSettings for MetadataArgs {
    fn as_settings(&self) -> Given {
        let given = [
            text("metadata.endpoints", self.metadata_endpoints.as_ref()),
            text("metadata.user", self.metadata_user.as_ref()),
            path("metadata.password_file", self.metadata_password_file.as_ref()),
            text("metadata.wait", self.metadata_wait.as_ref()),
            text("cluster_name", self.cluster_name.as_ref()),
        ];
        given.into_iter().flatten().collect()
    }
}

impl AsSettings for NodeArgs {
    fn as_settings(&self) -> Given {
        let given = [
            text("bind", self.bind.map(|bind| bind.to_string()).as_ref()),
            text("advertised_address", self.advertised_address.as_ref()),
        ];
        given.into_iter().flatten().chain(self.metadata.as_settings()).collect()
    }
}

impl AsSettings for BrokerArgs {
    fn as_settings(&self) -> Given {
        let given = [
            text("broker_id", self.broker_id.as_ref()),
            port("grpc_port", self.grpc_port),
            port("admin_port", self.admin_port),
        ];
        given.into_iter().flatten().chain(self.node.as_settings()).collect()
    }
}

impl AsSettings for BookieArgs {
    fn as_settings(&self) -> Given {
        let given = [
            text("bookie_id", self.bookie_id.as_ref()),
            text("bookie.zone", self.zone.as_ref()),
            path("data_dir", self.data_dir.as_ref()),
            port("bookie_port", self.bookie_port),
            port("metrics_port", self.metrics_port),
        ];
        given.into_iter().flatten().chain(self.node.as_settings()).collect()
    }
}

impl AsSettings for RepairArgs {
    fn as_settings(&self) -> Given {
        self.metadata.as_settings()
    }
}

impl AsSettings for ClusterArgs {
    fn as_settings(&self) -> Given {
        let ClusterCommand::Init(InitArgs { metadata, .. }) = &self.command;
        metadata.as_settings()
    }
}
