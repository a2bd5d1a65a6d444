//! The terminal: colours, size and echo.

use std::io::{IsTerminal, stdout};

use crossterm::style::{Attribute, Color, ContentStyle, Stylize};

use super::render::{Look, Reasoning};
use crate::system::terminal::columns;

/// `on | off | auto`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tristate {
    On,
    Off,
    #[default]
    Auto,
}

/// How the user wants answers to look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// What becomes of what the model thinks; `None`: a terminal shows it dimmed, and a pipe gets the answer alone.
    pub reasoning: Option<Reasoning>,
    pub color: Tristate,
    /// Markdown is rendered.
    pub markdown: Tristate,
    /// Words stay whole at the terminal's right edge.
    pub wrap: Tristate,
    /// Control characters of an answer reach the terminal.
    pub raw: bool,
    /// The terminal does not move its cursor.
    pub simple_io: bool,
}

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
    pub fn new(options: &Options) -> Style {
        let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
        let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|v| !v.is_empty() && v != "0");
        let screen =
            stdout().is_terminal() && !options.simple_io && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        let color = match options.color {
            Tristate::On => true,
            Tristate::Off => false,
            Tristate::Auto if set("NO_COLOR") || options.simple_io => false,
            Tristate::Auto => screen || forced,
        };
        // Otherwise crossterm would decide by the environment itself.
        crossterm::style::force_color_output(color);
        Style { color, screen }
    }

    /// How answers look.
    pub fn look(&self, options: &Options) -> Look {
        let terminal = stdout().is_terminal();
        let reasoning = options.reasoning.unwrap_or(if terminal { Reasoning::Dim } else { Reasoning::Hide });
        if options.raw || !(terminal || self.color) {
            return Look::plain(reasoning);
        }
        let markdown = match options.markdown {
            Tristate::On => true,
            Tristate::Off => false,
            Tristate::Auto => self.color,
        };
        let wrap = self.screen && options.wrap != Tristate::Off;
        Look { raw: !terminal && !markdown, markdown, width: if wrap { width() } else { None }, reasoning }
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

/// Columns that the terminal behind stdout has now.
pub fn width() -> Option<usize> {
    columns(stdout())
}

/// While this lives, keys that are pressed do not appear in the midst of an answer; they wait for the next prompt. Dropping it restores the
/// terminal.
#[cfg(unix)]
#[derive(Debug)]
pub struct Hush(Option<rustix::termios::Termios>);

#[cfg(unix)]
impl Hush {
    /// Turns the echo of keys off.
    pub fn begin() -> Hush {
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

/// On other systems the console does not echo, so there is nothing to turn off.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Hush;

#[cfg(not(unix))]
impl Hush {
    /// Does nothing.
    pub fn begin() -> Hush {
        Hush
    }
}
