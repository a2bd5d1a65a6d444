//! Texts that commands read, from files or from stdin.

use std::fs;
use std::io::{self, Read, stdin};
use std::path::Path;

use crate::error::{Error, Result};

/// Longest prompt in bytes: many times what any context holds.
const MAX_PROMPT: u64 = 256 << 20;

/// The text of a file, or of stdin for `-`, less one final line break. It must be UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    read_prompt(path, true, &|_| ())
}

/// A text for the model from a file, or from stdin for `-`, less one final line break. What is not UTF-8 is replaced by U+FFFD, which
/// `warn` is told; with `strict` it is an error.
pub fn read_prompt(path: &Path, strict: bool, warn: &dyn Fn(&str)) -> Result<String> {
    let mut text = utf8(read_bytes(path)?, path, strict, warn)?;
    drop_line_break(&mut text);
    Ok(text)
}

/// The bytes of a file, or of stdin for `-`.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let reading = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::input("no such file").in_file(path),
        _ => Error::input(format!("cannot be read: {e}")).in_file(path),
    };
    if path == Path::new("-") {
        let failed = |e: io::Error| Error::io(format!("reading stdin failed: {e}"));
        stdin().lock().take(MAX_PROMPT + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        fs::File::open(path).and_then(|f| f.take(MAX_PROMPT + 1).read_to_end(&mut bytes)).map_err(reading)?;
    }
    if bytes.len() as u64 > MAX_PROMPT {
        return Err(Error::malformed(format!("is longer than {MAX_PROMPT} bytes: no prompt")).in_file(path));
    }
    Ok(bytes)
}

fn utf8(bytes: Vec<u8>, path: &Path, strict: bool, warn: &dyn Fn(&str)) -> Result<String> {
    String::from_utf8(bytes).or_else(|e| {
        let at = e.utf8_error().valid_up_to();
        let path = if path == Path::new("-") { Path::new("stdin") } else { path };
        if strict {
            return Err(Error::malformed(format!("is not UTF-8 text (at byte {at})")).in_file(path));
        }
        warn(&format!("{}: what is not UTF-8 text (first at byte {at}) is replaced by U+FFFD", path.display()));
        Ok(String::from_utf8_lossy(e.as_bytes()).into_owned())
    })
}

fn drop_line_break(text: &mut String) {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
}
