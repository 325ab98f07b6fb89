//! Real text to send: the licences and documentation that a Debian machine carries, or this
//! repository's own words where there are none. Its lines are numbered, so that no two are the same
//! and none can take another's place unseen.

use std::path::{Path, PathBuf};

/// So many lines of real text, every one with its number and ended by `\n`.
///
/// # Panics
/// When there is no text at all.
#[must_use]
pub fn text(lines: usize) -> Vec<u8> {
    let mut source = Vec::new();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for root in [PathBuf::from("/usr/share/common-licenses"), repository.join("docs"), repository] {
        let mut files: Vec<PathBuf> = std::fs::read_dir(&root)
            .into_iter()
            .flatten()
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.is_file())
            .collect();
        files.sort();
        for file in files {
            source.extend(std::fs::read(file).unwrap_or_default());
        }
    }
    assert!(!source.is_empty(), "there is text in the repository at least");
    let text = source.strip_suffix(b"\n").unwrap_or(&source);
    let mut numbered = Vec::new();
    for (number, line) in text.split(|byte| *byte == b'\n').cycle().take(lines).enumerate() {
        numbered.extend(format!("{number:06} ").into_bytes());
        numbered.extend(line);
        numbered.push(b'\n');
    }
    numbered
}
