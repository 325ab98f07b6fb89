//! Real text to send: the licences and documentation that a Debian machine carries, or this
//! repository's own words where there are none.

use std::path::{Path, PathBuf};

/// At least `lines` lines of real text, every one ended by `\n`.
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
    assert!(source.contains(&b'\n'), "there is text in the repository at least");
    if source.last() != Some(&b'\n') {
        source.push(b'\n');
    }
    let in_source = source.iter().filter(|byte| **byte == b'\n').count();
    source.repeat(lines.div_ceil(in_source))
}
