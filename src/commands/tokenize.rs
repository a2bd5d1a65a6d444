//! `pp-run tokenize`: the tokens of a text.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use super::input::read_text;
use super::output::print;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::tokenizer::Tokenizer;

#[derive(Debug, Clone)]
pub struct Options {
    /// The GGUF file.
    pub path: PathBuf,
    /// `-p`, escapes processed
    pub prompt: Option<String>,
    /// `-f`, or `-` for stdin; stdin if neither is given
    pub prompt_file: Option<PathBuf>,
    /// Only the ids, as one JSON array.
    pub ids: bool,
    /// Only the number of tokens.
    pub show_count: bool,
    /// `--no-bos`
    pub no_bos: bool,
    /// `--no-parse-special`
    pub no_parse_special: bool,
}

/// Prints one line per token, or the numbers, or how many there are.
pub fn run(options: &Options) -> Result<()> {
    let tokenizer = Tokenizer::load(&Gguf::open(&options.path)?)?;
    let text = match (&options.prompt, &options.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_text(path)?,
        (None, None) => read_text(Path::new("-"))?,
    };
    let tokens = tokenizer.encode(&text, !options.no_bos, !options.no_parse_special)?;
    if options.show_count {
        return print(&format!("{}\n", tokens.len()));
    }
    if options.ids {
        let ids = serde_json::to_string(&tokens).map_err(|e| Error::failed(e.to_string()))?;
        return print(&format!("{ids}\n"));
    }
    let lines = tokens.iter().fold(String::new(), |mut out, &t| {
        let _ = writeln!(out, "{t:>6} -> '{}'", tokenizer.in_words(t));
        out
    });
    print(&lines)
}
