//! The one error type of the program: what went wrong in one line, and of which kind it is.

use std::fmt;
use std::path::Path;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a run ended without success. The program has an exit code for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The run failed for a reason that has no code of its own.
    Failed,
    /// Bad usage: unknown flag, value out of range, options that exclude each other.
    Usage,
    /// Malformed data in a file, or a prompt longer than the context.
    Malformed,
    /// An input file is missing, unreadable, or not a regular file.
    Input,
    /// Well-formed, but pp-run does not know it: architecture, tensor type, tokenizer.
    Unsupported,
    /// A bug in pp-run.
    Internal,
    /// Not enough memory.
    Memory,
    /// An output file cannot be created.
    CannotCreate,
    /// Reading or writing failed, or a file changed while in use.
    Io,
    /// Ctrl-C ended the run.
    Interrupted,
    /// SIGTERM ended the run.
    Terminated,
}

/// What went wrong: one line for the user; an empty one if there is nothing to say.
///
/// The text may hold anything a file held; it is escaped when it is displayed, so that it can never
/// steer a terminal and never takes more than one line.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
}

impl Error {
    /// A new error of the given kind.
    #[cold]
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }

    /// Why the run ended.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same error with the file it is about in front: `model.gguf: ...`.
    #[must_use]
    pub fn in_file(self, path: &Path) -> Error {
        Error { kind: self.kind, message: format!("{}: {}", path.display(), self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(&self.message))
    }
}

impl std::error::Error for Error {}

/// Shorthands for the kinds that are raised in many places.
macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {
        impl Error {
            $(
                #[doc = concat!("An error of kind [`Kind::", stringify!($kind), "`].")]
                #[cold]
                pub fn $name(message: impl Into<String>) -> Error {
                    Error::new(Kind::$kind, message)
                }
            )*
        }
    };
}

constructors! {
    failed => Failed,
    usage => Usage,
    malformed => Malformed,
    input => Input,
    unsupported => Unsupported,
    internal => Internal,
    memory => Memory,
    io => Io,
}

/// The name that a user may have meant by a word, if one is near enough: it goes on where the word ends at a dash, or few letters are
/// wrong, left out, too many or swapped. Of equally near names it is the shortest, and the first in the alphabet. Dashes and slashes in front do
/// not count.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |s: &str| s.trim_start_matches(['-', '/']).to_lowercase();
    let word = plain(word);
    let begun = format!("{word}-");
    let distance = |name: &str| {
        let name = plain(name);
        let (wrong, length) = (strsim::osa_distance(&word, &name), word.chars().count().max(name.chars().count()));
        let sorted = |s: &str| {
            let mut letters: Vec<char> = s.chars().collect();
            letters.sort_unstable();
            letters
        };
        match length {
            // Among names of a few letters each is near the others: the same letters must be there.
            0..=3 => (sorted(&word) == sorted(&name)).then_some(wrong),
            _ if wrong <= (length / 4).min(3) => Some(wrong),
            _ => (word.len() > 2 && name.starts_with(&begun)).then_some(length),
        }
    };
    let near = names.filter_map(|n| Some((distance(n)?, n.len(), n)));
    near.min().map(|(_, _, name)| name)
}

/// The start of a text from a file, for a message: the whole of it may be megabytes.
pub fn shown(text: &str) -> std::borrow::Cow<'_, str> {
    const MAX: usize = 128;
    if text.len() <= MAX {
        return text.into();
    }
    let end = (0..=MAX).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
    format!("{}... ({} bytes)", &text[..end], text.len()).into()
}

/// `text` with control characters, line breaks and bidirectional marks as `\xNN` / `\u{NN}`: safe to print on a
/// terminal.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(c.escape_unicode())
            }
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_near_is_suggested() {
        let names =
            ["--temp", "--top-k", "-ngl", "--ctx-size", "--rope-scaling", "--prompt", "--pack", "--power", "-m"];
        for (word, want) in [
            ("--tempp", Some("--temp")),
            ("-nlg", Some("-ngl")),
            ("--ctx", Some("--ctx-size")),
            ("--promt", Some("--prompt")),
            ("--Temp", Some("--temp")),
            ("--reasoning", None),
            ("--poll", None),
            ("--cpu-mask", None),
            ("--port", None),
            ("-md", None),
            ("-x", None),
        ] {
            assert_eq!(nearest(word, names.into_iter()), want, "{word}");
        }
    }

    #[test]
    fn text_from_a_file_cannot_steer_a_terminal() {
        let e = Error::malformed("name '\u{1b}[2J\n\u{202e}x'").in_file(Path::new("a.gguf"));
        assert_eq!(e.to_string(), "a.gguf: name '\\x1b[2J\\x0a\\u{202e}x'");
        assert_eq!(e.kind(), Kind::Malformed);
        assert_eq!(shown("short"), "short");
        assert_eq!(shown(&"\u{e9}".repeat(100)), format!("{}... (200 bytes)", "\u{e9}".repeat(64)));
    }
}
