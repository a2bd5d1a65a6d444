//! The chat on a terminal: the loop of turns.

mod keep;
mod picture;
mod room;
mod steer;

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::run::Options;
use super::run::{Answer, Run, answer, sampler, save};
use super::{Printer, print, prompt_cache, pruning};
use crate::chat::{Conversation, Editor, Hush, Input, Role, Style, Template, Watch};
use crate::error::{Error, Kind, Result, escape};
use crate::generate::StopReason;
use crate::sampler::Sampler;
use crate::engine::Session;
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
    let watch = run.signals.watch()?;
    let options = &run.options;
    let mut session = Session::new(run.model, &options.context, 1, 1, run.signals.interrupt.clone())?;
    pruning::apply(&mut session, run.model, options.prune.as_ref(), options.context.n_threads_batch)?;
    let mut held = prompt_cache::restore(&run, &mut session)?;
    let keep = Keep::new(&run, template);
    let mut chat = Chat {
        style: Style::new(&options.look),
        start: options.clone(),
        watch,
        initial: String::new(),
        replaces: false,
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
        result.and_then(|()| pruning::write_dump(&chat.session, chat.run.model, chat.run.options.prune.as_ref()));
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
    /// What the line editor begins with
    initial: String,
    /// What is typed next takes the last exchange's place
    replaces: bool,
    /// Options before any setting of a chat
    start: Options,
    watch: Watch,
    totals: Totals,
    /// The user knows that the context is nearly full.
    told: bool,
    /// All numbers after an answer
    verbose: bool,
    editor: Option<Editor>,
    once: bool,
}

/// The command that a line is, if it is no message.
fn as_command(line: &str) -> Option<&str> {
    if ["exit", "quit", "bye"].iter().any(|w| line.eq_ignore_ascii_case(w)) {
        return Some("/exit");
    }
    // A text of several lines may begin with the path of a file.
    let slash = line.starts_with('/') && !line.starts_with("//");
    let several = line.contains('\n') && !line.to_lowercase().starts_with("/system");
    (slash && !several).then_some(line)
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
    Leave,
}

