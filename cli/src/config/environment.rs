//! The environment's layer: `GEMINGA_` and a setting's name, with `_` for `.`.
//!
//! A variable that starts with `GEMINGA_` and is no setting is an error, since it is a typo; but
//! for those that Kubernetes puts there for a service called `geminga` or `geminga-…`, which
//! would else keep every pod of the namespace from starting.

use super::ConfigError;
use super::layers::{Layers, Origin, nearest};

const PREFIX: &str = "GEMINGA_";
/// Not a setting: names the file that settings are in.
const CONFIG: &str = "GEMINGA_CONFIG";
/// Not a setting: names the binary to scripts, from whose shells this one may be run.
const BINARY: &str = "GEMINGA_BIN";

/// The variable of a setting.
pub(super) fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.replace('.', "_").to_ascii_uppercase())
}

/// Puts the environment's settings over what is there.
pub(super) fn overlay(
    layers: &mut Layers,
    environment: &[(String, String)],
) -> Result<(), ConfigError> {
    let known: Vec<(String, String)> =
        layers.values.keys().map(|key| (variable(key), key.clone())).collect();
    for (name, value) in environment {
        let ours = name.starts_with(PREFIX) && name != CONFIG && name != BINARY;
        if !ours || is_from_kubernetes(name, value) {
            continue;
        }
        let origin = Origin::Environment(name.clone());
        match known.iter().find(|(variable, _)| variable == name) {
            Some((_, key)) => layers.set_text(key, value, origin)?,
            None => {
                let names = known.iter().map(|(variable, _)| variable.as_str());
                let suggestion = nearest(name, names.chain([CONFIG]));
                let (key, origin) = (name.clone(), Origin::Environment(name.clone()));
                return Err(ConfigError::Unknown { key, origin, suggestion });
            }
        }
    }
    Ok(())
}

/// `…_SERVICE_HOST`, `…_SERVICE_PORT[_NAME]`, `…_PORT=tcp://…` and `…_PORT_6660_TCP[_…]`.
fn is_from_kubernetes(name: &str, value: &str) -> bool {
    let numbered = name.split("_PORT_").skip(1).any(|rest| {
        let mut parts = rest.split('_');
        parts.next().is_some_and(|port| port.parse::<u16>().is_ok())
            && parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
    });
    numbered
        || name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || (name.ends_with("_PORT") && value.contains("://"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_adds_for_a_service_is_told_from_settings() {
        for (name, value) in [
            ("GEMINGA_SERVICE_HOST", "10.0.0.1"),
            ("GEMINGA_SERVICE_PORT", "6660"),
            ("GEMINGA_SERVICE_PORT_GRPC", "6660"),
            ("GEMINGA_PORT", "tcp://10.0.0.1:6660"),
            ("GEMINGA_GRPC_PORT", "tcp://10.0.0.1:6660"),
            ("GEMINGA_PORT_6660_TCP_ADDR", "10.0.0.1"),
        ] {
            assert!(is_from_kubernetes(name, value), "{name}");
        }
        for (name, value) in [("GEMINGA_GRPC_PORT", "6660"), ("GEMINGA_SERVICE_URL", "http://a")] {
            assert!(!is_from_kubernetes(name, value), "{name}");
        }
    }
}
