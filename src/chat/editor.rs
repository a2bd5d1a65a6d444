//! Reading the user's turns: line editing and history across runs (rustyline).

use std::fs;
use std::path::PathBuf;

use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;

use crate::error::{Error, Result};
use crate::stats::Log;

/// What the user did.
#[derive(Debug, PartialEq, Eq)]
pub enum Input {
    /// Entered a text, perhaps of several lines.
    Text(String),
    /// Ctrl-C
    Interrupt,
    /// Ctrl-D
    End,
}

/// Longest history.
const MAX_HISTORY: usize = 1000;

/// No history of [`MAX_HISTORY`] turns is near this.
const MAX_HISTORY_BYTES: u64 = 16 << 20;

/// A line editor with a history file.
#[derive(Debug)]
pub struct Editor {
    editor: rustyline::Editor<(), DefaultHistory>,
    history: Option<PathBuf>,
    multiline: bool,
}

impl Editor {
    /// An editor with the history of earlier chats, if it can be read: `log` hears if not. With `multiline` a text ends with a line that
    /// holds only `/`.
    pub fn new(multiline: bool, log: &Log) -> Result<Editor> {
        let failed = |e: ReadlineError| Error::failed(format!("the terminal cannot be used for line editing: {e}"));
        let mut editor = rustyline::Editor::<(), DefaultHistory>::new().map_err(failed)?;
        editor.set_max_history_size(MAX_HISTORY).map_err(failed)?;
        editor.set_auto_add_history(false);
        let mut history = history_file();
        if let Some(path) = &history
            // No history yet is no fault.
            && let Ok(stat) = fs::metadata(path)
        {
            let usable = stat.is_file() && stat.len() <= MAX_HISTORY_BYTES;
            if !usable || editor.load_history(path).is_err() {
                log.note(&format!("{} is no history that can be read: this chat keeps none", path.display()));
                history = None;
            }
        }
        Ok(Editor { editor, history, multiline })
    }

    /// One turn: a line; lines between `"""`; lines that end with `\` and the one after.
    pub fn read(&mut self, prompt: &str) -> Result<Input> {
        let mut text = String::new();
        let mut quoted = false;
        loop {
            let line = match self.editor.readline(if text.is_empty() && !quoted { prompt } else { "... " }) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => return Ok(Input::Interrupt),
                Err(ReadlineError::Eof) if text.is_empty() => return Ok(Input::End),
                Err(ReadlineError::Eof) => break,
                Err(e) => return Err(Error::io(format!("reading the terminal failed: {e}"))),
            };
            let first = text.is_empty() && !quoted;
            if first && line.starts_with('/') {
                text = line;
                break;
            }
            if quoted {
                match line.split_once("\"\"\"") {
                    Some((last, _)) => {
                        text.push_str(last);
                        break;
                    }
                    None => text = text + &line + "\n",
                }
            } else if let Some(rest) = line.strip_prefix("\"\"\"").filter(|_| first) {
                match rest.split_once("\"\"\"") {
                    Some((only, _)) => {
                        text.push_str(only);
                        break;
                    }
                    None => {
                        quoted = true;
                        if !rest.is_empty() {
                            text = format!("{rest}\n");
                        }
                    }
                }
            } else if self.multiline {
                if line.trim() == "/" {
                    break;
                }
                text = text + &line + "\n";
            } else if let Some(part) = line.strip_suffix('\\') {
                text = text + part + "\n";
            } else {
                text.push_str(&line);
                break;
            }
        }
        self.remember(&text);
        Ok(Input::Text(text))
    }

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

/// `$XDG_STATE_HOME/pp-run/history`; none if `PP_RUN_NO_HISTORY` is set.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty());
    if set("PP_RUN_NO_HISTORY").is_some() {
        return None;
    }
    let state =
        set("XDG_STATE_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(set("HOME")?).join(".local/state")))?;
    Some(state.join("pp-run/history"))
}