impl<'a> Chat<'a> {
    /// Reads turns and answers them, the `first` before any is typed.
    fn turns(&mut self, first: Option<&str>) -> Result<()> {
        let mut next = first.map(|text| Input::Quoted(text.to_owned()));
        let mut warned = false;
        let mut turns = 0;
        loop {
            let replaces = std::mem::take(&mut self.replaces);
            let input = match next.take() {
                Some(input) => input,
                // Pressed when nobody was reading.
                None if self.run.take_interrupt() => Input::Interrupt,
                None => self.read()?,
            };
            let (text, quoted) = match input {
                Input::End => return Ok(()),
                Input::Interrupt if warned => return Err(Error::new(Kind::Interrupted, "interrupted")),
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
                    self.run.take_interrupt();
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

    /// What the user types.
    fn read(&mut self) -> Result<Input> {
        let options = &self.run.options;
        if self.editor.is_none() {
            let chats = self.keep.dir().map(PathBuf::from);
            let (lines, keep, settings) = (options.multiline_input, !options.no_history, options.settings.names);
            let (editor, note) = Editor::new(lines, keep, settings, chats, self.watch.away.clone())?;
            note.iter().for_each(|note| self.run.log.note(note));
            self.editor = Some(editor);
        }
        let editor = self.editor.as_mut().expect("made above");
        self.watch.reading.store(true, Ordering::Relaxed);
        let log = &self.run.log;
        let input = editor.read(&self.style, &std::mem::take(&mut self.initial), &|e| log.error(&e.to_string()));
        self.watch.reading.store(false, Ordering::Relaxed);
        input
    }

    /// Goes on with a saved chat; `system` is what the command line asks for.
    fn resume(&mut self, opened: Opened, system: Option<&str>) -> Result<()> {
        let Opened { name, saved, past } = opened;
        let same_model = past.fingerprint == self.keep.fingerprint();
        let log = &self.run.log;
        if !same_model {
            let model = past.model.display();
            log.note(&format!("this chat was with {model} and its template: what was said is read anew"));
        }
        if past.torn {
            log.note("the last line of this chat was not written to its end: it is dropped");
        }
        if past.unfinished {
            log.note("the last answer was not finished: what had come is kept");
        }
        let settings: Vec<(&str, &str)> = past
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            // What was asked for just now counts more.
            .filter(|(name, _)| !self.start.settings.given.iter().any(|g| g == name))
            .collect();
        // At once, as one may need another; else each that can be.
        self.run.options = match (self.start.settings.change)(&self.start, &settings) {
            Ok((options, _)) => options,
            Err(_) => settings.iter().fold(self.start.clone(), |options, &(name, value)| {
                (options.settings.change)(&options, &[(name, value)]).map(|set| set.0).unwrap_or_else(|e| {
                    log.warn(&format!("this chat's {name} {value} is ignored: {e}"));
                    options
                })
            }),
        };
        if let Err(e) = self.apply_settings(None) {
            self.run.log.warn(&format!("what was set in this chat is ignored: {e}"));
            self.run.options = self.start.clone();
            self.apply_settings(None)?;
        } else if !settings.is_empty() {
            let said: Vec<String> = settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
            self.run.log.note(&format!("as set in this chat: {}", said.join(", ")));
        }
        match saved {
            Some(saved) => self.keep.go_on(saved, &past),
            None => {
                self.keep.begin();
                if !self.run.options.no_save {
                    self.run.log.note(&format!("{name} is open in another pp-run: this one goes on in a copy"));
                }
                past.settings.iter().for_each(|(name, value)| self.keep.set(name, value, &self.run.log));
            }
        }
        if let Some(question) = &past.unanswered {
            self.run.log.note("the last question had no answer: it is here to be asked again");
            self.initial = self.typed(&question.message.content);
        }
        self.attached.clear();
        self.marks.clear();
        self.conversation.resume(past.turns, same_model && !past.by_hand);
        // A configuration is for chats that begin.
        let asked_for = self.start.settings.given.iter().any(|g| g.starts_with("system-prompt"));
        if let Some(system) = system.filter(|s| asked_for && self.conversation.system() != Some(s)) {
            self.conversation.set_system(system);
            self.run.log.note("the system prompt is another one now, as the command line says");
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
        let asked: Vec<String> = messages[at].content.lines().map(escape).collect();
        print(&format!("{}{}\n", self.style.prompt("> "), asked.join("\n")))?;
        for answer in &messages[at + 1..] {
            let mut printer = Printer::new(&self.style, &self.run.options.look, false);
            printer.show(&answer.content)?;
            printer.end()?;
        }
        Ok(())
    }

    /// Does what the settings say now; only what differs from those `before`, if there were any.
    fn apply_settings(&mut self, before: Option<&Options>) -> Result<()> {
        self.style = Style::new(&self.run.options.look);
        let options = &self.run.options;
        if before.is_none_or(|b| b.sampling != options.sampling) {
            self.sampler = sampler(&self.run, &self.session);
        }
        if before.is_none_or(|b| b.prune != options.prune) {
            let n_threads = options.context.n_threads_batch;
            pruning::apply(&mut self.session, self.run.model, options.prune.as_ref(), n_threads)?;
        }
        Ok(())
    }

    /// What the user typed of a turn, as it would be typed again.
    fn typed(&self, content: &str) -> String {
        let options = &self.run.options;
        let text = content.strip_prefix(options.in_prefix.as_str()).unwrap_or(content);
        let text = text.strip_suffix(options.in_suffix.as_str()).unwrap_or(text);
        if text.starts_with('/') { format!("/{text}") } else { text.to_owned() }
    }

    /// One turn of the user's, and the answer; it `replaces` the last exchange, or comes after it.
    fn ask(&mut self, text: &str, replaces: bool) -> Result<()> {
        self.run.take_interrupt();
        let options = &self.run.options;
        let content = format!("{}{}{text}{}", options.in_prefix, self.attached, options.in_suffix);
        let before = self.conversation.clone();
        if replaces {
            self.conversation.undo();
        }
        let done = match self.fitting(&content) {
            Ok(Some(tokens)) => self.answer(&tokens, before, true),
            other => {
                self.conversation = before;
                other.map(|_| false)
            }
        };
        // What did not go with this message goes with the next.
        if let Ok(true) = done {
            self.attached.clear();
        }
        done.map(drop)
    }

    /// Another answer to the last turn.
    fn regenerate(&mut self) -> Result<()> {
        let before = self.conversation.clone();
        let nothing = || Error::failed("there is no answer to make again");
        if self.conversation.turns().last().is_none_or(|t| t.message.role != Role::Assistant) {
            return Err(nothing());
        }
        let content = self.conversation.undo().ok_or_else(nothing)?;
        match self.fitting(&content) {
            // The file has the old answer until there is another.
            Ok(Some(tokens)) => self.answer(&tokens, before, false).map(drop),
            other => {
                self.conversation = before;
                other.map(drop)
            }
        }
    }

    /// Answers the prompt, and returns whether anything came; `before` is the conversation if not. A question that is `new` is kept at once.
    fn answer(&mut self, tokens: &[i32], before: Conversation<'a>, new: bool) -> Result<bool> {
        if new {
            self.keep_turns(None);
        }
        let result = {
            let _hush = (!self.once).then(Hush::begin);
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
                false => Ok(false),
            };
        }
        self.conversation.answer(&text, &tokens, interrupted)?;
        self.keep_turns(Some(&stats));
        if terminated || (interrupted && self.once) {
            return Err(self.run.signals.error());
        }
        self.report(&stop, &stats);
        Ok(true)
    }

    /// An answer, shown as it comes, and kept on disk if it takes long.
    fn generate(&mut self, tokens: &[i32]) -> Result<Answer> {
        let mut printer = Printer::new(&self.style, &self.run.options.look, self.conversation.opens_reasoning());
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
        // Where none began there is nothing to end.
        let came = answer.as_ref().is_ok_and(|a| !a.tokens.is_empty());
        let ended = if came || printer.begun { printer.end() } else { Ok(()) };
        let answer = answer?;
        ended.map(|()| answer)
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
