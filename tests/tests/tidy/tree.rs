//! The source tree as the rules see it: Rust sources, scanned, beside manifests and `.proto`s.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::scan::Scanned;

/// One file.
pub struct SourceFile {
    /// From the root, with `/`.
    pub path: String,
    /// Its text.
    pub text: String,
    /// Of a Rust source: its parts.
    pub scanned: Scanned,
}

impl SourceFile {
    pub fn is_rust(&self) -> bool {
        has_extension(&self.path, "rs")
    }

    /// The crate's folder; the simulation's is in that of the tests.
    pub fn crate_name(&self) -> &str {
        let path =
            self.path.strip_prefix("tests/simulation/").map_or(&*self.path, |_| "simulation");
        path.split('/').next().unwrap_or_default()
    }

    /// Code that only tests build: `tests/` and `tests.rs`, examples, harnesses, and the inline
    /// test modules.
    pub fn is_test_line(&self, line: usize) -> bool {
        let parts = || self.path.split('/');
        parts().any(|part| ["tests", "tests.rs", "examples", "contract.rs"].contains(&part))
            || self.scanned.test_modules.iter().any(|module| module.contains(&line))
    }
}

/// Everything the rules look at.
pub struct Tree {
    pub files: Vec<SourceFile>,
}

impl Tree {
    pub fn load(root: &Path) -> Self {
        let mut files = Vec::new();
        collect(root, "", &mut files);
        files.sort_by(|left, right| left.path.cmp(&right.path));
        Self { files }
    }

    pub fn rust(&self) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(|file| file.is_rust())
    }
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

fn collect(root: &Path, prefix: &str, files: &mut Vec<SourceFile>) {
    let entries = fs::read_dir(root.join(prefix)).expect("a source folder can be read");
    for entry in entries {
        let entry = entry.expect("a source folder can be read");
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type().expect("an entry has a type");
        if kind.is_dir() && name != "target" && !name.starts_with('.') {
            collect(root, &path, files);
        }
        let wanted = ["rs", "proto"].iter().any(|extension| has_extension(&path, extension))
            || name == "Cargo.toml";
        // Somebody's editor may remove a file between the listing and the reading.
        if kind.is_file()
            && wanted
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            let rust = has_extension(&path, "rs");
            let scanned = if rust { Scanned::new(&text) } else { Scanned::default() };
            files.push(SourceFile { path, text, scanned });
        }
    }
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub path: String,
    /// From 1.
    pub line: usize,
    pub what: String,
}

impl Violation {
    pub fn new(file: &SourceFile, line: usize, what: impl Into<String>) -> Self {
        Self { path: file.path.clone(), line, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}: {}", self.path, self.line, self.what)
    }
}
