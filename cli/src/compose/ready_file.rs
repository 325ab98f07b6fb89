//! The ready file: tells whoever started the process where it serves. It appears whole, by a
//! rename, and only once everything serves.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Value, json};

/// Removes what a former run has left, so that nobody takes it for this run's.
///
/// # Errors
/// The file is there and can't be removed.
pub fn clear(path: &Path) -> anyhow::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error)
            .with_context(|| format!("can't remove the old ready file {}", path.display())),
        _ => Ok(()),
    }
}

/// Writes the addresses.
///
/// # Errors
/// The file can't be written.
pub fn write(path: &Path, addresses: &Addresses) -> anyhow::Result<()> {
    let named = [
        ("grpc", &addresses.grpc),
        ("admin", &addresses.admin),
        ("bookie", &addresses.bookie),
        ("metrics", &addresses.metrics),
    ];
    let open = named.iter().filter_map(|(name, address)| Some((*name, address.as_ref()?)));
    let text: Value = open.map(|(name, address)| (name.to_owned(), json!(address))).collect();
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let aside = PathBuf::from(aside);
    std::fs::write(&aside, format!("{text}\n"))
        .and_then(|()| std::fs::rename(&aside, path))
        .with_context(|| format!("can't write the ready file {}", path.display()))
}

/// Where a process is reached, as `host:port`, by the ports that it has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The messaging API.
    pub grpc: Option<String>,
    /// The admin API.
    pub admin: Option<String>,
    /// The storage node.
    pub bookie: Option<String>,
    /// A storage node's metrics.
    pub metrics: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_file_replaces_an_old_one_and_leaves_nothing_else() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let path = home.path().join("ready.json");
        clear(&path).expect("there is none");
        std::fs::write(&path, "old").expect("writes");
        clear(&path).expect("removed");
        assert!(!path.exists());
        let text = |name: &str| Some(format!("{name}:1"));
        let addresses = Addresses { grpc: text("g"), admin: text("a"), ..Addresses::default() };
        write(&path, &addresses).expect("written");
        let read = std::fs::read(&path).expect("there");
        let read: serde_json::Value = serde_json::from_slice(&read).expect("JSON");
        assert_eq!(read, json!({ "grpc": "g:1", "admin": "a:1" }));
        assert_eq!(std::fs::read_dir(home.path()).expect("there").count(), 1);
        assert!(write(&home.path().join("no/such/dir"), &addresses).is_err());
    }
}
