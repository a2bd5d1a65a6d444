//! One file per command: the only code that writes to stdout.

pub mod bench;
pub mod calibrate;
mod chat;
pub mod chats;
mod doctor;
mod load;
mod models;
pub mod perplexity;
mod prompt_cache;
mod pruning;
pub mod run;
pub mod show;
pub mod tokenize;
mod trace;

use std::fs;
use std::io::{self, Read, Write, stdin, stdout};
use std::path::Path;

use crate::chat::{Render, Style, terminal, width};
use crate::error::{Error, Kind, Result};
use crate::system::places::replace_file;
use load::Signals;

/// One invocation of the program.
#[derive(Debug)]
pub enum Command {
    /// Answer a prompt, or chat: `pp-run -m MODEL [-p PROMPT]`.
    Run(Box<run::Options>),
    /// `pp-run`: which models are here?
    Models,
    /// A model is to be run, but none is named
    NoModel,
    /// `pp-run show MODEL`
    Show(show::Options),
    /// `pp-run tokenize -m MODEL`
    Tokenize(tokenize::Options),
    /// `pp-run perplexity -m MODEL -f TEXT`
    Perplexity(perplexity::Options),
    /// `pp-run calibrate -m MODEL`
    Calibrate(calibrate::Options),
    /// `pp-run bench -m MODEL`
    Bench(bench::Options),
    /// `pp-run chats`
    Chats(chats::Options),
    /// `pp-run doctor`
    Doctor,
}

/// Runs a command. `exit_code` is for signals that end the process at once.
pub fn run(command: &Command, exit_code: fn(Kind) -> u8) -> Result<()> {
    let signals = || Signals::catch(exit_code);
    match command {
        Command::Run(o) => run::run(o, signals()?),
        Command::Models => models::run(),
        Command::NoModel => Err(models::missing()),
        Command::Show(o) => show::run(o),
        Command::Tokenize(o) => tokenize::run(o),
        Command::Perplexity(o) => perplexity::run(o, &signals()?),
        Command::Calibrate(o) => calibrate::run(o, &signals()?),
        Command::Bench(o) => bench::run(o, &signals()?),
        Command::Chats(o) => chats::run(o),
        Command::Doctor => doctor::run(),
    }
}

/// Writes to stdout and flushes. A reader that has closed the pipe has what it wanted: that ends the process with success.
pub fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes an answer as it comes.
struct Printer {
    render: Render,
    wraps: bool,
    /// Something was written.
    begun: bool,
    /// What was written last ends a line.
    line_ended: bool,
}

impl Printer {
    /// For one answer; `reasoning` if its prompt has opened that.
    fn new(style: &Style, options: &terminal::Options, reasoning: bool) -> Printer {
        let look = style.look(options);
        Printer { render: Render::new(look, reasoning), wraps: look.width.is_some(), begun: false, line_ended: false }
    }

    fn show(&mut self, text: &str) -> Result<()> {
        // Whoever is no terminal has no width to be asked for.
        let shown = self.render.push(text, if self.wraps { width() } else { None });
        self.write(&shown)
    }

    /// What was held back, and the end of the line; an answer without a text is an empty line.
    fn end(&mut self) -> Result<()> {
        let shown = self.render.finish();
        self.write(&shown)?;
        if self.line_ended { Ok(()) } else { self.write("\n") }
    }

    fn write(&mut self, text: &str) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        (self.begun, self.line_ended) = (true, text.ends_with('\n'));
        print(text)
    }
}

fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::io(format!("writing to stdout failed: {e}"))),
    }
}

/// The text of a file, or of stdin for `-`, less one final line break.
fn read_text(path: &Path) -> Result<String> {
    let mut text = prompt_text(read_prompt(path)?, path, true, &|_| ())?;
    drop_line_break(&mut text);
    Ok(text)
}

/// Writes a whole file.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_file(path, 0o666, |mut file| file.write_all(bytes))
}

/// Longest prompt: many times what any context holds.
const MAX_PROMPT: u64 = 256 << 20;

/// The bytes of a file, or of stdin for `-`.
fn read_prompt(path: &Path) -> Result<Vec<u8>> {
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

/// The text of what is to be UTF-8. What is not is replaced by U+FFFD, which `warn` is told; with `strict` it is an error.
fn prompt_text(bytes: Vec<u8>, path: &Path, strict: bool, warn: &dyn Fn(&str)) -> Result<String> {
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
