//! Messages on stderr, by verbosity, and progress bars. Only commands say anything; what stands below them returns what there is to say.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write, stderr};
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::error::{Error, Kind, Result, escape};
use crate::system::terminal::{columns, fill};

/// Where messages go and how many there are.
#[derive(Debug, Clone)]
pub struct Options {
    /// 0 output only, 1 errors, 2 warnings, 3 notes and stats (default), 4 or more trace. `-q` is 1.
    pub verbosity: u8,
    /// Copy of all messages, appended.
    pub file: Option<PathBuf>,
}

/// Where messages go.
#[derive(Debug)]
pub struct Log {
    verbosity: u8,
    simple: bool,
    file: Option<RefCell<File>>,
}

impl Log {
    /// Opens the copy of messages, if one is wanted. `simple` is for terminals without cursor control: no progress bars.
    pub fn new(options: &Options, simple: bool) -> Result<Log> {
        let file = match &options.file {
            None => None,
            Some(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                let file = file.map_err(|e| Error::new(Kind::CannotCreate, format!("{e}")).in_file(path))?;
                Some(RefCell::new(file))
            }
        };
        Ok(Log { verbosity: options.verbosity, simple, file })
    }

    /// A note or a statistic (verbosity 3, the default).
    pub fn note(&self, message: &str) {
        self.write(3, message);
    }

    /// Something that the user may want to change (verbosity 2).
    pub fn warn(&self, message: &str) {
        self.write(2, &format!("warning: {message}"));
    }

    /// Something that failed while the program goes on (verbosity 1).
    pub fn error(&self, message: &str) {
        self.write(1, &format!("error: {message}"));
    }

    /// The line of numbers after an answer of a chat (verbosity 3), `dim` if it can be.
    pub fn status(&self, line: &str, dim: bool) {
        self.line(3, line, dim);
    }

    /// A detail (verbosity 4, `--verbose`).
    pub fn trace(&self, message: &str) {
        self.write(4, message);
    }

    fn write(&self, level: u8, message: &str) {
        self.line(level, &format!("pp-run: {message}"), false);
    }

    fn line(&self, level: u8, line: &str, dim: bool) {
        let line = escape(line);
        if let Some(file) = &self.file {
            // A full disk must not end an answer; the message is on stderr too.
            let _ = file.borrow_mut().write_all(format!("{line}\n").as_bytes());
        }
        if level > self.verbosity {
            return;
        }
        let terminal = stderr().is_terminal();
        let wrapped = if terminal && !self.simple { fill(&line, columns(stderr()), "  ") } else { line };
        let (on, off) = if terminal && dim { ("\x1b[2m", "\x1b[0m") } else { ("", "") };
        let _ = stderr().write_all(format!("{on}{wrapped}{off}\n").as_bytes());
    }

    /// A bar for `what` with `length` steps, which are counted if they have a `unit`; nothing is drawn when stderr is no terminal or notes are off.
    pub fn progress(&self, what: &str, length: u64, unit: &'static str) -> ProgressBar {
        let target = if self.verbosity >= 3 && !self.simple && stderr().is_terminal() {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let style = ProgressStyle::with_template(match unit {
            "" => "{msg} {wide_bar} {percent:>3}% ETA {eta}",
            _ => "{msg} {wide_bar} {percent:>3}% {human_pos}/{human_len} {prefix} ETA {eta}",
        });
        let bar = ProgressBar::with_draw_target(Some(length), target).with_style(style.expect("the template is valid"));
        bar.set_message(what.to_owned());
        bar.set_prefix(unit);
        bar
    }
}
