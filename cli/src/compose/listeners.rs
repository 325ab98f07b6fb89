//! [`Listeners`]: the ports of a process, bound before anything else is touched, so that a port in
//! use is told at once; and the names under which others reach them.

use std::net::{IpAddr, SocketAddr};

use anyhow::Context;
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
}

/// All ports of a standalone.
#[derive(Debug)]
pub struct Listeners {
    /// The messaging API.
    pub grpc: Port,
    /// The admin API and metrics.
    pub admin: Port,
    /// The storage node.
    pub bookie: Port,
}

impl Listeners {
    /// Opens the ports that the settings name.
    ///
    /// # Errors
    /// Which port can't be opened, why, and which flag changes it.
    pub async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let host = host(&settings.advertised_address, settings.bind);
        let open = async |port, what, flag| {
            let address = SocketAddr::new(settings.bind, port);
            let listener = TcpListener::bind(address).await.with_context(|| {
                format!(
                    "can't listen on {address} ({what}); if another process uses that port, stop \
                     it or choose another one with {flag}"
                )
            })?;
            let port = listener.local_addr().context("a bound port has an address")?.port();
            anyhow::Ok(Port { listener, advertised: format!("{host}:{port}") })
        };
        Ok(Self {
            grpc: open(settings.grpc_port, "messaging API", "--grpc-port").await?,
            admin: open(settings.admin_port, "admin API", "--admin-port").await?,
            bookie: open(settings.bookie_port, "storage node", "--bookie-port").await?,
        })
    }
}

/// The host that others are told to connect to.
fn host(setting: &str, bind: IpAddr) -> String {
    if setting != "auto" {
        return setting.to_owned();
    }
    if bind.is_unspecified() {
        // A wildcard is no address that anybody could connect to.
        let name = rustix::system::uname();
        let name = name.nodename().to_string_lossy();
        return if name.is_empty() { "localhost".to_owned() } else { name.into_owned() };
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
        let mut settings =
            Settings { grpc_port: 0, admin_port: 0, bookie_port: 0, ..Settings::default() };
        let open = Listeners::bind(&settings).await.expect("ports are free");
        let port = open.admin.listener.local_addr().expect("bound").port();
        assert_eq!(open.admin.advertised, format!("127.0.0.1:{port}"));
        settings.admin_port = port;
        let error = format!("{:#}", Listeners::bind(&settings).await.expect_err("taken"));
        assert!(error.contains(&port.to_string()) && error.contains("--admin-port"), "{error}");
    }
}
