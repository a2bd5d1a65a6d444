//! The chat on a terminal: the loop of turns.

mod keep;
mod picture;
mod room;
mod steer;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::run::{Answer, Run, answer, sampler, save};
use super::{Printer, print, prompt_cache, prune};
use crate::chat::{Conversation, Editor, Hush, Input, Role, Style, Template, exit_cleanly_on_sigterm};
use crate::cli;
use crate::error::{Error, Kind, Result};
use crate::generate::StopReason;
use crate::sampler::Sampler;
use crate::session::Session;
use crate::stats::Stats;
use keep::Keep;
pub use keep::{Opened, directory, listing, open};

/// How often the beginning of a long answer is written to disk.
const PART: Duration = Duration::from_secs(1);

/// How full the context is when the user is told.
const NEARLY_FULL: f64 = 0.8;

/// Chats until the user leaves. `once`: one turn, then the end.
pub fn chat(
    run: Run,
    template: &Template,
    system: Option<&str>,
    first: Option<&str>,
    resumed: Option<Opened>,
    once: bool,
) -> Result<()> {
    exit_cleanly_on_sigterm()?;
    let options = &run.options;
    let mut session = Session::new(run.model, &options.context, 1, 1, run.signals.interrupt.clone())?;
    prune::apply(&mut session, run.model, options.prune.as_ref(), options.context.n_threads_batch)?;
    let mut held = prompt_cache::restore(&run, &mut session)?;
    let keep = Keep::new(&run);
    let mut chat = Chat {
        style: Style::new(options),
        sampler: sampler(&run, &session),
        conversation: Conversation::new(template, run.tokenizer, system, options.parse_special),
        verbose: options.log.verbosity > 3,
        run,
        session,
        marks: Vec::new(),
        keep,
        attached: String::new(),
        totals: Totals::default(),
        told: false,
        editor: None,
        once,
    };
    if let Some(opened) = resumed {
        chat.resume(opened, system)?;
    }
    if !once {
        let n_ctx = chat.session.n_ctx();
        chat.run.log.note(&format!("context of {n_ctx} tokens; /help lists commands, Ctrl-D leaves"));
    }
    let result = chat.turns(first);
    let result =
        result.and_then(|()| prune::write_dump(&chat.session, chat.run.model, chat.run.options.prune.as_ref()));
    if let (Some(name), false) = (chat.keep.name(), once) {
        chat.run.log.note(&format!("kept as {name}: pp-run --continue goes on with it"));
    }
    let stored = prompt_cache::store(&chat.run, &chat.session, usize::MAX, &mut held);
    let copied = match &chat.run.options.output_file {
        Some(path) => save(path, &chat.conversation.messages()),
        None => Ok(()),
    };
    // What ended the chat says more than what failed afterwards.
    result.and(stored).and(copied)
}

struct Chat<'a> {
    run: Run<'a>,
    style: Style,
    session: Session<'a>,
    sampler: Sampler,
    conversation: Conversation<'a>,
    /// What `/push` remembers
    marks: Vec<Conversation<'a>>,
    keep: Keep,
    /// What goes with the next message
    attached: String,
    totals: Totals,
    /// The user knows that the context is nearly full.
    told: bool,
    /// All numbers after an answer
    verbose: bool,
    editor: Option<Editor>,
    once: bool,
}

/// Numbers of a whole chat.
#[derive(Debug, Default)]
struct Totals {
    answers: usize,
    read: usize,
    cached: usize,
    read_time: Duration,
    written: usize,
    writing_time: Duration,
}

/// What comes after a turn.
enum Next {
    Turn,
    /// A turn with this text to begin with, for the user to change
    With(String),
    Leave,
}

