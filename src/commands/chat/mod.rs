//! The chat on a terminal: the loop of turns.

mod ab;
mod attach;
mod commands;
mod keep;
mod parameters;
mod picture;
mod resume;
mod room;
mod state;
mod turn;

use super::answer::{Run, draft_model};
use super::output::write_conversation;
use super::{prompt_cache, pruning};
use crate::chat::{Hush, Input, Template, Watch};
use crate::error::{Error, Kind, Result};
use commands::Next;
pub use keep::{Folders, Opened, keep_answer, listing, open};
pub use parameters::how;
use state::Chat;

/// The terminal of a chat, and how it begins.
pub struct Beginning<'a> {
    pub system: Option<&'a str>,
    /// The first question
    pub first: Option<&'a str>,
    pub resumed: Option<Opened>,
    pub watch: Watch,
    /// The terminal's keys wait for a line editor.
    pub hush: Option<Hush>,
}

/// Chats until the user leaves, or with `once` for one turn.
pub fn chat<'a>(run: Run<'a>, template: &'a Template, beginning: Beginning, once: bool) -> Result<()> {
    let Beginning { system, first, resumed, watch, hush } = beginning;
    let options = &run.options;
    let mut session = run.model.timeline(&options.context, run.signals.interrupt.clone())?;
    pruning::apply_to(session.as_mut(), run.model, options.prune.as_ref(), options.context.n_threads_batch, &run.log)?;
    // If there is no room for both, that is said before the first question.
    draft_model(&run, session.as_ref())?;
    let mut chat = Chat::new(run, session, watch, template, system, once)?;
    if !once {
        chat.make_editor(hush)?;
    }
    if let Some(opened) = resumed {
        chat.resume(opened, system)?;
    }
    // A saved chat may have changed how is pruned, on which depends whether the file is of use.
    let mut held = prompt_cache::restore(&chat.run, chat.session.as_mut())?;
    if !once {
        let n_ctx = chat.session.n_ctx();
        chat.run.log.note(&format!("context of {n_ctx} tokens; /help lists commands, Ctrl-D leaves"));
    }
    let result = chat.turns(first);
    let result = result.and_then(|()| pruning::write_dump_of(chat.session.as_ref(), chat.run.model));
    if let (Some(name), false) = (chat.keep.name(), once) {
        chat.run.log.note(&format!("kept as {name}: pp-run --continue goes on with it"));
    }
    let stored = prompt_cache::store(&chat.run, chat.session.as_mut(), usize::MAX, &mut held);
    let copied = match &chat.run.options.output_file {
        Some(path) => write_conversation(path, &chat.conversation.messages()),
        None => Ok(()),
    };
    // If several things failed, the one that ended the chat is the error to report.
    result.and(stored).and(copied)
}

/// The line as a command, or `None` if it is a message for the model.
fn as_command(line: &str) -> Option<&str> {
    if ["exit", "quit", "bye"].iter().any(|w| line.eq_ignore_ascii_case(w)) {
        return Some("/exit");
    }
    // A text of several lines that begins with a slash may begin with the path of a file: it is a message.
    let slash = line.starts_with('/') && !line.starts_with("//");
    let several = line.contains('\n') && !line.to_lowercase().starts_with("/system");
    (slash && !several).then_some(line)
}

impl Chat<'_> {
    /// Reads turns and answers them, the `first` before any is typed.
    fn turns(&mut self, first: Option<&str>) -> Result<()> {
        let mut next = first.map(|text| Input::Quoted(text.to_owned()));
        let mut warned = false;
        let mut turns = 0;
        loop {
            let replaces = std::mem::take(&mut self.replaces);
            let input = match next.take() {
                Some(input) => input,
                // Ctrl-C was pressed while no line was being read.
                None if self.run.signals.take_interrupt() => Input::Interrupt,
                None => self.read()?,
            };
            let (text, quoted) = match input {
                Input::End => return Ok(()),
                // The user asked for it, and needs no message.
                Input::Interrupt if warned => return Err(Error::new(Kind::Interrupted, "")),
                Input::Interrupt => {
                    warned = true;
                    self.run.log.note("Ctrl-C again leaves; so do Ctrl-D and /exit");
                    continue;
                }
                Input::Text(text) => (text, false),
                Input::Quoted(text) => (text, true),
            };
            warned = false;
            let line = text.trim();
            let done = match as_command(line) {
                _ if line.is_empty() && self.attached.is_empty() => Ok(Next::Turn),
                Some(command) if !quoted => {
                    self.run.signals.take_interrupt();
                    self.command(command)
                }
                _ => {
                    turns += 1;
                    let message = match line.strip_prefix("//").filter(|_| !quoted) {
                        Some(rest) => format!("/{rest}"),
                        None => text,
                    };
                    self.ask(&message, replaces).map(|()| Next::Turn)
                }
            };
            match done {
                Ok(Next::Turn) => {}
                Ok(Next::Leave) => return Ok(()),
                // An error of one turn does not end the chat.
                Err(e)
                    if !self.once
                        && !matches!(
                            e.kind(),
                            Kind::Interrupted | Kind::Terminated | Kind::Internal | Kind::Memory
                        ) =>
                {
                    self.run.log.error(&e.to_string());
                    self.run.model.gguf().check_unchanged()?;
                }
                Err(e) => return Err(e),
            }
            if self.once || (self.run.options.single_turn && turns > 0) {
                return Ok(());
            }
        }
    }
}
