//! Reading the user's turns: line editing, completion and history across runs (rustyline), and an editor of the user's choice.

use std::fs;
use std::io::{Write, stderr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustyline::completion::{Completer, FilenameCompleter, Pair};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{
    Cmd, CompletionType, ConditionalEventHandler, Context, Event, EventContext, EventHandler, Helper, KeyCode,
    KeyEvent, Modifiers, RepeatCount,
};

use super::saved::names;
use super::slash::{Completes, SLASHES, parse_slash};
use super::terminal::{Hush, Style};
use crate::error::{Error, Result, escape};
use crate::system::{places, stdin};

/// What the user did.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Entered a text, perhaps of several lines.
    Text(String),
    /// Entered a text between `"""`, which is a message whatever it begins with.
    Quoted(String),
    /// Ctrl-C
    Interrupt,
    /// Ctrl-D
    End,
}

/// Longest history.
const MAX_HISTORY: usize = 1000;

/// Largest history file that is read: no history of [`MAX_HISTORY`] turns is nearly as long.
const MAX_HISTORY_BYTES: u64 = 16 << 20;

/// Longest text that comes back from the user's editor.
const MAX_TEXT: u64 = 16 << 20;

/// What reads the user's turns from a terminal.
#[derive(Debug)]
pub struct Editor {
    keys: Keys,
    multiline: bool,
    /// What of stdin is no turn yet, on a terminal that hands over lines
    pending: Vec<u8>,
    /// Ctrl-C was pressed, on a terminal that hands over lines.
    interrupt: Arc<AtomicBool>,
    /// Another program has the terminal.
    away: Arc<AtomicBool>,
}

/// A line editor with a history file.
#[derive(Debug)]
struct Keys {
    editor: rustyline::Editor<Words, DefaultHistory>,
    history: Option<PathBuf>,
    /// Ctrl-G was pressed.
    elsewhere: Arc<AtomicBool>,
    /// Ctrl-C was pressed.
    interrupted: Arc<AtomicBool>,
    /// Ctrl-Z was pressed.
    suspended: Arc<AtomicBool>,
    /// The terminal between turns; `None` if it has no screen: then lines are read, and keys edit nothing
    hush: Option<Hush>,
}

/// What completion knows, and what is kept.
#[derive(Debug)]
pub struct Around {
    /// Nothing that is typed is kept without it.
    pub keep_history: bool,
    /// Names of the settings that `/set` changes
    pub settings: &'static [&'static str],
    /// Where chats are
    pub chats: Option<PathBuf>,
}

impl Editor {
    /// An editor with the history of earlier chats, and a message for the user if that cannot be read. Without a `hush` it is for a terminal
    /// that hands over lines. With `multiline` a text ends with a line that holds only `/`. `away` is set while another program has
    /// the terminal, and `interrupt` at Ctrl-C where that is no key.
    pub fn new(
        hush: Option<Hush>,
        multiline: bool,
        around: Around,
        away: Arc<AtomicBool>,
        interrupt: Arc<AtomicBool>,
    ) -> Result<(Editor, Option<String>)> {
        let (keys, note) = Keys::new(hush, multiline, around)?;
        Ok((Editor { keys, multiline, pending: Vec::new(), interrupt, away }, note))
    }

