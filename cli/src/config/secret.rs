//! [`Secret`]: a setting's value that is used and never shown: not by `--print-config`, not in an
//! error, not in a log.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::urls;

/// The settings whose value isn't shown.
const SECRETS: &[&str] = &["metadata.password"];

/// The settings that are lists of URLs, in which somebody may have written a password.
const URLS: &[&str] = &["service_url", "admin_url", "metadata.endpoints"];

/// Whether this value of a setting must not be shown in an error.
pub(super) fn may_hold_secret(key: &str, value: &toml::Value) -> bool {
    is_secret(key) || (URLS.contains(&key) && urls::names_a_user(&value.to_string()))
}

/// Whether a setting's value must not be shown.
pub(super) fn is_secret(key: &str) -> bool {
    SECRETS.contains(&key)
}

/// A text that isn't shown.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text, for who needs it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether it isn't set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(if self.0.is_empty() { "unset" } else { "set" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_says_only_whether_it_is_there() {
        let secret = Secret::from("hunter2".to_owned());
        assert_eq!(format!("{secret:?}"), "set");
        assert_eq!(format!("{:?}", Secret::default()), "unset");
        assert_eq!(secret.reveal(), "hunter2");
    }
}
