//! [`AdminConfig`]: limits of the admin port. They bound what a client that floods, stalls or
//! sends nonsense can hold on to.

use std::time::Duration;

use crate::core::config::ConfigError;

/// Limits of the admin port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Connections open at a time; more are answered 503 and closed.
    pub max_connections: usize,
    /// Requests being worked on at a time, those of clients that have gone away included; more
    /// are answered 503.
    pub max_requests: usize,
    /// Largest head of a request (request line and headers).
    pub max_head_bytes: usize,
    /// Largest body of a request.
    pub max_body_bytes: usize,
    /// How long a request's head may take to arrive, and how long a connection may idle.
    pub head_timeout: Duration,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long a client waits for an answer before it is told that the work goes on.
    pub request_timeout: Duration,
    /// How long a shutdown waits for answers that are being sent.
    pub shutdown_grace: Duration,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_requests: 256,
            max_head_bytes: 16 << 10,
            max_body_bytes: 64 << 10,
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(60),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

impl AdminConfig {
    /// Checks that the limits can work.
    ///
    /// # Errors
    /// [`ConfigError`] names the first one that can't.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let counts = [
            ("max_connections", self.max_connections, 1),
            ("max_requests", self.max_requests, 1),
            // hyper panics below its own smallest buffer.
            ("max_head_bytes", self.max_head_bytes, 8 << 10),
            ("max_body_bytes", self.max_body_bytes, 1 << 10),
        ];
        for (setting, value, least) in counts {
            if value < least {
                let why = if least == 1 { "must be at least 1" } else { "is too small to work" };
                return Err(ConfigError { setting, value: value.to_string(), why });
            }
        }
        let times = [
            ("head_timeout", self.head_timeout),
            ("body_timeout", self.body_timeout),
            ("request_timeout", self.request_timeout),
        ];
        for (setting, value) in times {
            if value.is_zero() {
                let why = "must not be 0";
                return Err(ConfigError { setting, value: format!("{value:?}"), why });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_would_refuse_everything_are_refused_by_name() {
        assert_eq!(AdminConfig::default().validate(), Ok(()));
        let refused = |change: fn(&mut AdminConfig)| {
            let mut config = AdminConfig::default();
            change(&mut config);
            config.validate().expect_err("must be refused").setting
        };
        assert_eq!(refused(|c| c.max_connections = 0), "max_connections");
        assert_eq!(refused(|c| c.max_requests = 0), "max_requests");
        assert_eq!(refused(|c| c.max_head_bytes = 100), "max_head_bytes");
        assert_eq!(refused(|c| c.max_body_bytes = 0), "max_body_bytes");
        assert_eq!(refused(|c| c.head_timeout = Duration::ZERO), "head_timeout");
        assert_eq!(refused(|c| c.request_timeout = Duration::ZERO), "request_timeout");
    }
}