    /// Reads one turn: a line, or lines between `"""`, or lines that end with `\` and the line after them. `text` is there to begin with.
    /// `failed` is told when the user's own editor fails.
    pub fn read(&mut self, style: &Style, text: &str, failed: &dyn Fn(&Error)) -> Result<Input> {
        let mut text = text.to_owned();
        let whole = loop {
            let keys = &mut self.keys;
            if keys.hush.is_none() {
                match self.read_lines(&text)? {
                    Ok(whole) => break whole,
                    Err(input) => return Ok(input),
                }
            }
            let line = match keys.editor.readline_with_initial(&("> ", style.prompt("> ")), (&text, "")) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => return Ok(Input::Interrupt),
                Err(ReadlineError::Eof) => return Ok(Input::End),
                Err(e) => return Err(Error::io(format!("reading the terminal failed: {e}"))),
            };
            let pressed = |key: &AtomicBool| key.swap(false, Ordering::Relaxed);
            if pressed(&keys.interrupted) {
                return Ok(Input::Interrupt);
            }
            text = if pressed(&keys.suspended) {
                keys.suspend();
                line
            } else if pressed(&keys.elsewhere) {
                let line = without_marks(&line);
                self.edit(&line).unwrap_or_else(|e| {
                    failed(&e);
                    line
                })
            } else {
                break without_marks(&line);
            }
        };
        self.keys.remember(&whole);
        Ok(match quoted(&whole) {
            Some(inner) => Input::Quoted(inner.to_owned()),
            None => Input::Text(content(&whole, self.multiline).to_owned()),
        })
    }

    /// Reads one turn from a terminal that hands over lines, or what the user did instead. A `text` that is there to begin with is sent by
    /// an empty line.
    fn read_lines(&mut self, text: &str) -> Result<Result<String, Input>> {
        let mut prompt = String::new();
        if !text.is_empty() {
            let shown: Vec<String> = text.lines().map(escape).collect();
            prompt = format!("{}\n(an empty line sends this, another text takes its place)\n", shown.join("\n"));
        }
        // stdout is for answers: it may go elsewhere.
        let _ = write!(stderr(), "{prompt}> ");
        let mut whole = String::new();
        loop {
            let failed = |e: std::io::Error| Error::io(format!("reading the terminal failed: {e}"));
            match self.line().map_err(failed)? {
                None => return Ok(Err(Input::Interrupt)),
                Some(line) if line.is_empty() => return Ok(if whole.is_empty() { Err(Input::End) } else { Ok(whole) }),
                Some(line) => whole += line.strip_suffix('\n').unwrap_or(&line),
            }
            if whole.is_empty() {
                whole = text.to_owned();
            }
            if !unfinished(&whole, self.multiline) {
                return Ok(Ok(whole));
            }
            if continued(&whole) {
                whole.pop();
            }
            whole.push('\n');
        }
    }

    /// The next line of stdin with its end; nothing of one is left at the end of stdin, and there is none if Ctrl-C was pressed.
    fn line(&mut self) -> std::io::Result<Option<String>> {
        let mut ended = false;
        loop {
            let end = self.pending.iter().position(|&b| b == b'\n').map(|at| at + 1);
            if let Some(end) = end.or(ended.then_some(self.pending.len())) {
                let line: Vec<u8> = self.pending.drain(..end).collect();
                return Ok(Some(String::from_utf8_lossy(&line).into_owned()));
            }
            match stdin::read(&self.interrupt, &mut || ())? {
                None => return Ok(None),
                Some(bytes) => {
                    ended = bytes.is_empty();
                    self.pending.extend(bytes);
                }
            }
        }
    }

    /// Lets the user change the text in an editor of theirs, and returns the changed text.
    pub fn edit(&self, text: &str) -> Result<String> {
        let set = |name: &str| std::env::var(name).ok().filter(|v| !v.trim().is_empty());
        let program = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".to_owned());
        let failed = |what: String| Error::failed(format!("the editor '{program}' (VISUAL, EDITOR) {what}"));
        let io = |e: std::io::Error| failed(format!("got no file: {e}"));
        let mut file = tempfile::Builder::new().prefix("pp-run-").suffix(".md").tempfile().map_err(io)?;
        file.write_all(text.as_bytes()).and_then(|()| file.flush()).map_err(io)?;
        // The variable may hold arguments too, so a shell reads it. Meanwhile Ctrl-C is for that editor.
        self.away.store(true, Ordering::Relaxed);
        let run = || Command::new("sh").args(["-c", &format!("{program} \"$1\""), "sh"]).arg(file.path()).status();
        let status = match &self.keys.hush {
            Some(hush) => hush.lend(run),
            None => run(),
        };
        self.away.store(false, Ordering::Relaxed);
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => return Err(failed(format!("failed ({status}): the text is as it was"))),
            Err(e) => return Err(failed(format!("cannot be run: {e}"))),
        }
        // The editor may have put a new file in the place of the old one, so it is opened by its name.
        if fs::metadata(file.path()).map_err(io)?.len() > MAX_TEXT {
            return Err(failed(format!("left more than {MAX_TEXT} bytes")));
        }
        let bytes = fs::read(file.path()).map_err(io)?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }
}

