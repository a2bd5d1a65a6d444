//! What a run has done so far, in a file: a run that was interrupted goes on with it.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::asked::Asked;
use crate::engine::Likelihood;
use crate::error::{Error, Kind, Result};
use crate::eval::sha256;

/// The file of one task: a line that says of what it is, then a line for each piece, which is synced before the next is computed.
pub struct Part {
    path: PathBuf,
    file: File,
    head: String,
    done: Vec<Likelihood>,
}

fn path_of(folder: &Path, task: &str) -> PathBuf {
    folder.join(format!("{task}.part"))
}

impl Part {
    /// Opens the file of a task in a folder, which is made if it is not there. What is in it counts if the same likelihoods would be computed:
    /// `identity` is all that they depend on beside the questions.
    pub fn open(folder: &Path, asked: &Asked, identity: &Value) -> Result<Part> {
        let path = path_of(folder, &asked.task.name);
        let create =
            |e: std::io::Error| Error::new(Kind::CannotCreate, format!("cannot be written: {e}")).in_file(&path);
        fs::create_dir_all(folder).map_err(create)?;
        let requests: Vec<Value> = asked.requests.iter().map(|r| json!([r.tokens, r.n_scored])).collect();
        let of = json!({"identity": identity, "requests": sha256(&json!(requests).to_string())});
        let head = json!({"pp-run eval part": 1, "of": sha256(&of.to_string())}).to_string();
        let text = fs::read_to_string(&path).unwrap_or_default();
        // A line that was cut off has no end.
        let mut lines = text.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n'));
        let done = match lines.next() == Some(head.as_str()) {
            true => lines.map_while(likelihoods).flatten().take(asked.requests.len()).collect(),
            false => Vec::new(),
        };
        let file = OpenOptions::new().append(true).create(true).open(&path).map_err(create)?;
        Ok(Part { path, file, head, done })
    }

    /// The likelihoods in the file.
    pub fn take_done(&mut self) -> Vec<Likelihood> {
        std::mem::take(&mut self.done)
    }

    /// Begins the file anew with these.
    pub fn keep(&mut self, likelihoods: &[Likelihood]) -> Result<()> {
        let text = format!("{}\n", self.head);
        self.file.set_len(0).map_err(|e| self.failed(e))?;
        self.write(&text)?;
        self.add(likelihoods)
    }

    /// Appends a piece.
    pub fn add(&mut self, likelihoods: &[Likelihood]) -> Result<()> {
        let rows: Vec<Value> = likelihoods.iter().map(|l| json!([l.sum, l.is_greedy])).collect();
        self.write(&format!("{}\n", json!(rows)))
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|e| self.failed(e))
    }

    fn failed(&self, e: std::io::Error) -> Error {
        Error::io(format!("cannot be written: {e}")).in_file(&self.path)
    }

    /// Removes the file of a task whose results are written.
    pub fn forget(folder: &Path, task: &str) {
        let _ = fs::remove_file(path_of(folder, task));
    }
}

/// The likelihoods of a line. A sum that is minus infinity is `null`.
fn likelihoods(line: &str) -> Option<Vec<Likelihood>> {
    let rows: Vec<(Option<f64>, bool)> = serde_json::from_str(line).ok()?;
    let likelihood =
        |(sum, is_greedy): (Option<f64>, bool)| Likelihood { sum: sum.unwrap_or(f64::NEG_INFINITY), is_greedy };
    Some(rows.into_iter().map(likelihood).collect())
}
