//! The ledger's settings. Built by the composition root, checked once, never re-read.

/// Largest write quorum: acknowledgement sets are bitmaps of this many bits.
pub const MAX_WRITE_QUORUM: u32 = 16;

/// Settings of a [`crate::store::LedgerStore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerStoreConfig {
    /// Bookies that each entry is sent to (Qw). The ensemble has the same size.
    pub write_quorum: u32,
    /// Durable answers after which an entry is confirmed (Qa).
    pub ack_quorum: u32,
    /// Unconfirmed bytes above which a ledger refuses appends. A net: callers keep their own,
    /// lower budget.
    pub max_pending_bytes_per_ledger: u64,
    /// Confirmed bytes that one bookie may still owe one ledger; above it, the bookie counts as
    /// failed for that ledger.
    pub max_lag_bytes_per_bookie: u64,
    /// A bookie that owes answers and gives none for so long counts as failed; a ledger without
    /// an ack quorum for so long fails (unless it only waits for disk space).
    pub append_timeout_ms: u64,
    /// After how long a read, a fence or a metadata request counts as unanswered.
    pub request_timeout_ms: u64,
    /// After how long without an answer to a read another bookie may be asked too: always if the
    /// bookie is suspect or answers nobody, and else one read in twenty.
    pub read_hedge_ms: u64,
    /// How long to wait before a failed bookie is tried again or replaced.
    pub retry_interval_ms: u64,
    /// Ledger ids that are taken from the metadata at a time.
    pub id_block: u32,
}

impl Default for LedgerStoreConfig {
    fn default() -> Self {
        Self {
            write_quorum: 3,
            ack_quorum: 2,
            max_pending_bytes_per_ledger: 1024 * 1024 * 1024,
            max_lag_bytes_per_bookie: 64 * 1024 * 1024,
            append_timeout_ms: 10_000,
            request_timeout_ms: 5_000,
            read_hedge_ms: 100,
            retry_interval_ms: 500,
            id_block: 1_000,
        }
    }
}

/// Why settings can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Quorums must be 1 ≤ Qa ≤ Qw ≤ [`MAX_WRITE_QUORUM`].
    #[error(
        "write_quorum {write_quorum} and ack_quorum {ack_quorum} don't fit: \
         1 <= ack_quorum <= write_quorum <= {MAX_WRITE_QUORUM} is needed"
    )]
    Quorum {
        /// What write_quorum is.
        write_quorum: u32,
        /// What ack_quorum is.
        ack_quorum: u32,
    },
    /// A setting must not be 0.
    #[error("{0} must not be 0")]
    Zero(&'static str),
    /// One time must not be longer than another.
    #[error("{shorter} must not be longer than {longer}")]
    Order {
        /// The setting that is too long.
        shorter: &'static str,
        /// The setting that limits it.
        longer: &'static str,
    },
    /// The store runs tasks, so it must be built inside an async runtime.
    #[error("a ledger store must be built inside a tokio runtime")]
    NoRuntime,
}

impl LedgerStoreConfig {
    /// Checks every setting.
    ///
    /// # Errors
    /// The first setting that can't be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (write_quorum, ack_quorum) = (self.write_quorum, self.ack_quorum);
        if ack_quorum < 1 || ack_quorum > write_quorum || write_quorum > MAX_WRITE_QUORUM {
            return Err(ConfigError::Quorum { write_quorum, ack_quorum });
        }
        for (value, name) in [
            (self.max_pending_bytes_per_ledger, "max_pending_bytes_per_ledger"),
            (self.max_lag_bytes_per_bookie, "max_lag_bytes_per_bookie"),
            (self.append_timeout_ms, "append_timeout_ms"),
            (self.request_timeout_ms, "request_timeout_ms"),
            (self.read_hedge_ms, "read_hedge_ms"),
            (self.retry_interval_ms, "retry_interval_ms"),
            (u64::from(self.id_block), "id_block"),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(name));
            }
        }
        if self.retry_interval_ms > self.append_timeout_ms {
            return Err(ConfigError::Order {
                shorter: "retry_interval_ms",
                longer: "append_timeout_ms",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_that_no_ensemble_can_have_are_refused() {
        assert_eq!(LedgerStoreConfig::default().validate(), Ok(()));
        for (write_quorum, ack_quorum) in [(0, 0), (1, 0), (2, 3), (17, 2)] {
            let config =
                LedgerStoreConfig { write_quorum, ack_quorum, ..LedgerStoreConfig::default() };
            assert_eq!(config.validate(), Err(ConfigError::Quorum { write_quorum, ack_quorum }));
        }
    }

    #[test]
    fn a_time_of_zero_is_refused_by_name() {
        let config = LedgerStoreConfig { append_timeout_ms: 0, ..LedgerStoreConfig::default() };
        assert_eq!(config.validate(), Err(ConfigError::Zero("append_timeout_ms")));
    }
}