impl Keys {
    /// A line editor, and a message for the user if its history cannot be read.
    fn new(hush: Option<Hush>, multiline: bool, around: Around) -> Result<(Keys, Option<String>)> {
        let failed = |e: ReadlineError| Error::failed(format!("the terminal cannot be used for line editing: {e}"));
        let mut editor = rustyline::Editor::<Words, DefaultHistory>::new().map_err(failed)?;
        editor.set_max_history_size(MAX_HISTORY).map_err(failed)?;
        editor.set_auto_add_history(false);
        editor.set_completion_type(CompletionType::List);
        let Around { keep_history, settings, chats } = around;
        editor.set_helper(Some(Words { files: FilenameCompleter::new(), chats, settings }));
        let newline = || EventHandler::Simple(Cmd::Newline);
        editor.bind_sequence(KeyEvent::ctrl('J'), newline());
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::ALT), newline());
        let enter = EventHandler::Conditional(Box::new(Enter { multiline }));
        editor.bind_sequence(KeyEvent(KeyCode::Enter, Modifiers::NONE), enter);
        // At its own interruption rustyline would drop the keys that were pressed after Ctrl-C; so Ctrl-C ends the line like Enter here. Ctrl-Z
        // is to leave the terminal as it was found, of which rustyline knows nothing.
        let mut ends_with = |key: char| {
            let pressed = Arc::new(AtomicBool::new(false));
            let handler = EventHandler::Conditional(Box::new(Ends(pressed.clone())));
            editor.bind_sequence(KeyEvent::ctrl(key), handler);
            pressed
        };
        let (elsewhere, interrupted, suspended) = (ends_with('G'), ends_with('C'), ends_with('Z'));
        let mut note = None;
        let mut history = if keep_history { places::history(&places::env) } else { None };
        if let Some(path) = &history
            // At first there is no history, which is no fault.
            && let Ok(stat) = fs::metadata(path)
        {
            let usable = stat.is_file() && stat.len() <= MAX_HISTORY_BYTES;
            if !usable || editor.load_history(path).is_err() {
                note = Some(format!("{} is no history that can be read: this chat keeps none", path.display()));
                history = None;
            }
        }
        Ok((Keys { editor, history, elsewhere, interrupted, suspended, hush }, note))
    }

    /// Stops the program until the shell lets it go on.
    #[cfg(unix)]
    fn suspend(&self) {
        use std::time::{Duration, Instant};
        let Some(hush) = &self.hush else { return };
        let continued = Arc::new(AtomicBool::new(false));
        let handler = signal_hook::flag::register(signal_hook::consts::SIGCONT, continued.clone());
        hush.lend(|| {
            let _ = rustix::process::kill_current_process_group(rustix::process::Signal::TSTP);
            // Another thread may take the signal later than this one goes on: the editor must not have the terminal by then. Where no shell
            // could continue the program, the system does not stop it, and so there is an end to the waiting.
            let end = Instant::now() + Duration::from_secs(1);
            while handler.is_ok() && !continued.load(Ordering::Relaxed) && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        if let Ok(id) = handler {
            signal_hook::low_level::unregister(id);
        }
    }

    /// On other systems there is nothing to go back to.
    #[cfg(not(unix))]
    fn suspend(&self) {}

    /// Adds a text to the history and its file. A history that cannot be kept does not end a chat.
    fn remember(&mut self, text: &str) {
        if text.trim().is_empty() || !self.editor.add_history_entry(text).unwrap_or(false) {
            return;
        }
        if let Some(path) = &self.history {
            if let Some(dir) = path.parent() {
                let _ = fs::create_dir_all(dir);
            }
            // rustyline makes the file readable by its owner only.
            let _ = self.editor.append_history(path);
        }
    }
}

/// Whether Enter begins another line of a text instead of ending it.
fn unfinished(text: &str, multiline: bool) -> bool {
    if multiline && !text.starts_with('/') {
        return text.lines().last().is_none_or(|l| l.trim() != "/");
    }
    match text.strip_prefix("\"\"\"") {
        Some(rest) => !rest.contains("\"\"\""),
        None => continued(text),
    }
}

/// Whether a `\` at the end of a text says that it goes on, and is no part of it.
fn continued(text: &str) -> bool {
    text.ends_with('\\') && !text.starts_with("\"\"\"")
}

/// The text between `"""`, if there is no text outside of it.
fn quoted(text: &str) -> Option<&str> {
    let (inner, after) = text.strip_prefix("\"\"\"")?.split_once("\"\"\"")?;
    after.trim().is_empty().then_some(inner.strip_prefix('\n').unwrap_or(inner))
}

/// The text that was entered, without what marked its end.
fn content(text: &str, multiline: bool) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.trim_end().strip_suffix("\n/").filter(|_| multiline).unwrap_or(text)
}

/// An invisible character, which Enter puts behind a `\` at the end of a text: that `\` is no part of the text, whatever is changed before it.
const GOES_ON: char = '\u{2063}';

/// The text without each `\` at which Enter began a new line.
fn without_marks(text: &str) -> String {
    text.replace(&format!("\\{GOES_ON}"), "").replace(GOES_ON, "")
}

/// The Enter key: it begins a new line in a text that is not finished, and ends a finished one.
struct Enter {
    multiline: bool,
}

impl ConditionalEventHandler for Enter {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, ctx: &EventContext) -> Option<Cmd> {
        let (line, at) = (ctx.line(), ctx.pos());
        Some(match () {
            () if !unfinished(line, self.multiline) => return None,
            () if continued(line) && at == line.len() => Cmd::Insert(1, format!("{GOES_ON}\n")),
            () => Cmd::Newline,
        })
    }
}

