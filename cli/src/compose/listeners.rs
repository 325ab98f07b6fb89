//! [`Port`]: the ports of a process, bound before anything else is touched, so that a port in
//! use is told at once; and the names under which others reach them.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
use geminga_proto::id::BrokerId;
use tokio::net::TcpListener;

use crate::config::Settings;

/// A port that is open.
#[derive(Debug)]
pub struct Port {
    /// Accepts connections.
    pub listener: TcpListener,
    /// Where others reach it, as `host:port`.
    pub advertised: String,
}

impl Port {
    /// The address as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.advertised)
    }

    /// Where this process is, as no other can be while it has the port: the start of the machine's
    /// kernel, the network within it, and the address there. `None` if the system doesn't say.
    ///
    /// What others are told, and the machine's name, can be those of several processes: of copies
    /// of one container, or of those behind one address.
    #[must_use]
    pub fn place(&self) -> Option<String> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let network = std::fs::read_link("/proc/self/ns/net").ok()?;
        let address = self.listener.local_addr().ok()?;
        Some(format!("{} {} {address}", boot.trim(), network.display()))
    }
}

/// What a port is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The messaging API.
    Messaging,
    /// The admin API and metrics.
    Admin,
    /// The storage node.
    Storage,
    /// A bookie's metrics and probes.
    Metrics,
}

impl Service {
    /// Its port, what it is called, and which flag changes it.
    fn of(self, settings: &Settings) -> (u16, &'static str, &'static str) {
        match self {
            Self::Messaging => (settings.grpc_port, "messaging API", "--grpc-port"),
            Self::Admin => (settings.admin_port, "admin API", "--admin-port"),
            Self::Storage => (settings.bookie_port, "storage node", "--bookie-port"),
            Self::Metrics => (settings.metrics_port, "metrics", "--metrics-port"),
        }
    }
}

/// Opens the port that the settings name.
///
/// # Errors
/// Which port can't be opened, why, and which flag changes it.
pub async fn bind(settings: &Settings, service: Service) -> anyhow::Result<Port> {
    let (port, what, flag) = service.of(settings);
    let address = SocketAddr::new(settings.bind, port);
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!(
            "can't listen on {address} ({what}); if another process uses that port, stop it or \
             choose another one with {flag}"
        )
    })?;
    let port = listener.local_addr().context("a bound port has an address")?.port();
    let host = host(&settings.advertised_address, settings.bind);
    Ok(Port { listener, advertised: format!("{host}:{port}") })
}

/// A node's name as the settings have it; "auto" is this machine's name and the port, which no
/// other node of the machine has.
///
/// # Errors
/// The machine's name can't be part of one.
pub fn node_name(setting: &str, port: &Port, key: &str) -> anyhow::Result<String> {
    if setting != "auto" {
        return Ok(setting.to_owned());
    }
    let number = port.listener.local_addr().context("a bound port has an address")?.port();
    let machine = machine_name();
    let name = format!("{machine}-{number}");
    BrokerId::new(&name).map(|_| name).map_err(|_| {
        anyhow::anyhow!(
            "this machine's name {machine:?} can't be part of a node's name (64 letters, digits, \
             '-', '_' or '.' in all); set {key}"
        )
    })
}

/// What this machine is called.
pub(super) fn machine_name() -> String {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy();
    if name.is_empty() { "localhost".to_owned() } else { name.into_owned() }
}

/// The host that others are told to connect to.
fn host(setting: &str, bind: IpAddr) -> String {
    if setting != "auto" {
        return setting.to_owned();
    }
    if bind.is_unspecified() {
        // A wildcard is no address that anybody could connect to.
        return machine_name();
    }
    match bind {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn the_advertised_host_is_one_that_can_be_connected_to() {
        assert_eq!(host("example.org", Ipv4Addr::UNSPECIFIED.into()), "example.org");
        assert_eq!(host("auto", Ipv4Addr::LOCALHOST.into()), "127.0.0.1");
        assert_eq!(host("auto", Ipv6Addr::LOCALHOST.into()), "[::1]");
        let wildcard = host("auto", Ipv4Addr::UNSPECIFIED.into());
        assert!(!wildcard.is_empty() && wildcard != "0.0.0.0");
    }

    #[tokio::test]
    async fn port_0_is_a_free_port_and_a_taken_one_is_named() {
        let mut settings = Settings { admin_port: 0, ..Settings::default() };
        let open = bind(&settings, Service::Admin).await.expect("ports are free");
        let port = open.listener.local_addr().expect("bound").port();
        assert_eq!(open.advertised, format!("127.0.0.1:{port}"));
        settings.admin_port = port;
        let error = format!("{:#}", bind(&settings, Service::Admin).await.expect_err("taken"));
        assert!(error.contains(&port.to_string()) && error.contains("--admin-port"), "{error}");
    }

    #[tokio::test]
    async fn a_place_is_the_same_for_whoever_has_the_port_next_and_no_other_ports() {
        let settings = Settings { admin_port: 0, ..Settings::default() };
        let open = bind(&settings, Service::Admin).await.expect("ports are free");
        let other = bind(&settings, Service::Admin).await.expect("ports are free");
        let place = open.place();
        if cfg!(target_os = "linux") {
            assert!(place.as_ref().is_some_and(|place| place.contains("net:[")), "{place:?}");
            assert_ne!(place, other.place());
        }
        drop(open);
        for _ in 0..10 {
            let open = bind(&settings, Service::Admin).await.expect("ports are free");
            let place = open.place();
            let admin_port = open.listener.local_addr().expect("bound").port();
            drop(open);
            let next = Settings { admin_port, ..settings.clone() };
            // Somebody else may have been faster.
            if let Ok(next) = bind(&next, Service::Admin).await {
                assert_eq!(next.place(), place);
                return;
            }
        }
        panic!("no port could be had again");
    }

    #[tokio::test]
    async fn a_node_without_a_name_is_called_after_its_machine_and_port() {
        let settings = Settings { bookie_port: 0, ..Settings::default() };
        let open = bind(&settings, Service::Storage).await.expect("ports are free");
        let port = open.listener.local_addr().expect("bound").port();
        let name = node_name("auto", &open, "bookie_id").expect("a usable name");
        assert_eq!(name, format!("{}-{port}", machine_name()));
        assert_eq!(node_name("b1", &open, "bookie_id").expect("as it is"), "b1");
    }
}
