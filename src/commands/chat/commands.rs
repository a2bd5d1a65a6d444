//! The commands of a chat.

use super::attach::file_name;
use super::keep::{Folders, listing, open};
use super::parameters::parameters;
use super::picture;
use super::state::Chat;
use crate::chat::{Reasoning, Role, SLASHES, parse_slash, width};
use crate::commands::answer::tokens_in_lines;
use crate::commands::output::print;
use crate::commands::run::{Options, Resume};
use crate::commands::show;
use crate::error::{Error, Result, escape};
use crate::generate::Draft;
use crate::stats::{Facts, per_second};
use crate::system::memory;
use crate::system::terminal::fill;

fn no_answer() -> Error {
    Error::failed("there was no answer yet")
}

/// What comes after a turn.
pub enum Next {
    Turn,
    Leave,
}

impl Chat<'_> {
    /// A line that begins with a slash.
    pub fn command(&mut self, line: &str) -> Result<Next> {
        let (slash, rest) = parse_slash(line)?;
        match slash.name {
            "/help" => self.help()?,
            "/exit" => return Ok(Next::Leave),
            "/regen" => self.regenerate()?,
            "/ab" => self.compare(rest)?,
            "/undo" => self.undo()?,
            "/edit" => {
                let last = self.conversation.turns().iter().rev().find(|t| t.message.role == Role::User);
                let text = last.map(|t| self.typed(&t.message.content));
                let text = text.ok_or_else(|| Error::failed("there is no question to change"))?;
                let editor = self.editor.as_ref().expect("a command was typed");
                self.initial = editor.edit(&text)?;
                self.run.signals.take_interrupt();
                self.replaces = true;
            }
            "/clear" => {
                self.conversation.clear();
                self.attached.clear();
                self.keep_turns(None);
                self.run.log.note("the conversation is forgotten");
            }
            "/push" => {
                self.marks.push(self.conversation.clone());
                self.run
                    .log
                    .note(&format!("this point is remembered ({} in all): /pop goes back to it", self.marks.len()));
            }
            "/pop" => {
                self.conversation =
                    self.marks.pop().ok_or_else(|| Error::failed("no point is remembered: /push does that"))?;
                self.keep_turns(None);
                self.run.log.note(&format!("back where you were: {} questions", self.conversation.n_exchanges()));
            }
            "/system" => self.system(rest)?,
            "/set" => self.set(rest)?,
            "/prune" if rest.is_empty() => self.run.log.note(&self.pruned()),
            "/prune" => {
                self.change("prune", rest)?;
                self.run.log.note(&self.pruned());
            }
            "/think" if rest.is_empty() => self.run.log.note(&self.thinking()),
            "/think" => {
                let name = if rest.parse::<i64>().is_ok() { "reasoning-budget" } else { "reasoning" };
                self.change(name, rest)?;
                self.run.log.note(&self.thinking());
            }
            "/read" | "/glob" if rest == "-" => {
                self.attached.clear();
                self.run.log.note("no file goes with your next message");
            }
            "/read" | "/glob" if rest.is_empty() => {
                return Err(Error::usage("which files? /read FILE, /glob PATTERN; - takes them back"));
            }
            "/read" => self.attach(&[file_name(rest)])?,
            "/glob" => self.attach(&self.files_of(rest)?)?,
            "/show" => self.show(rest)?,
            "/context" => self.context()?,
            "/stats" => self.stats()?,
            "/why" => self.why()?,
            "/map" => self.map()?,
            "/save" => self.save(rest)?,
            "/load" => self.load(rest)?,
            other => unreachable!("{other} is in the list of commands"),
        }
        Ok(Next::Turn)
    }

    fn help(&self) -> Result<()> {
        let mut out = String::new();
        let mut add = |what: &str, help: &str| {
            out.push_str(&fill(&format!("{what:<16} {help}"), width(), &" ".repeat(17)));
            out.push('\n');
        };
        for s in SLASHES {
            add(&format!("{} {}", s.name, s.argument), s.help);
        }
        add("//text", "a message that begins with /");
        add(
            "\"\"\"",
            "begins and ends a message of several lines; \\ before Enter, Ctrl-J and Alt-Enter begin a new line",
        );
        add("Ctrl-G", "go on in your editor (VISUAL, EDITOR)");
        add("Tab", "complete commands, files, settings and chats; Ctrl-R searches in the history");
        add("Ctrl-C", "stop the answer; what came is kept");
        add("Ctrl-\\", "end what the model thinks, and let it answer");
        print(&out)
    }

    /// Takes the last exchange back.
    fn undo(&mut self) -> Result<()> {
        self.conversation.undo().ok_or_else(|| Error::failed("there is nothing to take back"))?;
        self.keep_turns(None);
        let n = self.conversation.n_exchanges();
        self.run.log.note(&format!("the last question and its answer are taken back; {n} left"));
        Ok(())
    }

    fn system(&mut self, text: &str) -> Result<()> {
        match text {
            "" => {
                let now = self.conversation.system().map_or_else(|| "there is no system prompt".to_owned(), escape);
                return print(&(now + "\n"));
            }
            "-" => self.conversation.set_system(""),
            text => self.conversation.set_system(text),
        }
        // The conversations that /push remembered begin with the old system prompt.
        let marks = if self.marks.is_empty() { "" } else { "; what /push remembered is forgotten" };
        self.marks.clear();
        self.keep_turns(None);
        let log = &self.run.log;
        log.note(&format!(
            "the system prompt holds from the next turn on; what was said before it is read anew{marks}"
        ));
        Ok(())
    }

    /// `/set NAME VALUE`, as ollama has it too.
    fn set(&mut self, rest: &str) -> Result<()> {
        let rest = rest.strip_prefix("parameter ").unwrap_or(rest).trim();
        let (name, value) = rest.split_once([' ', '=']).map_or((rest, ""), |(n, v)| (n, v.trim()));
        let timings = |chat: &mut Self, on: bool, verbose: bool| {
            chat.run.options.show_timings = on;
            chat.verbose = verbose;
            let what = match (on, verbose) {
                (false, _) => "no line of numbers after an answer (/set verbose, /set quiet off bring it back)",
                (true, false) => "one short line of numbers after each answer",
                (true, true) => "all numbers after each answer",
            };
            chat.run.log.note(what);
        };
        match (name, value) {
            ("", _) => return print(&(parameters(&self.run.options).join("\n").replace('=', " ") + "\n")),
            ("quiet", "" | "on") => timings(self, false, false),
            ("quiet", _) | ("verbose", "off") => timings(self, true, false),
            ("verbose", _) => timings(self, true, true),
            ("wordwrap", _) => self.change("wrap", "on").map(drop)?,
            ("nowordwrap", _) => self.change("wrap", "off").map(drop)?,
            ("system", text) => self.system(text)?,
            (name, value) => {
                let name = self.change(name, value)?;
                self.run
                    .log
                    .note(&format!("{name} is {} from the next turn on", if value.is_empty() { "on" } else { value }));
            }
        }
        Ok(())
    }

    /// Changes a setting and returns its name. If that fails, nothing is changed.
    fn change(&mut self, name: &str, value: &str) -> Result<&'static str> {
        let name = self.try_out(name, value)?;
        self.keep.set(name, value, &self.run.log);
        Ok(name)
    }

    /// Changes a setting for now: the saved chat is not told. Returns its name. If that fails, nothing is changed.
    pub fn try_out(&mut self, name: &str, value: &str) -> Result<&'static str> {
        let (options, names) = (self.run.options.settings.change)(&self.run.options, &[(name, value)])?;
        let Options { show_timings, .. } = self.run.options;
        let before = std::mem::replace(&mut self.run.options, Options { show_timings, ..options });
        if let Err(e) = self.apply_settings(Some(&before)) {
            // The settings are put back as they were; they worked before, so they work again.
            self.run.options = before;
            self.apply_settings(None)?;
            return Err(e);
        }
        Ok(names[0])
    }

    fn pruned(&self) -> String {
        match self.session.own().and_then(|s| s.prune_options()) {
            Some(o) => {
                let of_answers = match o.answer {
                    0.0 => String::new(),
                    answer => format!(", and {:.0}% of heads and channels of answers", 100.0 * answer),
                };
                let of_reading = format!("{:.0}% of the weights are left out of reading", 100.0 * o.ratio);
                format!("{of_reading}{of_answers} from the next turn on")
            }
            _ => "nothing is left out".to_owned(),
        }
    }

    fn thinking(&self) -> String {
        let options = &self.run.options;
        let shown = match options.look.reasoning {
            Some(Reasoning::Show) => "shown",
            Some(Reasoning::Hide) => "left out",
            Some(Reasoning::Dim) | None => "dimmed",
        };
        match options.reasoning_budget {
            Some(0) => "the model answers without thinking, from the next turn on".to_owned(),
            Some(n) => format!("what the model thinks is {shown}, and ends after {n} tokens, from the next turn on"),
            None => format!("what the model thinks is {shown}, from the next turn on"),
        }
    }

    fn show(&self, what: &str) -> Result<()> {
        let gguf = self.run.model.gguf();
        match what {
            "info" | "" => print(&show::overview(gguf)),
            "system" => {
                let text = self.conversation.preamble().unwrap_or("there is no system prompt");
                print(&format!("{}\n", text.lines().map(escape).collect::<Vec<_>>().join("\n")))
            }
            "template" => {
                let text = self.conversation.template().source();
                print(&format!("{}\n", text.lines().map(escape).collect::<Vec<_>>().join("\n")))
            }
            "prompt" => {
                let (tokens, _) = self.last.as_ref().ok_or_else(no_answer)?;
                print(&(tokens_in_lines(self.run.tokenizer, tokens).join("\n") + "\n"))
            }
            "parameters" => print(&(parameters(&self.run.options).join("\n").replace('=', " ") + "\n")),
            "prunable" => print(&show::prunable(gguf)?),
            other => {
                let known = "info, system, template, prompt, parameters, prunable";
                Err(Error::usage(format!("/show {other}: not one of: {known}")))
            }
        }
    }

    fn stats(&self) -> Result<()> {
        let t = &self.totals;
        let memory = memory::peak().map_or_else(|| "unknown".to_owned(), memory::human);
        print(&format!(
            "answers            {}\ntokens read        {} at {:.1} tok/s; {} more were in the cache\n\
             tokens written     {} at {:.1} tok/s\ncontext            {} of {} tokens\npeak memory        {memory}\n\
             seed               {}\npruning            {}\nkept as            {}\n",
            t.answers,
            t.read,
            per_second(t.read, t.read_time),
            t.cached,
            t.written,
            per_second(t.written.saturating_sub(t.answers), t.writing_time),
            self.conversation.timeline().len(),
            self.session.n_ctx(),
            t.seed.map_or_else(|| "none yet".to_owned(), |seed| seed.to_string()),
            self.session.prune_report().map_or_else(|| "none".to_owned(), |r| r.line()),
            self.keep.name().unwrap_or("(not kept)"),
        ))
    }

    /// How the last answer came about.
    fn why(&self) -> Result<()> {
        let (_, stats) = self.last.as_ref().ok_or_else(no_answer)?;
        let (options, own) = (&self.run.options, self.session.own());
        let no_drafts = match (&options.draft, own) {
            (Some(Draft::Off), _) => "off (--draft off)",
            (_, None) => "none: libllama writes this model's answers",
            (Some(Draft::Model(_)), _) if self.run.drafter.is_none() => {
                "none: the model that is to draft is not much smaller than the one that answers"
            }
            _ => "none: with these kernels and settings several tokens at once are not computed as one by one",
        };
        let context = &options.context;
        let threads = format!("{} for answers, {} for prompts", context.n_threads, context.n_threads_batch);
        let (k, v) = (context.cache_type_k.name(), context.cache_type_v.name());
        let bytes = own.map_or_else(String::new, |s| format!(", {} in all", memory::human(s.cache_bytes())));
        let facts = Facts {
            no_drafts: no_drafts.to_owned(),
            threads,
            kernels: self.run.model.kernels_in_words(),
            cache: format!("keys in {k}, values in {v}{bytes}"),
        };
        let mut out = String::new();
        for (name, text) in stats.parts(&facts) {
            out.push_str(&fill(&format!("{name:<10} {text}"), width(), &" ".repeat(11)));
            out.push('\n');
        }
        print(&out)
    }

    fn map(&self) -> Result<()> {
        let Some((masks, dims)) = self.session.own().and_then(|s| s.kept()) else {
            return Err(Error::failed("nothing is left out, so there is no map: /prune 0.2 leaves out a fifth"));
        };
        if masks.is_empty() {
            return Err(Error::failed(
                "no prompt was long enough for pruning yet, so all heads and channels were in use",
            ));
        }
        print(&picture::map(masks, dims, width().unwrap_or(80)))
    }

    fn save(&mut self, name: &str) -> Result<()> {
        if name.is_empty() {
            self.run.log.note(&match self.keep.name() {
                Some(name) => format!("this chat is kept as {name}: /save NAME names it"),
                None => "this chat is not kept yet: /save NAME does that".to_owned(),
            });
            return Ok(());
        }
        self.keep.rename(name, self.conversation.turns())?;
        self.run.log.note(&format!("kept as {name}: pp-run --continue {name}, or /load {name}, goes on with it"));
        Ok(())
    }

    fn load(&mut self, name: &str) -> Result<()> {
        if name.is_empty() {
            let list = listing(&Folders::find()?.chats)?;
            return print(if list.is_empty() { "no chat is saved yet\n" } else { &list });
        }
        if self.keep.name() == Some(name) {
            return Err(Error::usage(format!("this is {name}")));
        }
        let opened = open(&Resume::Named(name.to_owned()), self.run.options.no_save)?;
        self.resume(opened, None)
    }
}