/// A key that ends the line and notes that it was pressed.
struct Ends(Arc<AtomicBool>);

impl ConditionalEventHandler for Ends {
    fn handle(&self, _: &Event, _: RepeatCount, _: bool, _: &EventContext) -> Option<Cmd> {
        self.0.store(true, Ordering::Relaxed);
        Some(Cmd::AcceptLine)
    }
}

/// Completes commands and what follows them.
struct Words {
    files: FilenameCompleter,
    chats: Option<PathBuf>,
    /// Names of the settings that `/set` changes
    settings: &'static [&'static str],
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Words").finish_non_exhaustive()
    }
}

impl Helper for Words {}
impl Validator for Words {}
impl Highlighter for Words {}
impl Hinter for Words {
    type Hint = String;
}

impl Completer for Words {
    type Candidate = Pair;

    fn complete(&self, line: &str, pos: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<Pair>)> {
        if !line.starts_with('/') || line.starts_with("//") {
            return Ok((pos, Vec::new()));
        }
        let typed = &line[..pos];
        let start = typed.char_indices().rfind(|(_, c)| c.is_whitespace()).map_or(0, |(i, c)| i + c.len_utf8());
        let pairs = |names: Vec<String>| {
            let fitting = names.into_iter().filter(|n| n.starts_with(&typed[start..]));
            fitting.map(|n| Pair { display: n.clone(), replacement: n + " " }).collect()
        };
        if start == 0 {
            return Ok((0, pairs(SLASHES.iter().map(|s| s.name.to_owned()).collect())));
        }
        let Ok((slash, _)) = parse_slash(typed) else { return Ok((pos, Vec::new())) };
        match slash.completes {
            Completes::Nothing => Ok((pos, Vec::new())),
            Completes::Files => self.files.complete_path(line, pos),
            Completes::Chats => {
                let chats = self.chats.as_deref().and_then(|dir| names(dir).ok()).unwrap_or_default();
                Ok((start, pairs(chats.into_iter().map(|c| c.0).collect())))
            }
            Completes::Settings => Ok((start, pairs(self.settings.iter().map(|s| (*s).to_owned()).collect()))),
            Completes::Words(words) => Ok((start, pairs(words.iter().map(|w| (*w).to_owned()).collect()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_several_lines() {
        for (text, multiline, want) in [
            ("one", false, Some("one")),
            ("one \\", false, None),
            ("a\\b", false, Some("a\\b")),
            ("first \\\nsecond", false, Some("first \\\nsecond")),
            ("\"\"\"one", false, None),
            ("\"\"\"one\ntwo\"\"\"", false, Some("one\ntwo")),
            ("\"\"\"\none\n\"\"\"", false, Some("one\n")),
            ("say \"\"\"", false, Some("say \"\"\"")),
            ("\"\"\"A module.\"\"\"\nimport os", false, Some("\"\"\"A module.\"\"\"\nimport os")),
            ("pasted\ntext\n", false, Some("pasted\ntext")),
            ("one", true, None),
            ("one\ntwo\n/", true, Some("one\ntwo")),
            ("/help", true, Some("/help")),
        ] {
            let whole = || quoted(text).unwrap_or_else(|| content(text, multiline));
            assert_eq!((!unfinished(text, multiline)).then(whole), want, "{text:?} {multiline}");
        }
    }

    #[test]
    fn commands_files_and_settings_are_completed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes.txt"), "x").unwrap();
        fs::write(dir.path().join("sea.jsonl"), "x").unwrap();
        let settings = &["temp", "prune-tokens"];
        let words = Words { files: FilenameCompleter::new(), chats: Some(dir.path().to_owned()), settings };
        let history = DefaultHistory::new();
        let complete = |line: &str| {
            let (start, pairs) = words.complete(line, line.len(), &Context::new(&history)).unwrap();
            pairs.into_iter().map(|p| line[..start].to_owned() + &p.replacement).collect::<Vec<_>>()
        };
        assert_eq!(complete("/he"), ["/help "]);
        assert_eq!(complete("/s").len(), 5);
        assert_eq!(complete("/set prune-t"), ["/set prune-tokens "]);
        assert_eq!(complete("/load s"), ["/load sea "]);
        assert_eq!(complete("/set\u{a0}prune-t"), ["/set\u{a0}prune-tokens "]);
        let file = format!("/read {}/no", dir.path().display());
        assert_eq!(complete(&file), [format!("/read {}/notes.txt", dir.path().display())]);
        assert!(complete("he").is_empty() && complete("//he").is_empty() && complete("/nonsense x").is_empty());
    }
}
