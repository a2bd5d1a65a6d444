//! Where answers go: a line of JSON for each, in a file that an interrupted run goes on with, or on stdout.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::commands::output::print;
use crate::error::{Error, Kind, Result};
use crate::system::places::replace_file;

/// What each line begins with.
const BEGINNING: &[u8] = b"{\"id\":";

/// The answers that a file has: what was asked, by the row's id.
pub type Held = HashMap<String, String>;

/// Where answers go.
pub struct Results {
    /// `None`: stdout
    file: Option<(File, PathBuf)>,
    /// Rows that failed
    pub n_failed: usize,
}

impl Results {
    /// Opens a file, or stdout for `-`, and says which answers are there. A last line that was cut off is dropped, and so are lines of rows that
    /// failed. [`Kind::Malformed`] if the file is something else, which is then left alone.
    pub fn open(path: &Path) -> Result<(Results, Held)> {
        if path == Path::new("-") {
            return Ok((Results { file: None, n_failed: 0 }, Held::new()));
        }
        let mut file = opened(path)?;
        let is_file = file.metadata().is_ok_and(|m| m.is_file());
        let (mut held, mut bytes) = (Held::new(), Vec::new());
        if is_file {
            file.read_to_end(&mut bytes).map_err(|e| Error::input(format!("cannot be read: {e}")).in_file(path))?;
        }
        let mut kept = Vec::new();
        for (i, line) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
            let other =
                || Error::malformed(format!("line {} is no answer to a row: use another -o", i + 1)).in_file(path);
            if !line.ends_with(b"\n") {
                let is_torn = line.starts_with(BEGINNING) || BEGINNING.starts_with(line);
                if is_torn { continue } else { return Err(other()) }
            }
            let row: Map<String, Value> = serde_json::from_slice(line).map_err(|_| other())?;
            let (Some(id), Some(asked)) = (row.get("id"), row.get("asked").and_then(Value::as_str)) else {
                return Err(other());
            };
            if !row.contains_key("error") {
                held.insert(id.to_string(), asked.to_owned());
                kept.extend_from_slice(line);
            }
        }
        if kept != bytes {
            // A link stays one, and what only its owner may read stays so.
            let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
            replace_file(&real, mode(&file), |mut file| file.write_all(&kept))?;
            file = opened(path)?;
        }
        Ok((Results { file: Some((file, path.to_owned())), n_failed: 0 }, held))
    }

    /// Adds a line, which stays whatever happens next.
    pub fn add(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\n");
        let Some((file, path)) = &mut self.file else { return print(&line) };
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        match written {
            // A pipe has nothing to sync.
            Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
            other => other.map_err(|e| Error::io(format!("cannot be written: {e}")).in_file(path)),
        }
    }
}

/// Who may do what with a file.
fn mode(file: &File) -> u32 {
    #[cfg(unix)]
    if let Ok(metadata) = file.metadata() {
        return std::os::unix::fs::MetadataExt::mode(&metadata) & 0o777;
    }
    let _ = file;
    0o666
}

/// The file, made if it is not there, for this process alone.
fn opened(path: &Path) -> Result<File> {
    let create = |e: io::Error| Error::new(Kind::CannotCreate, format!("cannot be written: {e}")).in_file(path);
    // A pipe that is opened to be read, too, would never end for its reader.
    let is_other = path.metadata().is_ok_and(|m| !m.is_file());
    let file = OpenOptions::new().append(true).read(!is_other).create(!is_other).open(path).map_err(create)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(Error::io("another run writes to this file: wait for it, or use another -o").in_file(path))
        }
        // Where files cannot be locked there is nothing to be done about it.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}