impl<'a> Chat<'a> {
    /// Reads turns and answers them, the `first` before any is typed.
    fn turns(&mut self, first: Option<&str>) -> Result<()> {
        let mut next = first.map(str::to_owned);
        let mut warned = false;
        let mut initial = String::new();
        let mut turns = 0;
        loop {
            let given = next.is_some();
            let input = match next.take() {
                Some(text) => Input::Text(text),
                None => self.read(&std::mem::take(&mut initial))?,
            };
            let text = match input {
                Input::End => return Ok(()),
                Input::Interrupt if warned => return Err(Error::new(Kind::Interrupted, "interrupted")),
                Input::Interrupt => {
                    warned = true;
                    self.run.log.note("Ctrl-C again leaves; so do Ctrl-D and /exit");
                    continue;
                }
                Input::Text(text) => text,
            };
            warned = false;
            let command = !given && text.trim_start().starts_with('/') && !text.trim_start().starts_with("//");
            let done = match text.trim().to_lowercase().as_str() {
                "" if self.attached.is_empty() => Ok(Next::Turn),
                "exit" | "quit" | "bye" if !given => return Ok(()),
                _ if command => self.command(text.trim()),
                _ => {
                    turns += 1;
                    let text = if given {
                        &text
                    } else {
                        text.strip_prefix('/').filter(|t| t.starts_with('/')).unwrap_or(&text)
                    };
                    self.ask(text).map(|()| Next::Turn)
                }
            };
            match done {
                Ok(Next::Turn) => {}
                Ok(Next::With(text)) => initial = text,
                Ok(Next::Leave) => return Ok(()),
                // What concerns one turn does not end the chat.
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

    /// What the user types; `text` is there to begin with.
    fn read(&mut self, text: &str) -> Result<Input> {
        let options = &self.run.options;
        if self.editor.is_none() {
            let chats = self.keep.dir().map(PathBuf::from);
            self.editor = Some(Editor::new(options.multiline_input, !options.no_history, chats, &self.run.log)?);
        }
        let editor = self.editor.as_mut().expect("made above");
        editor.read(&self.style, text, &self.run.log)
    }

    /// Goes on with a saved chat; `system` is what the command line asks for.
    fn resume(&mut self, opened: Opened, system: Option<&str>) -> Result<()> {
        let Opened { name, saved, past } = opened;
        let same_model = past.fingerprint == self.keep.fingerprint();
        let log = &self.run.log;
        if !same_model {
            log.note(&format!("this chat was with {}: what was said is read anew", past.model.display()));
        }
        if past.torn {
            log.note("the last line of this chat was not written to its end: it is dropped");
        }
        if past.unfinished {
            log.note("the last answer was not finished: what had come is kept");
        }
        let (before, mut changed) = (self.run.options.clone(), Vec::new());
        for (name, value) in &past.settings {
            let flag = format!("--{name}");
            let given = self.run.options.args.iter().filter_map(|a| a.to_str());
            // What was asked for just now counts more.
            if given.into_iter().any(|a| a.split('=').next() == Some(&flag)) {
                continue;
            }
            match cli::set(&self.run.options, name, value) {
                Ok((options, _)) => {
                    self.run.options = options;
                    changed.push(format!("{name} {value}"));
                }
                Err(e) => log.warn(&format!("this chat's {name} {value} is ignored: {e}")),
            }
        }
        if !changed.is_empty() {
            log.note(&format!("as set in this chat: {}", changed.join(", ")));
        }
        if let Err(e) = self.apply_settings() {
            self.run.log.warn(&format!("what was set in this chat is ignored: {e}"));
            self.run.options = before;
            self.apply_settings()?;
        }
        match saved {
            Some(saved) => self.keep.go_on(saved, &past),
            None if self.run.options.no_save => {}
            None => self.run.log.note(&format!("{name} is open in another pp-run: this one goes on in a copy")),
        }
        self.conversation.resume(past.turns, same_model);
        if let Some(system) = system.filter(|s| self.conversation.system() != Some(s)) {
            self.conversation.set_system(system);
        }
        let n = self.conversation.n_exchanges();
        self.run.log.note(&format!("going on with {name}: {n} question{}", if n == 1 { "" } else { "s" }));
        if !self.once {
            self.show_last()?;
        }
        self.keep_turns(None);
        Ok(())
    }

    /// Shows where the conversation is.
    fn show_last(&mut self) -> Result<()> {
        let messages = self.conversation.messages();
        let Some(at) = messages.iter().rposition(|m| m.role == Role::User) else { return Ok(()) };
        let mut printer = Printer::new(&self.style, &self.run.options, false);
        print(&self.style.prompt("> "))?;
        for message in &messages[at..] {
            printer.show(&message.content)?;
            printer.end()?;
        }
        Ok(())
    }

    /// What a changed setting changes.
    fn apply_settings(&mut self) -> Result<()> {
        self.style = Style::new(&self.run.options);
        self.sampler = sampler(&self.run, &self.session);
        let options = &self.run.options;
        prune::apply(&mut self.session, self.run.model, options.prune.as_ref(), options.context.n_threads_batch)
    }

    /// One turn of the user's, and the answer.
    fn ask(&mut self, text: &str) -> Result<()> {
        let options = &self.run.options;
        let attached = std::mem::take(&mut self.attached);
        let content = format!("{}{attached}{text}{}", options.in_prefix, options.in_suffix);
        let before = self.conversation.clone();
        let asked = self.fitting(&content);
        let tokens = match asked {
            Ok(Some(tokens)) => tokens,
            other => {
                self.attached = attached;
                return other.map(drop);
            }
        };
        self.answer(&tokens, before)
    }

    /// Another answer to the last turn.
    fn regenerate(&mut self) -> Result<()> {
        let before = self.conversation.clone();
        match self.conversation.retry()? {
            Some(tokens) => self.answer(&tokens, before),
            None => Err(Error::failed("there is no answer to make again")),
        }
    }

    /// Answers the prompt; `before` is the conversation if nothing comes of it.
    fn answer(&mut self, tokens: &[i32], before: Conversation<'a>) -> Result<()> {
        self.run.take_interrupt();
        self.keep_turns(None);
        let result = {
            let _hush = Hush::new();
            self.generate(tokens)
        };
        let terminated = self.run.signals.terminate.load(Ordering::Relaxed);
        self.run.take_interrupt();
        let Answer { text, tokens, stop, stats } = match result {
            Err(e) => {
                self.conversation = before;
                self.keep_turns(None);
                return Err(e);
            }
            Ok(answer) => answer,
        };
        let interrupted = stop == StopReason::Interrupted;
        if interrupted && tokens.is_empty() {
            self.conversation = before;
            self.keep_turns(None);
            if terminated {
                return Err(self.run.signals.error());
            }
            self.run.log.note("stopped before an answer came: the conversation is as it was");
            return match self.once {
                true => Err(self.run.signals.error()),
                false => Ok(()),
            };
        }
        self.conversation.answer(&text, &tokens, interrupted)?;
        self.keep_turns(Some(&stats));
        if terminated || (interrupted && self.once) {
            return Err(self.run.signals.error());
        }
        self.report(&stop, &stats);
        Ok(())
    }

    /// An answer, shown as it comes, and kept on disk if it takes long.
    fn generate(&mut self, tokens: &[i32]) -> Result<Answer> {
        let mut printer = Printer::new(&self.style, &self.run.options, self.conversation.opens_reasoning());
        let (mut part, mut since) = (String::new(), Instant::now());
        let (keep, log) = (&mut self.keep, &self.run.log);
        let answer = answer(&self.run, &mut self.session, &mut self.sampler, tokens, &mut |text| {
            part.push_str(text);
            if since.elapsed() >= PART {
                keep.part(&std::mem::take(&mut part), log);
                since = Instant::now();
            }
            printer.show(text)
        });
        let shown = printer.end();
        let answer = answer?;
        shown.map(|()| answer)
    }

    fn report(&mut self, stop: &StopReason, stats: &Stats) {
        let t = &mut self.totals;
        t.answers += 1;
        t.read += stats.processed_tokens;
        t.cached += stats.cached_tokens;
        t.read_time += stats.prompt_time;
        t.written += stats.generated_tokens;
        t.writing_time += stats.generation_time;
        let log = &self.run.log;
        if self.run.options.show_timings {
            match self.verbose {
                true => log.note(&stats.line()),
                false => log.status(&stats.short_line(), self.style.has_color()),
            }
        }
        match stop {
            StopReason::Interrupted => log.note("stopped; what came is kept, and the model knows that it was stopped"),
            StopReason::ContextFull => log.warn(&format!(
                "the answer was cut, as the context of {} tokens is full: /clear starts anew, -c N makes it larger",
                self.session.n_ctx()
            )),
            _ => {}
        }
        let full = stats.context_share() >= NEARLY_FULL;
        if full && !self.told {
            self.tell_nearly_full(stats);
        }
        self.told = full;
    }

    /// Brings the file of this chat up to date.
    fn keep_turns(&mut self, stats: Option<&Stats>) {
        let how = stats.map(|s| steer::how(&self.run.options, s));
        self.keep.sync(self.conversation.turns(), how, &self.run.log);
    }
}
