//! Text files that go with the next message.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::state::Chat;
use crate::commands::input::decode;
use crate::error::{Error, Result};
use crate::system::places::env;

/// Longest text that goes with a message.
const MAX_ATTACHED: u64 = 16 << 20;

/// Most files that a pattern may match.
const MAX_FILES: usize = 500;

impl Chat<'_> {
    /// Text files that go with the next message.
    pub fn attach(&mut self, paths: &[PathBuf]) -> Result<()> {
        let mut text = String::new();
        let mut skipped = 0;
        for path in paths {
            let content = match read_text_file(path) {
                Ok(content) => content,
                // A pattern may match files that are no text: they are skipped.
                Err(_) if paths.len() > 1 => {
                    skipped += 1;
                    continue;
                }
                Err(e) => return Err(e.in_file(path)),
            };
            // The fence must be longer than any in the text.
            let mut fence = "```".to_owned();
            while content.contains(&fence) {
                fence.push('`');
            }
            let kind = path.extension().map_or_else(String::new, |e| e.to_string_lossy().into_owned());
            let end = if content.ends_with('\n') { "" } else { "\n" };
            text.push_str(&format!("File {}:\n{fence}{kind}\n{content}{end}{fence}\n\n", path.display()));
            if (self.attached.len() + text.len()) as u64 > MAX_ATTACHED {
                return Err(Error::malformed(format!(
                    "these files are more than {MAX_ATTACHED} bytes together: too long for a message"
                )));
            }
        }
        let n_tokens = self.run.tokenizer.encode(&text, false, false)?.len();
        let n = paths.len() - skipped;
        if n == 0 {
            return Err(Error::input("none of these files is a text"));
        }
        self.attached.push_str(&text);
        let (s, goes) = if n == 1 { ("", "goes") } else { ("s", "go") };
        let not = if skipped > 0 { format!("; {skipped} that are no text do not") } else { String::new() };
        self.run.log.note(&format!("{n} file{s} of {n_tokens} tokens {goes} with your next message{not}"));
        Ok(())
    }

    /// The files that a pattern matches.
    pub fn files_of(&self, pattern: &str) -> Result<Vec<PathBuf>> {
        let path = file_name(pattern);
        let bad = |e: glob::PatternError| Error::usage(format!("'{pattern}' is no pattern: {e}"));
        let mut paths = Vec::new();
        for path in glob::glob(&path.to_string_lossy()).map_err(bad)?.flatten() {
            if self.run.signals.interrupt.load(Ordering::Relaxed) {
                return Err(Error::failed("stopped"));
            }
            if path.is_file() {
                paths.push(path);
            }
            if paths.len() > MAX_FILES {
                return Err(Error::usage(format!("more than {MAX_FILES} files are like '{pattern}'")));
            }
        }
        if paths.is_empty() {
            return Err(Error::input(format!("no file is like '{pattern}'")));
        }
        Ok(paths)
    }
}

/// A path as it was typed, completed or quoted.
pub fn file_name(text: &str) -> PathBuf {
    let quoted = ['"', '\''].iter().find_map(|&q| text.strip_prefix(q)?.strip_suffix(q));
    let name = quoted.map_or_else(|| rustyline::completion::unescape(text, Some('\\')), Into::into);
    match (name.strip_prefix("~/"), env("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(name.as_ref()),
    }
}

fn read_text_file(path: &Path) -> Result<String> {
    let stat = fs::metadata(path).map_err(|e| Error::input(format!("cannot be read: {e}")))?;
    if !stat.is_file() {
        return Err(Error::input("is not a regular file"));
    }
    if stat.len() > MAX_ATTACHED {
        return Err(Error::malformed(format!("has {} bytes: too long for a message", stat.len())));
    }
    let bytes = fs::read(path).map_err(|e| Error::input(format!("cannot be read: {e}")))?;
    match decode(bytes) {
        Ok((text, _)) if !text.contains('\0') => Ok(text),
        _ => Err(Error::malformed("is no text")),
    }
}
