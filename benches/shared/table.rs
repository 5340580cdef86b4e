//! Results of a benchmark: one JSON line each as they come, and one Markdown table at the end.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// One row of the table: a goal, and whether it is held.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// The goal's case, in words.
    pub(crate) goal_of: String,
    /// What was measured.
    pub(crate) measured: String,
    /// What was to be reached.
    pub(crate) goal: String,
    /// Whether it was; `None` where it was not measured.
    pub(crate) held: Option<bool>,
}

impl Row {
    /// A goal for counts.
    pub(crate) fn counted(
        goal_of: impl Into<String>,
        measured: impl Into<String>,
        goal: impl Into<String>,
        held: bool,
    ) -> Self {
        Self { goal_of: goal_of.into(), measured: measured.into(), goal: goal.into(), held: Some(held) }
    }

    /// A goal that this run could not measure.
    pub(crate) fn missing(goal_of: impl Into<String>, why: impl Into<String>) -> Self {
        Self { goal_of: goal_of.into(), measured: why.into(), goal: String::new(), held: None }
    }

    fn markdown(&self) -> String {
        let held = match self.held {
            Some(true) => "held",
            Some(false) => "**not held**",
            None => "not measured",
        };
        format!("| {} | {} | {} | {held} |", self.goal_of, self.measured, self.goal)
    }
}

/// Where results go: standard output, and two files of one folder.
#[derive(Debug)]
pub(crate) struct Results {
    folder: PathBuf,
    lines: File,
    rows: Vec<Row>,
}

impl Results {
    /// Begins new files in `folder`.
    ///
    /// # Errors
    ///
    /// If they cannot be written.
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let lines = File::create(folder.join("results.jsonl"))?;
        Ok(Self { folder: folder.to_owned(), lines, rows: Vec::new() })
    }

    /// Writes one result, to the file and to standard output.
    ///
    /// # Panics
    ///
    /// If the file cannot be written.
    pub(crate) fn line(&mut self, line: &impl Serialize) {
        let line = serde_json::to_string(line).expect("results are plain JSON");
        println!("{line}");
        writeln!(self.lines, "{line}").expect("the results can be written");
    }

    /// Keeps one row for the table, and writes it as a result of its own.
    ///
    /// # Panics
    ///
    /// If the file cannot be written.
    pub(crate) fn row(&mut self, row: Row) {
        self.line(&row);
        self.rows.push(row);
    }

    /// The table, between a line on how it came about and what is to follow it; written to the folder as well.
    ///
    /// # Errors
    ///
    /// If its file cannot be written.
    pub(crate) fn table(&self, heading: &str, below: &str) -> io::Result<String> {
        let mut table = format!("{heading}\n\n| case | measured | goal | |\n| --- | --- | --- | --- |\n");
        for row in &self.rows {
            _ = writeln!(table, "{}", row.markdown());
        }
        table.push_str(below);
        fs::write(self.folder.join("table.md"), &table)?;
        Ok(table)
    }
}
