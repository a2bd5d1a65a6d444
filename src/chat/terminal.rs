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

/// Terminals that move no cursor, by their names in `TERM`.
const DUMB: [&str; 3] = ["dumb", "cons25", "emacs"];

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
        let dumb = std::env::var_os("TERM").is_some_and(|t| DUMB.iter().any(|dumb| t.eq_ignore_ascii_case(dumb)));
        let screen = stdout().is_terminal() && !options.simple_io && !dumb;
        let color = match options.color {
            _ if options.simple_io => false,
            Tristate::On => true,
            Tristate::Off => false,
            Tristate::Auto if set("NO_COLOR") => false,
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
            _ if options.simple_io => false,
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

    /// Whether stdout is a terminal that moves its cursor when it is told to.
    pub fn has_screen(&self) -> bool {
        self.screen
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
pub struct Hush {
    /// The terminal as it was found, and as it is meanwhile
    settings: Option<[rustix::termios::Termios; 2]>,
}

#[cfg(unix)]
impl Hush {
    /// Turns the echo of keys off. With `keys` they wait as they were pressed, for a line editor: Enter stays another key than Ctrl-J, and
    /// Ctrl-D or Backspace have no effect before their turn. Without, lines wait.
    pub fn begin(keys: bool) -> Hush {
        use rustix::termios::{InputModes, LocalModes, SpecialCodeIndex, tcgetattr};
        let settings = tcgetattr(std::io::stdin()).ok().map(|found| {
            let mut quiet = found.clone();
            quiet.local_modes.remove(LocalModes::ECHO);
            // Ctrl-C stops the answer, and what was typed before it still waits.
            quiet.local_modes.insert(LocalModes::NOFLSH);
            if keys {
                quiet.local_modes.remove(LocalModes::ICANON | LocalModes::IEXTEN);
                quiet.input_modes.remove(InputModes::ICRNL | InputModes::INLCR | InputModes::IGNCR);
                quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
                quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
            }
            [found, quiet]
        });
        let hush = Hush { settings };
        hush.set(1);
        hush
    }

    /// Does something with the terminal as it was found.
    pub fn lend<T>(&self, f: impl FnOnce() -> T) -> T {
        self.set(0);
        let done = f();
        self.set(1);
        done
    }

    fn set(&self, which: usize) {
        if let Some(settings) = &self.settings {
            // A terminal that is gone needs nothing.
            let now = rustix::termios::OptionalActions::Now;
            let _ = rustix::termios::tcsetattr(std::io::stdin(), now, &settings[which]);
        }
    }
}

#[cfg(unix)]
impl Drop for Hush {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// On other systems the console does not echo, so there is nothing to turn off.
#[cfg(not(unix))]
#[derive(Debug)]
pub struct Hush;

#[cfg(not(unix))]
impl Hush {
    /// Does nothing.
    pub fn begin(_: bool) -> Hush {
        Hush
    }

    /// Does something with the terminal.
    pub fn lend<T>(&self, f: impl FnOnce() -> T) -> T {
        f()
    }
}
