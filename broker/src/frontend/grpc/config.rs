//! [`GrpcConfig`]: the front-end's settings, resolved by the command line.

use std::time::Duration;

/// Largest HTTP/2 frame taken.
pub(super) const FRAME_BYTES: u32 = 1024 * 1024;
/// Above the largest entry, a message may have other frames before it and its own fields.
pub(super) const DECODE_SLACK_BYTES: usize = 2 * 1024 * 1024;

/// Why settings are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} = {value}: {why}")]
pub struct GrpcConfigError {
    /// The setting.
    pub setting: &'static str,
    /// Its value.
    pub value: String,
    /// What is wrong and what to do.
    pub why: &'static str,
}

/// The gRPC front-end's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcConfig {
    /// Connections at a time; further ones are closed at once.
    pub max_connections: usize,
    /// Streams and calls of one connection at a time.
    pub max_streams_per_connection: u32,
    /// Producers of one stream.
    pub max_producers_per_stream: usize,
    /// Consumers of one stream.
    pub max_consumers_per_stream: usize,
    /// Bytes that a stream may have sent and the broker not taken; a connection may have twice as
    /// many. They lie outside the broker's memory budget.
    pub window_bytes: u32,
    /// Bytes of answers that wait to be sent on a stream, above which its requests aren't read.
    pub response_queue_bytes: usize,
    /// Byte credit that one consumer may have granted and not been sent.
    pub max_consumer_credit_bytes: u64,
    /// A connection without a sign of life for so long is asked for one, and closed after as long
    /// again.
    pub keep_alive: Duration,
    /// A connection must begin to speak HTTP/2 within this time.
    pub preface_timeout: Duration,
    /// A stream that takes nothing off its queue for so long is closed, once others wait for the
    /// memory that it holds.
    pub stall_timeout: Duration,
    /// What is under way at shutdown has so long to get its answers.
    pub shutdown_grace: Duration,
}

impl Default for GrpcConfig {
    fn default() -> Self {
        Self {
            max_connections: 10_000,
            max_streams_per_connection: 64,
            max_producers_per_stream: 20_000,
            max_consumers_per_stream: 20_000,
            window_bytes: 4 << 20,
            response_queue_bytes: 1 << 20,
            max_consumer_credit_bytes: 1 << 30,
            keep_alive: Duration::from_secs(20),
            preface_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

impl GrpcConfig {
    /// Checks that the settings can work.
    ///
    /// # Errors
    /// [`GrpcConfigError`] names the first setting that can't.
    pub fn validate(&self) -> Result<(), GrpcConfigError> {
        let at_least_one = [
            ("max_connections", self.max_connections as u64),
            ("max_streams_per_connection", u64::from(self.max_streams_per_connection)),
            ("max_producers_per_stream", self.max_producers_per_stream as u64),
            ("max_consumers_per_stream", self.max_consumers_per_stream as u64),
            ("response_queue_bytes", self.response_queue_bytes as u64),
            ("max_consumer_credit_bytes", self.max_consumer_credit_bytes),
        ];
        for (setting, value) in at_least_one {
            if value == 0 {
                let value = value.to_string();
                return Err(GrpcConfigError { setting, value, why: "must be at least 1" });
            }
        }
        if !(65_535..=1 << 30).contains(&self.window_bytes) {
            let value = self.window_bytes.to_string();
            let why = "must be between 64 KiB and 1 GiB";
            return Err(GrpcConfigError { setting: "window_bytes", value, why });
        }
        let times = [
            ("keep_alive", self.keep_alive),
            ("preface_timeout", self.preface_timeout),
            ("stall_timeout", self.stall_timeout),
        ];
        for (setting, time) in times {
            if time < Duration::from_millis(10) {
                let value = format!("{time:?}");
                return Err(GrpcConfigError { setting, value, why: "must be at least 10ms" });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_what_cannot_work_is_named() {
        assert_eq!(GrpcConfig::default().validate(), Ok(()));
        let refused = |config: GrpcConfig| config.validate().map_err(|error| error.setting);
        let config = GrpcConfig { max_connections: 0, ..GrpcConfig::default() };
        assert_eq!(refused(config), Err("max_connections"));
        let config = GrpcConfig { window_bytes: 1000, ..GrpcConfig::default() };
        assert_eq!(refused(config), Err("window_bytes"));
        let config = GrpcConfig { keep_alive: Duration::ZERO, ..GrpcConfig::default() };
        assert_eq!(refused(config), Err("keep_alive"));
    }
}
