//! [`Layers`]: one value for each setting, with the layer it comes from. The defaults' own
//! serialized form is the list of what exists and of which kind it is, so that there is no second
//! list to forget.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::ConfigError;
use super::secret::may_hold_secret;
use super::settings::Settings;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The settings file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("default"),
            Self::File(path) => write!(out, "file {}", path.display()),
            Self::Environment(name) => write!(out, "environment variable {name}"),
            Self::Flag => out.write_str("command line"),
        }
    }
}

/// A setting's value and origin.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Set {
    pub value: Value,
    pub origin: Origin,
}

/// All settings by dotted name.
#[derive(Debug, Clone)]
pub(super) struct Layers {
    pub values: BTreeMap<String, Set>,
}

impl Layers {
    /// The defaults.
    pub fn new(defaults: &Settings) -> Self {
        let table = Table::try_from(defaults).expect("the settings are plain data");
        let mut leaves = Vec::new();
        flatten("", &table, &mut leaves);
        let set = |(key, value)| (key, Set { value, origin: Origin::Default });
        Self { values: leaves.into_iter().map(set).collect() }
    }

    /// Puts a file's settings over what is here.
    pub fn overlay_file(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
            path: path.to_owned(),
            why: syntax_error(&error, text),
        })?;
        let mut leaves = Vec::new();
        flatten("", &table, &mut leaves);
        for (key, value) in leaves {
            self.set(&key, value, Origin::File(path.to_owned()))?;
        }
        Ok(())
    }

    /// Sets one value. Its kind is checked when all layers are there.
    pub fn set(&mut self, key: &str, value: Value, origin: Origin) -> Result<(), ConfigError> {
        let Some(set) = self.values.get_mut(key) else {
            let suggestion = nearest(key, self.values.keys().map(String::as_str));
            return Err(ConfigError::Unknown { key: key.to_owned(), origin, suggestion });
        };
        *set = Set { value, origin };
        Ok(())
    }

    /// Sets one value from text, which is read as the default's kind.
    pub fn set_text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let invalid = |origin, why: &str| ConfigError::Invalid {
            key: key.to_owned(),
            value: format!("{text:?}"),
            origin,
            why: why.to_owned(),
        };
        let value = match self.values.get(key).map(|set| &set.value) {
            Some(Value::Boolean(_)) => match text {
                "true" | "on" | "1" => Value::Boolean(true),
                "false" | "off" | "0" => Value::Boolean(false),
                _ => return Err(invalid(origin, "it must be true or false")),
            },
            Some(Value::Integer(_)) => match text.parse() {
                Ok(number) => Value::Integer(number),
                Err(_) => return Err(invalid(origin, "it must be a whole number")),
            },
            _ => Value::String(text.to_owned()),
        };
        self.set(key, value, origin)
    }

    /// The settings, once all layers are there.
    pub fn settings(&self) -> Result<Settings, ConfigError> {
        // Each value is tried alone over the defaults first, so that an error names its setting.
        let defaults = Self::new(&Settings::default());
        for (key, set) in self.values.iter().filter(|(_, set)| set.origin != Origin::Default) {
            let mut alone = defaults.clone();
            alone.values.insert(key.clone(), set.clone());
            if let Err(error) = Settings::deserialize_table(alone.table()) {
                // The parser's words quote the value.
                let is_hidden = may_hold_secret(key, &set.value);
                let why = if is_hidden { "it must be a text" } else { error.as_str() };
                return Err(self.invalid(key, why));
            }
        }
        Settings::deserialize_table(self.table())
            .map_err(|why| ConfigError::Component { component: "command line", why })
    }

    /// The error that `key`'s value is wrong.
    pub fn invalid(&self, key: &str, why: &str) -> ConfigError {
        let set = self.values.get(key);
        let shown = |set: &Set| match may_hold_secret(key, &set.value) {
            true => "what it is set to".to_owned(),
            false => set.value.to_string(),
        };
        ConfigError::Invalid {
            key: key.to_owned(),
            value: set.map_or_else(String::new, shown),
            origin: set.map_or(Origin::Default, |set| set.origin.clone()),
            why: why.to_owned(),
        }
    }

    fn table(&self) -> Table {
        let mut root = Table::new();
        for (key, set) in &self.values {
            match key.split_once('.') {
                None => drop(root.insert(key.clone(), set.value.clone())),
                Some((section, name)) => {
                    let empty = || Value::Table(Table::new());
                    if let Value::Table(table) = root.entry(section).or_insert_with(empty) {
                        table.insert(name.to_owned(), set.value.clone());
                    }
                }
            }
        }
        root
    }
}

/// The parser's words with the line that they are about, unless that line may hold a secret.
fn syntax_error(error: &toml::de::Error, text: &str) -> String {
    let shown = error.to_string();
    if !shown.contains("password") && !shown.contains('@') {
        return shown.trim_end().to_owned();
    }
    let before = error.span().and_then(|span| text.get(..span.start));
    let line = before.map_or(0, |before| before.matches('\n').count()) + 1;
    format!("line {line}: {}", error.message())
}

fn flatten(prefix: &str, table: &Table, leaves: &mut Vec<(String, Value)>) {
    for (key, value) in table {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Table(inner) if !inner.is_empty() => flatten(&key, inner, leaves),
            _ => leaves.push((key, value.clone())),
        }
    }
}

/// The known name that is nearest to `key`, if one is near at all.
pub(super) fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    let last = |name: &'a str| name.rsplit('.').next().unwrap_or(name);
    let distance = |name: &'a str| {
        // A name given without its section, or in a wrong one, is near too.
        let bare = key.rsplit('.').next().unwrap_or(key);
        // So is one whose unit is missing: tail_cache for tail_cache_bytes.
        let begins = bare.len() >= 4 && last(name).starts_with(bare);
        let whole = if begins { 1 } else { 1 + edit_distance(bare, last(name)) };
        edit_distance(key, name).min(whole)
    };
    let best = known.map(|name| (distance(name), name)).min()?;
    (best.0 <= 1 + key.len() / 4).then(|| best.1.to_owned())
}

/// Levenshtein's distance, with a swap of neighbours as one step.
fn edit_distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for (at, row) in rows.iter_mut().enumerate() {
        row[0] = at;
    }
    for (at, cell) in rows[0].iter_mut().enumerate() {
        *cell = at;
    }
    for a in 1..=one.len() {
        for b in 1..=other.len() {
            let differs = usize::from(one[a - 1] != other[b - 1]);
            let mut best =
                (rows[a - 1][b - 1] + differs).min(rows[a - 1][b] + 1).min(rows[a][b - 1] + 1);
            if a > 1 && b > 1 && one[a - 1] == other[b - 2] && one[a - 2] == other[b - 1] {
                best = best.min(rows[a - 2][b - 2] + 1);
            }
            rows[a][b] = best;
        }
    }
    rows[one.len()][other.len()]
}
