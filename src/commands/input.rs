//! Texts that commands read, from files or from stdin.

use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::string::FromUtf8Error;
use std::sync::atomic::AtomicBool;

use super::signals::Signals;
use crate::error::{Error, Kind, Result};
use crate::log::Log;
use crate::system::stdin;

/// Longest prompt in bytes: many times what any context holds.
const MAX_PROMPT: u64 = 256 << 20;

/// Tenths of a second after which the user is told what is waited for.
const PATIENCE: usize = 10;

/// The text of a file, or of stdin for `-`, less one final line break. It must be UTF-8 or UTF-16.
pub fn read_text(path: &Path) -> Result<String> {
    let bytes = match is_stdin(path) {
        true => read_stdin(&AtomicBool::new(false), &mut || ())?,
        false => read_file(path)?,
    };
    let (mut text, _) = decode(bytes).map_err(|e| not_utf8(&e).in_file(shown(path)))?;
    drop_line_break(&mut text);
    Ok(text)
}

/// Reads texts for a model.
pub struct Reader<'a> {
    /// What is not UTF-8 is an error; otherwise UTF-16 is read too, and what is neither is replaced by U+FFFD.
    pub strict: bool,
    pub log: &'a Log,
    pub signals: &'a Signals,
}

impl Reader<'_> {
    /// A text from a file, or from stdin for `-`, less one final line break. `way_out` is said to whoever leaves stdin open without writing.
    pub fn read(&self, path: &Path, way_out: &str) -> Result<String> {
        let mut ticks = 0;
        let mut waits = || {
            ticks += 1;
            if ticks == PATIENCE {
                self.log.note(&format!("waiting for text on stdin, to its end{way_out}"));
            }
        };
        let bytes = match is_stdin(path) {
            true => read_stdin(&self.signals.interrupt, &mut waits).map_err(|e| self.signals.named(e))?,
            false => read_file(path)?,
        };
        let mut text = match decode(bytes) {
            Ok((_, true)) if self.strict => {
                return Err(Error::malformed("is UTF-16, not UTF-8 text").in_file(shown(path)));
            }
            Ok((text, is_utf16)) => {
                if is_utf16 {
                    self.log.note(&format!("{}: read as UTF-16 text", shown(path).display()));
                }
                text
            }
            Err(e) if self.strict => return Err(not_utf8(&e).in_file(shown(path))),
            Err(e) => {
                let (at, path) = (e.utf8_error().valid_up_to(), shown(path).display());
                self.log.warn(&format!("{path}: what is not UTF-8 text (first at byte {at}) is replaced by U+FFFD"));
                String::from_utf8_lossy(e.as_bytes()).into_owned()
            }
        };
        drop_line_break(&mut text);
        Ok(text)
    }
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// A file as messages call it.
fn shown(path: &Path) -> &Path {
    if is_stdin(path) { Path::new("stdin") } else { path }
}

fn not_utf8(e: &FromUtf8Error) -> Error {
    Error::malformed(format!("is not UTF-8 text (at byte {})", e.utf8_error().valid_up_to()))
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let reading = |e: io::Error| match e.kind() {
        io::ErrorKind::NotFound => Error::input("no such file").in_file(path),
        _ => Error::input(format!("cannot be read: {e}")).in_file(path),
    };
    fs::File::open(path).and_then(|f| f.take(MAX_PROMPT + 1).read_to_end(&mut bytes)).map_err(reading)?;
    check_length(&bytes, path)?;
    Ok(bytes)
}

fn read_stdin(interrupt: &AtomicBool, waits: &mut dyn FnMut()) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let failed = |e: io::Error| Error::io(format!("reading stdin failed: {e}"));
        match stdin::read(interrupt, waits).map_err(failed)? {
            None => return Err(Error::new(Kind::Interrupted, "interrupted")),
            Some(more) if more.is_empty() => return Ok(bytes),
            Some(more) => bytes.extend(more),
        }
        check_length(&bytes, Path::new("stdin"))?;
    }
}

fn check_length(bytes: &[u8], path: &Path) -> Result<()> {
    match bytes.len() as u64 > MAX_PROMPT {
        true => Err(Error::malformed(format!("is longer than {MAX_PROMPT} bytes: no prompt")).in_file(path)),
        false => Ok(()),
    }
}

/// A text without its byte order mark, and whether it was UTF-16; an error if it is neither that nor UTF-8.
pub fn decode(mut bytes: Vec<u8>) -> Result<(String, bool), FromUtf8Error> {
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|b| unit([b[0], b[1]])).collect();
        (String::from_utf16_lossy(&units), true)
    };
    match bytes.as_slice() {
        [0xff, 0xfe, rest @ ..] => return Ok(utf16(rest, u16::from_le_bytes)),
        [0xfe, 0xff, rest @ ..] => return Ok(utf16(rest, u16::from_be_bytes)),
        [0xef, 0xbb, 0xbf, ..] => drop(bytes.drain(..3)),
        _ => {}
    }
    // Without a mark: most letters of most languages' punctuation and of English have a zero in one half of their unit, and no text has
    // zeros otherwise.
    let zeros = |half: usize| bytes.iter().skip(half).step_by(2).filter(|&&b| b == 0).count();
    let (first, second, length) = (zeros(0), zeros(1), bytes.len());
    let most = |n: usize, others: usize| n > 1 && 4 * n >= length && n > 4 * others && length.is_multiple_of(2);
    match (most(second, first), most(first, second)) {
        (true, _) => Ok(utf16(&bytes, u16::from_le_bytes)),
        (_, true) => Ok(utf16(&bytes, u16::from_be_bytes)),
        _ => String::from_utf8(bytes).map(|text| (text, false)),
    }
}

fn drop_line_break(text: &mut String) {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_in_the_encoding_that_they_have() {
        let utf16 = |text: &str, unit: fn(u16) -> [u8; 2]| text.encode_utf16().flat_map(unit).collect::<Vec<u8>>();
        for text in ["Hello, world", "H\u{e9}llo \u{4f60} \u{1f600}."] {
            for marked in ["", "\u{feff}"].map(|mark| format!("{mark}{text}")) {
                assert_eq!(decode(marked.clone().into_bytes()).unwrap(), (text.to_owned(), false));
                assert_eq!(decode(utf16(&marked, u16::to_le_bytes)).unwrap(), (text.to_owned(), true));
                assert_eq!(decode(utf16(&marked, u16::to_be_bytes)).unwrap(), (text.to_owned(), true));
            }
        }
        assert_eq!(decode(b"a\0b".to_vec()).unwrap(), ("a\0b".to_owned(), false));
        assert_eq!(decode(Vec::new()).unwrap(), (String::new(), false));
        assert!(decode(b"a\xff".to_vec()).is_err());
    }
}
