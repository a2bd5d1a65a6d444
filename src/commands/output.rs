//! What commands write: the only code that writes to stdout.

use std::io::{self, Write, stdout};
use std::path::Path;

use crate::chat::{Message, Render, Role, Style, terminal, width};
use crate::error::{Error, Result};
use crate::system::places::replace_file;

/// Writes to stdout and flushes. A reader that has closed the pipe has what it wanted: that ends the process with success.
pub fn print(text: &str) -> Result<()> {
    if limit::stdout_was_closed() {
        return Err(Error::io("stdout is closed: there is nowhere to write to"));
    }
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        Err(e) => Err(Error::io(format!("writing to stdout failed: {e}"))),
    }
}

/// Writes an answer as it comes.
pub struct Printer {
    render: Render,
    wraps: bool,
    /// Something was written.
    pub begun: bool,
    /// The text that was written last ends with a line break.
    line_ended: bool,
}

impl Printer {
    /// A printer for one answer. `reasoning`: the prompt has begun it already, and this mark ends it.
    pub fn new(style: &Style, options: &terminal::Options, reasoning: Option<&'static str>) -> Printer {
        let look = style.look(options);
        Printer { render: Render::new(look, reasoning), wraps: look.width.is_some(), begun: false, line_ended: false }
    }

    pub fn show(&mut self, text: &str) -> Result<()> {
        // Only a terminal whose lines are wrapped is asked for its width, which may have changed.
        let shown = self.render.push(text, if self.wraps { width() } else { None });
        self.write(&shown)
    }

    /// Writes the text that was held back and ends the line. An answer without any text becomes an empty line.
    pub fn end(&mut self) -> Result<()> {
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

/// Writes a whole file.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    replace_file(path, 0o666, |mut file| file.write_all(bytes))
}

/// Writes a copy of a conversation.
pub fn write_conversation(path: &Path, messages: &[Message]) -> Result<()> {
    let mut text = String::new();
    for m in messages {
        let who = match m.role {
            Role::System => "System",
            Role::User => "User",
            Role::Assistant => "Assistant",
        };
        text.push_str(&format!("{who}:\n{}\n\n", m.content));
    }
    write_file(path, text.as_bytes())
}
