//! The terminal's state: colours, size, echo, and leaving it as it was found.

use std::io::{IsTerminal, stdout};

use crossterm::style::{Attribute, Color, ContentStyle, Stylize};

use super::Look;
use crate::cli::options::{RunOptions, Tristate};
use crate::error::{Error, Result};

/// How things look on stdout.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    color: bool,
    /// stdout is a terminal that moves its cursor when it is told to.
    screen: bool,
}

impl Style {
    /// Colours as asked for; automatic means on a terminal that has them and whose user wants them (`NO_COLOR`,
    /// `CLICOLOR_FORCE`, `TERM=dumb`).
    pub fn new(options: &RunOptions) -> Style {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let screen =
            stdout().is_terminal() && !options.simple_io && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        let color = match options.color {
            Tristate::On => true,
            Tristate::Off => false,
            Tristate::Auto if set("NO_COLOR") || options.simple_io => false,
            Tristate::Auto => screen || set("CLICOLOR_FORCE"),
        };
        // crossterm would ask the environment again.
        crossterm::style::force_color_output(color);
        Style { color, screen }
    }

    /// How answers look.
    pub fn look(&self, options: &RunOptions) -> Look {
        let terminal = stdout().is_terminal();
        if options.raw || !(terminal || self.color) {
            return Look::PLAIN;
        }
        let markdown = match options.markdown {
            Tristate::On => true,
            Tristate::Off => false,
            Tristate::Auto => self.color,
        };
        let wrap = self.screen && options.wrap != Tristate::Off;
        Look { raw: !terminal && !markdown, markdown, width: if wrap { width() } else { None } }
    }

    /// The prompt for the user's turn.
    pub fn prompt(&self, text: &str) -> String {
        let style = ContentStyle::new().with(Color::Green).attribute(Attribute::Bold);
        if self.color && !text.is_empty() { style.apply(text).to_string() } else { text.to_owned() }
    }

    /// Whether there are colours.
    pub fn has_color(&self) -> bool {
        self.color
    }
}

/// Columns of the terminal, of now; `None` if stdout is none.
pub fn width() -> Option<usize> {
    // Where there is no terminal crossterm would start another program to ask, at each piece of an answer.
    if !stdout().is_terminal() {
        return None;
    }
    crossterm::terminal::size().ok().map(|(columns, _)| usize::from(columns)).filter(|&n| n > 0)
}

/// Keys that are pressed during an answer do not appear in the midst of it; they wait for the next prompt. As it was when this is dropped.
#[cfg(unix)]
#[derive(Debug)]
pub struct Hush(Option<rustix::termios::Termios>);

#[cfg(unix)]
impl Hush {
    /// From now on.
    pub fn new() -> Hush {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let saved = tcgetattr(std::io::stdin()).ok();
        if let Some(mut quiet) = saved.clone() {
            quiet.local_modes.remove(LocalModes::ECHO);
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &quiet);
        }
        Hush(saved)
    }
}

#[cfg(unix)]
impl Drop for Hush {
    fn drop(&mut self) {
        if let Some(saved) = &self.0 {
            let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, saved);
        }
    }
}

/// Consoles that do not echo need no hushing.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Hush;

#[cfg(not(unix))]
impl Hush {
    /// Nothing to do.
    pub fn new() -> Hush {
        Hush
    }
}

/// Exits with 143 on SIGTERM, the terminal's settings restored: line editing changes them, and it waits in a system call
/// that no flag reaches.
#[cfg(unix)]
pub fn exit_cleanly_on_sigterm() -> Result<()> {
    let failed = |e: std::io::Error| Error::failed(format!("signals cannot be handled: {e}"));
    let saved = rustix::termios::tcgetattr(std::io::stdin()).ok();
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP])
        .map_err(failed)?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            if let Some(saved) = &saved {
                let _ = rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, saved);
            }
            let _ = crossterm::execute!(std::io::stderr(), crossterm::event::DisableBracketedPaste);
            // Without handlers that run at exit: other threads may be computing.
            signal_hook::low_level::exit(i32::from(crate::error::Kind::Terminated.exit_code()));
        }
    });
    Ok(())
}

/// Nothing to restore: the console is no terminal with modes of a line.
#[cfg(not(unix))]
pub fn exit_cleanly_on_sigterm() -> Result<()> {
    Ok(())
}
