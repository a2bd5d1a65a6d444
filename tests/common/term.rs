//! The program on a pseudo-terminal, whose screen an emulator keeps.

use std::fs::File;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ptyprocess::{PtyProcess, Signal, WaitStatus};
use rustix::termios::{InputModes, tcgetattr};

use super::PATIENCE;

/// A program on a terminal.
pub struct Term {
    process: PtyProcess,
    input: File,
    seen: Arc<Mutex<Seen>>,
    reader: Option<std::thread::JoinHandle<()>>,
    /// Where in the text the next search begins
    mark: usize,
}

struct Seen {
    parser: vt100::Parser,
    bytes: Vec<u8>,
}

fn size(n: u16) -> std::num::NonZeroU16 {
    n.try_into().unwrap()
}

impl Term {
    /// Runs a command on a terminal of this size.
    pub fn new(mut command: Command, columns: u16, rows: u16) -> Term {
        command
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .env_remove("CLICOLOR_FORCE")
            .env_remove("COLORTERM");
        Term::with(command, columns, rows)
    }

    /// [`Term::new`] without changing the environment.
    pub fn with(command: Command, columns: u16, rows: u16) -> Term {
        // A shell sets the size first: no program may see another.
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("stty columns {columns} rows {rows}; exec \"$0\" \"$@\"")]);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        if let Some(dir) = command.get_current_dir() {
            shell.current_dir(dir);
        }
        let process = PtyProcess::spawn(shell).unwrap();
        let parser = vt100::Parser::new(size(rows), size(columns), 10_000);
        let mut term = Term {
            input: process.get_raw_handle().unwrap(),
            process,
            seen: Arc::new(Mutex::new(Seen { parser, bytes: Vec::new() })),
            reader: None,
            mark: 0,
        };
        let mut output = term.process.get_raw_handle().unwrap();
        let seen = term.seen.clone();
        term.reader = Some(std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // A terminal whose last user is gone is an error to read.
            while let Ok(n @ 1..) = output.read(&mut buffer) {
                let mut seen = seen.lock().unwrap();
                seen.parser.process(&buffer[..n]);
                seen.bytes.extend_from_slice(&buffer[..n]);
            }
        }));
        term
    }

    /// Changes the terminal's size, which its program is told.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        self.process.set_window_size(columns, rows).unwrap();
        self.seen.lock().unwrap().parser.screen_mut().set_size(size(rows), size(columns));
    }

    /// Types.
    pub fn send(&mut self, keys: &str) {
        self.input.write_all(keys.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    /// Types a line. Enter is a carriage return.
    pub fn line(&mut self, text: &str) {
        self.send(&format!("{text}\r"));
    }

    /// All that was written so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.seen.lock().unwrap().bytes.clone()
    }

    /// [`Term::bytes`] of later.
    pub fn shared(&self) -> impl Fn() -> Vec<u8> + use<> {
        let seen = self.seen.clone();
        move || seen.lock().unwrap().bytes.clone()
    }

    /// What was written as text: without control sequences, and with one space for line breaks and spaces.
    pub fn text(&self) -> String {
        plain(&self.bytes())
    }

    /// Waits until a text was written after the last one that was waited for.
    #[track_caller]
    pub fn expect(&mut self, what: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = self.text();
            let from = self.mark.min(text.len());
            if let Some(at) = text.get(from..).unwrap_or_default().find(what) {
                self.mark = from + at + what.len();
                return;
            }
            assert!(Instant::now() < end, "'{what}' did not come after: {}", text.get(from..).unwrap_or(&text));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the terminal leaves the Enter key as it is, for a line editor.
    #[track_caller]
    pub fn keeps_enter(&self) {
        let end = Instant::now() + PATIENCE;
        while tcgetattr(&self.input).unwrap().input_modes.contains(InputModes::ICRNL) {
            assert!(Instant::now() < end, "Enter becomes a line feed: {}", self.text());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for the chat's prompt, with nothing typed.
    #[track_caller]
    pub fn prompt(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            let text = self.text();
            if text.len() > self.mark && text.ends_with("> ") {
                self.mark = text.len();
                return;
            }
            assert!(Instant::now() < end, "no prompt after: {text}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// What the screen shows, with what has left it at the top.
    pub fn screen(&self) -> String {
        let mut seen = self.seen.lock().unwrap();
        let screen = seen.parser.screen_mut();
        let rows = usize::from(screen.size().0.get());
        screen.set_scrollback(usize::MAX);
        let gone = screen.scrollback();
        let columns = screen.size().1.get();
        let mut lines: Vec<String> = Vec::new();
        let mut offset = gone;
        loop {
            screen.set_scrollback(offset);
            let shown: Vec<String> = screen.rows(0, columns).collect();
            let take = if offset == 0 { rows } else { rows.min(offset) };
            lines.extend(shown.into_iter().take(take));
            if offset == 0 {
                break;
            }
            offset = offset.saturating_sub(rows);
        }
        lines.iter().map(|l| l.trim_end().to_owned() + "\n").collect::<String>().trim_end().to_owned()
    }

    /// Row and column of the cursor.
    pub fn cursor(&self) -> (u16, u16) {
        self.seen.lock().unwrap().parser.screen().cursor_position()
    }

    /// A cell of the screen's attributes: bold, dim, colour.
    pub fn look(&self, text: &str) -> Option<(bool, bool, vt100::Color)> {
        let seen = self.seen.lock().unwrap();
        let screen = seen.parser.screen();
        let columns = screen.size().1.get();
        for (row, line) in screen.rows(0, columns).enumerate() {
            if let Some(at) = line.find(text) {
                let column = line[..at].chars().count();
                let cell = screen.cell(row as u16, column as u16)?;
                return Some((cell.bold(), cell.dim(), cell.fgcolor()));
            }
        }
        None
    }

    /// Sends a signal.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal).unwrap();
    }

    /// Waits for the end, and returns the exit code; of a signal 128 more than its number.
    #[track_caller]
    pub fn end(self) -> i32 {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.process.status() {
                Ok(WaitStatus::Exited(_, code)) => break code,
                Ok(WaitStatus::Signaled(_, signal, _)) => break 128 + signal as i32,
                _ => {}
            }
            assert!(Instant::now() < end, "still running: {}", self.text());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// [`Term::end`], and all that was written.
    #[track_caller]
    pub fn finish(mut self) -> (i32, String) {
        let (reader, seen) = (self.reader.take().unwrap(), self.seen.clone());
        let code = self.end();
        reader.join().unwrap();
        let text = plain(&seen.lock().unwrap().bytes);
        (code, text)
    }
}

/// Bytes for a terminal as text.
fn plain(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next_if_eq(&'[').is_some() {
                    while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {}
                } else {
                    chars.next();
                }
            }
            c if c.is_whitespace() => {
                if !out.ends_with(' ') {
                    out.push(' ');
                }
            }
            c => out.push(c),
        }
    }
    out
}
