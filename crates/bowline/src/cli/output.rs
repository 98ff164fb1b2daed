//! How answers look: one JSON document, or words and tables for a person.

use std::io::{self, Write};

use serde::Serialize;

use crate::control::api::{Condition, Document, Kind, Problem};

/// Prints a document, by itself on standard output.
pub fn document<T: Serialize>(document: &Document<T>) -> Result<(), Problem> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Problem::new(Kind::Failed, "JSON failed").why(error.to_string()))?;
    print(&format!("{text}\n"))
}

/// Prints an answer: as JSON if that was asked for, else in words.
pub fn answer<T: Serialize>(
    json: bool,
    body: T,
    words: impl FnOnce(&T) -> String,
) -> Result<(), Problem> {
    if json { document(&Document::new(body)) } else { print(&words(&body)) }
}

/// A reader that goes away in the middle (`bowline disk list | head -1`) is not a failure.
pub fn print(text: &str) -> Result<(), Problem> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Problem::new(Kind::Failed, "cannot print").why(error.to_string()))
        }
        _ => Ok(()),
    }
}

/// Columns as wide as their widest cell; those that `right` names are set to the right.
pub fn table(head: &[&str], rows: &[Vec<String>], right: &[usize]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_string()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (at, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            let padded = if right.contains(&at) {
                format!("{cell:>width$}  ")
            } else {
                format!("{cell:<width$}  ")
            };
            line.push_str(&padded);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `label: value` lines, the values below each other.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(label, _)| label.len()).max().unwrap_or(0) + 1;
    let line = |(label, value): &(&str, String)| {
        let label = format!("{label}:");
        format!("{label:<width$} {value}\n")
    };
    fields.iter().map(line).collect()
}

/// What is not well, as a person needs it.
pub fn conditions(conditions: &[Condition]) -> String {
    let mut text = String::new();
    for condition in conditions {
        text.push_str(&format!("\n{}\n", condition.name));
        let remedy = match condition.remedy.as_str() {
            "" => "nothing",
            remedy => remedy,
        };
        for (label, words) in [
            ("means", condition.meaning.as_str()),
            ("bowline does", condition.doing.as_str()),
            ("you do", remedy),
        ] {
            text.push_str(&format!("  {label:<13} {words}\n"));
        }
    }
    text
}

/// Part of a whole, which may be nothing.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    format!("{:.0}%", (part as f64 / whole as f64 * 100.0).min(100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up() {
        let rows = vec![vec!["a".into(), "10".into()], vec!["long-name".into(), "7".into()]];
        let text = table(&["NAME", "SIZE"], &rows, &[1]);
        assert_eq!(text, "NAME       SIZE\na            10\nlong-name     7\n");
    }

    #[test]
    fn percent_never_says_more_than_all() {
        assert_eq!(percent(5, 4), "100%");
        assert_eq!(percent(0, 0), "-");
        assert_eq!(percent(1, 3), "33%");
    }
}
