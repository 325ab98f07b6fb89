//! Rules about a single file: its length, its header, and what must not be in it.

use crate::tree::{SourceFile, Tree, Violation};

/// A longer file fails.
const MAX_FILE_LINES: usize = 1_000;
/// A longer file has to say why.
const REASON_FILE_LINES: usize = 600;
/// How it says so, in its header.
const REASON_MARKER: &str = "//! Length: ";
/// A longer function fails.
const MAX_FUNCTION_LINES: usize = 100;
/// A longer function is reported.
const REPORT_FUNCTION_LINES: usize = 70;
/// Wider lines fail, unless what makes them so can't be broken.
const MAX_COLUMNS: usize = 100;

pub fn length(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    for file in &tree.files {
        let lines = file.text.lines().count();
        let reason = file.text.lines().take_while(|line| line.starts_with("//!"));
        let reason = reason.into_iter().any(|line| line.starts_with(REASON_MARKER));
        if lines > MAX_FILE_LINES {
            let what = format!("{lines} lines, at most {MAX_FILE_LINES} are allowed");
            broken.push(Violation::new(file, lines, what));
        } else if file.is_rust() && lines > REASON_FILE_LINES && !reason {
            let what = format!("{lines} lines without a `{REASON_MARKER}…` line that says why");
            broken.push(Violation::new(file, lines, what));
        }
        // A manifest's tables can't be broken.
        if !file.path.ends_with("Cargo.toml") {
            wide_lines(file, &mut broken);
        }
        for function in &file.scanned.functions {
            let lines = function.lines.clone().count();
            if lines > MAX_FUNCTION_LINES {
                let what = format!(
                    "function {} has {lines} lines, at most {MAX_FUNCTION_LINES} are allowed",
                    function.name
                );
                broken.push(Violation::new(file, *function.lines.start(), what));
            }
        }
    }
    broken
}

fn wide_lines(file: &SourceFile, broken: &mut Vec<Violation>) {
    for (index, line) in file.text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > MAX_COLUMNS && !is_unbreakable(file, index + 1, line, columns) {
            let what = format!("{columns} columns, at most {MAX_COLUMNS} are allowed");
            broken.push(Violation::new(file, index + 1, what));
        }
    }
}

/// A table in a header can't be broken, and neither can an address or a long text.
fn is_unbreakable(file: &SourceFile, number: usize, line: &str, columns: usize) -> bool {
    if line.trim_start().starts_with("//! |") || line.contains("://") {
        return true;
    }
    file.scanned.literals.iter().any(|literal| {
        let last = literal.line + literal.text.matches('\n').count();
        // The part of the text on its first line; the lines after that are text alone.
        let first = literal.text.lines().next().unwrap_or_default().chars().count();
        let excused = literal.line == number && columns.saturating_sub(first) <= MAX_COLUMNS;
        excused || (literal.line + 1..=last).contains(&number)
    })
}

/// Functions that are allowed, but longer than they should be.
pub fn long_functions(tree: &Tree) -> Vec<String> {
    let mut notes = Vec::new();
    for file in tree.rust() {
        for function in &file.scanned.functions {
            let lines = function.lines.clone().count();
            if (REPORT_FUNCTION_LINES + 1..=MAX_FUNCTION_LINES).contains(&lines) {
                let (path, start) = (&file.path, function.lines.start());
                notes.push(format!("{path}:{start}: function {} has {lines} lines", function.name));
            }
        }
    }
    notes
}

pub fn header(tree: &Tree) -> Vec<Violation> {
    let mut broken = Vec::new();
    for file in tree.rust() {
        if !file.text.starts_with("//! ") {
            let what = "the module does not begin with a `//!` header";
            broken.push(Violation::new(file, 1, what));
        }
        if file.path.ends_with("/mod.rs") {
            let what = "`foo/mod.rs` is written as `foo.rs` beside `foo/`";
            broken.push(Violation::new(file, 1, what));
        }
    }
    broken
}

pub fn forbidden(tree: &Tree) -> Vec<Violation> {
    const FORBIDDEN: [(&[&str], &str); 7] = [
        (&["unbounded_channel"], "every queue has a bound"),
        (&["unbounded", "("], "every queue has a bound"),
        (&["unbounded", ":", ":", "<"], "every queue has a bound"),
        (&["mpsc", ":", ":", "channel", "(", ")"], "every queue has a bound"),
        (&["todo", "!"], "what isn't built answers with an error that names it"),
        (&["unimplemented", "!"], "what isn't built answers with an error that names it"),
        (&["#", "[", "ignore"], "a test that doesn't run is no test"),
    ];
    let mut broken = Vec::new();
    for file in tree.rust() {
        for (sequence, why) in FORBIDDEN {
            for line in file.scanned.find(sequence) {
                let what = format!("`{}`: {why}", sequence.concat());
                broken.push(Violation::new(file, line, what));
            }
        }
    }
    broken
}
