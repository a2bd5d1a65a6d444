//! The terminal's state: colours, and leaving it as it was found.

use std::io::{IsTerminal, stdout};

use crossterm::style::{Attribute, Color, ContentStyle, Stylize};

use crate::cli::options::Tristate;
use crate::error::{Error, Result};

/// How things look on stdout.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    color: bool,
}

impl Style {
    /// Colours as asked for; automatic means on a terminal that has them and whose user wants them (`NO_COLOR`,
    /// `CLICOLOR_FORCE`, `TERM=dumb`).
    pub fn new(color: Tristate) -> Style {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let color = match color {
            Tristate::On => true,
            Tristate::Off => false,
            Tristate::Auto if set("NO_COLOR") => false,
            Tristate::Auto if set("CLICOLOR_FORCE") => true,
            Tristate::Auto => stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb"),
        };
        Style { color }
    }

    /// The prompt for the user's turn.
    pub fn prompt(&self) -> String {
        if self.color {
            let style = ContentStyle::new().with(Color::Green).attribute(Attribute::Bold);
            style.apply("> ").to_string()
        } else {
            "> ".to_owned()
        }
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
