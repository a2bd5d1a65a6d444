//! One file per command: the only code that writes to stdout.

mod bench;
mod calibrate;
mod chat;
mod completions;
mod load;
mod perplexity;
mod prune;
mod run;
mod show;
mod tokenize;
mod trace;

use std::fs;
use std::io::{self, IsTerminal, Read, Write, stdin, stdout};
use std::path::Path;

use crate::cli::options::Command;
use crate::error::{Error, Kind, Result};

/// Runs a command.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Run(o) => run::run(o),
        Command::Show(o) => show::run(o),
        Command::Tokenize(o) => tokenize::run(o),
        Command::Perplexity(o) => perplexity::run(o),
        Command::Calibrate(o) => calibrate::run(o),
        Command::Bench(o) => bench::run(o),
        Command::Completions(shell) => completions::completions(*shell),
        Command::Man => completions::man(),
    }
}

/// Writes to stdout and flushes. A reader that has closed the pipe has what it wanted: that ends the process with success.
pub fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// Writes a piece of an answer: what could steer a terminal does not reach one.
fn print_answer(text: &str) -> Result<()> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if stdout().is_terminal() && text.contains(steers) {
        return print(&text.replace(steers, "\u{fffd}"));
    }
    print(text)
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
    let mut text = if path == Path::new("-") {
        read_stdin()?
    } else {
        let reading = |e: io::Error| match e.kind() {
            io::ErrorKind::NotFound => Error::input("no such file").in_file(path),
            io::ErrorKind::InvalidData => Error::malformed("is not UTF-8 text").in_file(path),
            _ => Error::input(format!("cannot be read: {e}")).in_file(path),
        };
        fs::read_to_string(path).map_err(reading)?
    };
    drop_line_break(&mut text);
    Ok(text)
}

/// Writes a file under a temporary name first, so that nothing half-written takes a file's place.
fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = Path::new(&name);
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(temporary);
        Error::new(Kind::CannotCreate, format!("cannot be written: {e}")).in_file(path)
    })
}

fn read_stdin() -> Result<String> {
    let mut text = String::new();
    stdin().lock().read_to_string(&mut text).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData => Error::malformed("stdin is not UTF-8 text"),
        _ => Error::io(format!("reading stdin failed: {e}")),
    })?;
    Ok(text)
}

fn drop_line_break(text: &mut String) {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
}
