//! What goes to standard output: tables for people, JSON for programs. Errors and progress go to
//! standard error and not through here.
//!
//! A reader that has gone away (`| head`) is an ordinary end: [`is_closed`] tells it from a
//! failure.

use std::io::{self, Write};

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use serde_json::Value;

/// Writes text and a newline.
///
/// # Errors
/// Standard output can't be written to.
pub fn line(text: impl AsRef<str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref().as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes a JSON value on lines of its own.
///
/// # Errors
/// Standard output can't be written to.
pub fn json(value: &Value) -> io::Result<()> {
    line(format!("{value:#}"))
}

/// Writes a JSON value on one line.
///
/// # Errors
/// Standard output can't be written to.
pub fn json_line(value: &Value) -> io::Result<()> {
    line(value.to_string())
}

/// Writes a table: a header and rows. Columns of numbers are aligned to the right.
///
/// # Errors
/// Standard output can't be written to.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    line(render(header, rows))
}

/// Writes names and values, one pair a line.
///
/// # Errors
/// Standard output can't be written to.
pub fn pairs(pairs: &[(&str, String)]) -> io::Result<()> {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in pairs {
        line(format!("{name:<width$}  {value}"))?;
    }
    Ok(())
}

fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(header.iter().map(|name| name.to_uppercase()));
    for row in rows {
        table.add_row(row);
    }
    for (at, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        let mut cells = rows.iter().filter_map(|row| row.get(at)).peekable();
        let numbers = cells.peek().is_some() && cells.all(|cell| is_number(cell));
        if numbers {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn is_number(cell: &str) -> bool {
    let units = ["", " B", " KiB", " MiB", " GiB", " TiB"];
    units.iter().any(|unit| {
        cell.strip_suffix(unit).is_some_and(|number| {
            !number.is_empty() && number.chars().all(|c| c.is_ascii_digit() || ".,-".contains(c))
        })
    })
}

/// An error with its causes. Many a text has its cause's in it, which is then not said twice.
#[must_use]
pub fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !last.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
        last = cause;
    }
    text
}

/// True if nobody reads standard output any more.
#[must_use]
pub fn is_closed(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<io::Error>().is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_numbers_and_ends_no_line_with_spaces() {
        let rows = vec![
            vec!["orders".to_owned(), "1,000".to_owned()],
            vec!["a-longer-name".to_owned(), "7".to_owned()],
        ];
        let text = render(&["topic", "messages"], &rows);
        let expected = "TOPIC          MESSAGES\norders            1,000\na-longer-name         7";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_cause_that_the_error_names_already_is_not_repeated() {
        let cause = io::Error::other("disk gone");
        let naming = anyhow::Error::from(cause).context("writing failed (disk gone); check it");
        let text = with_causes(&naming.context("can't start"));
        assert_eq!(text, "can't start: writing failed (disk gone); check it");
        let plain = anyhow::Error::from(io::Error::other("disk gone")).context("can't start");
        assert_eq!(with_causes(&plain), "can't start: disk gone");
    }

    #[test]
    fn a_reader_that_went_away_is_told_from_a_failure() {
        let closed = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert!(is_closed(&closed.context("writing")));
        assert!(!is_closed(&anyhow::anyhow!("broken pipe")));
    }
}
