//! How the process ends: exit codes, and a failure with the code it ends with. The codes are part
//! of the command line's contract (`geminga --help` lists them).

use std::process::ExitCode;

use geminga_client::ClientError;

/// Exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything that was asked for is done.
    Done,
    /// It failed.
    Failure,
    /// The command line or a setting is wrong; nothing was started.
    Usage,
    /// No progress within the timeout.
    Timeout,
    /// What was asked about is there, and not well.
    Degraded,
    /// Ctrl-C.
    Interrupted,
    /// A second SIGTERM, while a server was closing.
    Terminated,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Timeout => 3,
            Exit::Degraded => 4,
            Exit::Interrupted => 130,
            Exit::Terminated => 143,
        })
    }
}

/// Why a command ends otherwise than well.
#[derive(Debug)]
pub struct Failed {
    /// With which code.
    pub exit: Exit,
    /// What failed, why, and what to do.
    pub error: anyhow::Error,
}

/// What a command answers.
pub type Outcome = Result<(), Failed>;

impl<E: Into<anyhow::Error>> From<E> for Failed {
    fn from(error: E) -> Self {
        let error = error.into();
        let usage = error.downcast_ref::<crate::config::ConfigError>().is_some()
            || matches!(
                error.downcast_ref::<ClientError>(),
                Some(ClientError::Name(_) | ClientError::Config { .. })
            );
        Self { exit: if usage { Exit::Usage } else { Exit::Failure }, error }
    }
}

impl Failed {
    /// Wrong use of the command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, error: anyhow::anyhow!(message.into()) }
    }

    /// No progress.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self { exit: Exit::Timeout, error: anyhow::anyhow!(message.into()) }
    }

    /// Something is degraded; what it is has been shown.
    pub fn degraded(message: impl Into<String>) -> Self {
        Self { exit: Exit::Degraded, error: anyhow::anyhow!(message.into()) }
    }

    /// Ctrl-C.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { exit: Exit::Interrupted, error: anyhow::anyhow!(message.into()) }
    }

    /// A second SIGTERM.
    pub fn terminated(message: impl Into<String>) -> Self {
        Self { exit: Exit::Terminated, error: anyhow::anyhow!(message.into()) }
    }
}
