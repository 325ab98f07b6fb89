//! Resolved settings: defaults < file < environment < flags, validated, each with its origin.
//!
//! This is the only room of the workspace that reads files of settings and the environment.
//! What is resolved here goes to the components as their own config structs ([`components`]), which
//! validate themselves.

use std::path::{Path, PathBuf};

use crate::args::GlobalArgs;

pub mod components;
mod environment;
mod flags;
mod layers;
mod print;
mod secret;
mod settings;
pub mod units;
pub mod urls;
mod validate;

pub use components::Deployment;
pub use flags::AsSettings;
pub use layers::Origin;
pub use settings::{Settings, SyncModeSetting};

use layers::Layers;

/// Why settings can't be used. The exit code is 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A file of settings, or one that a setting names, can't be read.
    #[error("can't read the file {}: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The file is not TOML.
    #[error("the settings file {} is not valid TOML: {why}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The parser's words, with line and column.
        why: String,
    },
    /// There is no such setting.
    #[error("unknown setting {key:?} in {origin}{}", hint(suggestion.as_deref()))]
    Unknown {
        /// As it was written.
        key: String,
        /// Where.
        origin: Origin,
        /// The nearest that exists.
        suggestion: Option<String>,
    },
    /// A value that the setting can't have.
    #[error("setting {key} can't be {value} ({origin}): {why}")]
    Invalid {
        /// The setting.
        key: String,
        /// Its value.
        value: String,
        /// Where it comes from.
        origin: Origin,
        /// What is wrong.
        why: String,
    },
    /// A component refuses its settings.
    #[error("the settings of the {component} can't work: {why}")]
    Component {
        /// broker, bookie, …
        component: &'static str,
        /// Its words, with the setting's name.
        why: String,
    },
}

fn hint(suggestion: Option<&str>) -> String {
    match suggestion {
        Some(name) => format!("; did you mean {name:?}?"),
        None => "; --print-config shows all settings".to_owned(),
    }
}

/// Settings with where each comes from.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The values.
    pub settings: Settings,
    layers: Layers,
}

impl Resolved {
    /// All settings as a TOML file, with the origin of each that is not the default.
    #[must_use]
    pub fn print(&self) -> String {
        print::print(&self.layers)
    }
}

/// Resolves the settings of one run. `flags` are settings by name.
///
/// # Errors
/// The first thing that is wrong, with its name and origin.
pub fn resolve(
    global: &GlobalArgs,
    flags: &[(&'static str, toml::Value)],
    environment: &[(String, String)],
) -> Result<Resolved, ConfigError> {
    let mut layers = Layers::new(&Settings::default());
    let from_environment =
        || environment.iter().find(|(name, _)| name == "GEMINGA_CONFIG").map(|(_, file)| file);
    let file = global.config.clone().or_else(|| from_environment().map(PathBuf::from));
    if let Some(path) = file {
        layers.overlay_file(&path, &read(&path)?)?;
    }
    environment::overlay(&mut layers, environment)?;
    if let Some(filter) = &global.log {
        layers.set("log", toml::Value::String(filter.clone()), Origin::Flag)?;
    }
    for (key, value) in flags {
        layers.set(key, value.clone(), Origin::Flag)?;
    }
    for text in &global.set {
        let (key, value) = text.split_once('=').ok_or_else(|| ConfigError::Invalid {
            key: "--set".to_owned(),
            value: format!("{text:?}"),
            origin: Origin::Flag,
            why: "write it as key=value".to_owned(),
        })?;
        layers.set_text(key.trim(), value.trim(), Origin::Flag)?;
    }
    let settings = layers.settings()?;
    settings.validate(&layers)?;
    Ok(Resolved { settings, layers })
}

/// The process's environment, as far as it is text and ours.
#[must_use]
pub fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with("GEMINGA_"))?;
            // A value that isn't text can't be a setting's; it is shown as far as it can be.
            Some((name, value.to_string_lossy().into_owned()))
        })
        .collect()
}

fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Unreadable { path: path.to_owned(), why: error.to_string() })
}

#[cfg(test)]
mod tests;
