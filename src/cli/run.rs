//! Flags of an answer or a chat, and the options that they become.

use std::path::{Path, PathBuf};

use clap::Args;

use super::answer::AnswerArgs;
use super::context::{self, ContextArgs};
use super::log::{self, LogArgs};
use super::model::{self, ModelArgs};
use super::prune::{self, PruneArgs};
use super::sampling::{self, SamplingArgs};
use super::value::{bytes, not_one_of, out_of_range, tristate, unescape};
use crate::chat::Reasoning;
use crate::chat::template::Source;
use crate::chat::terminal::{self, Tristate};
use crate::commands::run::{ContextFull, Options, OutputFormat, Resume, Settings};
use crate::constraint::{self, Form};
use crate::error::{Error, Result};
use crate::generate::{Draft, Limits, Predict};

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The model, a GGUF file
    ///
    /// A model in several files, as llama-gguf-split makes them, is given by its first.
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true)]
    pub model: Option<PathBuf>,
    /// Lists the GPUs that this build knows, and ends
    #[arg(long)]
    pub list_devices: bool,
    /// The prompt; text on stdin is added below it
    ///
    /// It goes through the model's chat template, if there is one; --no-conversation completes it as it is.
    #[arg(long, short = 'p', value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// The prompt from a file, less one final line break; '-' = stdin
    ///
    /// With -p too, which comes below it: a question to a text. Other questions to the same text are answered without reading it again.
    #[arg(long, short = 'f', value_name = "FILE", allow_hyphen_values = true)]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub answer: AnswerArgs,
    /// Guess what comes next: ngram, model:FILE, off [default: ngram where the answer stays the same]
    ///
    /// Up to 7 tokens are computed along with the next one, and count as far as the answer goes on with them. ngram: where the last tokens of
    /// the text came before, those that followed them; texts that repeat parts of their prompt are written faster. model:FILE (-md FILE):
    /// what a small model with the same vocabulary would say, as long as it is sure. With pp-run's own kernels the answer is the
    /// same, token for token, and ngram is the default. With ggml's, rounding depends on how many tokens are computed together, so
    /// that drafts may change an answer. Answers that are pruned (--prune-answer), and those by libllama, have no drafts.
    #[arg(long, value_name = "HOW", help_heading = "Sampling")]
    pub draft: Option<String>,
    #[arg(long, short = 'i', hide = true, alias = "interactive-first")]
    pub interactive: bool,
    /// One turn, then exit [-st]
    #[arg(long)]
    pub single_turn: bool,
    /// Print the prompt before the answer
    #[arg(long, overrides_with = "no_display_prompt")]
    pub display_prompt: bool,
    #[arg(long, hide = true)]
    pub no_display_prompt: bool,
    /// Print the prompt on stderr as the model gets it, token by token
    ///
    /// Each line has a token's number and its text, that of special tokens in [brackets]. In a chat, /show prompt does that.
    #[arg(long)]
    pub verbose_prompt: bool,
    /// Leave stdin alone: no text on it is added to the prompt
    ///
    /// For loops that read their lines from stdin (while read), and for programs that start pp-run and leave its stdin open.
    #[arg(long)]
    pub no_stdin: bool,
    /// Control characters of the answer reach the terminal, which obeys them
    ///
    /// Otherwise a terminal shows them; a pipe always gets the answer as it is.
    #[arg(long)]
    pub raw: bool,
    /// Lines of the chat end with a lone '/' instead of at each Enter [-mli]
    #[arg(long)]
    pub multiline_input: bool,
    /// Colours: on, off, auto [-co]
    ///
    /// auto heeds NO_COLOR, CLICOLOR_FORCE and TERM=dumb.
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_missing_value = "on", default_value = "auto", allow_negative_numbers = true)]
    pub color: String,
    /// No cursor control: no colours, no progress bars
    #[arg(long)]
    pub simple_io: bool,
    /// text, or json for one object
    ///
    /// The object has the text, counts, timings, peak memory and the reason for the end. It is for single answers, not for
    /// chats.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub output_format: String,
    /// Copy the conversation to a file
    #[arg(long, short = 'o', value_name = "FILE", allow_hyphen_values = true)]
    pub output_file: Option<PathBuf>,
    /// Neither keep long prompts nor look them up
    ///
    /// Otherwise keys and values of prompts, from 256 tokens on that were read, are kept in ~/.cache/pp-run, for your eyes only, and a
    /// prompt that begins as one of them goes on from there: a second question to the same text is answered at once. stderr says so
    /// (811 of 840 tokens from the cache), and the answer is the same, token for token. --no-save keeps none either, and pp-run cache
    /// --clear deletes them. A chat does this with its first prompt. Models that libllama runs, and --prune, have no such prompts.
    #[arg(long, alias = "no-cache-prompt")]
    pub no_prompt_cache: bool,
    /// What kept prompts may take on disk: 500M, 2G; the least recently used go first
    #[arg(long, value_name = "SIZE", default_value = "2G", allow_hyphen_values = true)]
    pub prompt_cache_limit: String,
    /// Keep the prompt's keys and values in this file, for prompts that begin alike
    ///
    /// The next run with it processes only what its prompt does not have in common; the line of statistics says how much that
    /// was: 811 tokens (810 cached). A file that is damaged, or of another model, cache type, context, RoPE setting or --prune,
    /// is ignored with a warning and replaced; one that is something else is an error and never touched. With --prune, answers
    /// choose what they keep by what was processed in their own run. A model with a state or with windows that libllama runs
    /// takes all of a file's tokens or none.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub prompt_cache: Option<PathBuf>,
    /// Keep the answer's there too
    #[arg(long, requires = "prompt_cache", conflicts_with = "prompt_cache_ro")]
    pub prompt_cache_all: bool,
    /// Read the prompt cache, and never write it
    #[arg(long, requires = "prompt_cache")]
    pub prompt_cache_ro: bool,
    /// Write when each node of the prompt's graphs was computed, as a Chrome trace
    ///
    /// It is of one answer, not of a chat, for ui.perfetto.dev or chrome://tracing. Nodes are computed one by one then, which
    /// takes somewhat longer.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub trace: Option<PathBuf>,
    /// Text before each input
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub in_prefix: String,
    /// Text after each input
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, allow_hyphen_values = true)]
    pub in_suffix: String,
    #[arg(long, hide = true, alias = "perf", overrides_with = "no_show_timings")]
    pub show_timings: bool,
    /// No line of statistics after an answer
    #[arg(long, alias = "no-perf")]
    pub no_show_timings: bool,
    /// Go on with the last chat or answer of this folder, or with one of those that pp-run chats lists
    ///
    /// If none was begun in this folder, it is the last chat of all. The model is the chat's, unless -m names another. A text from a pipe,
    /// or -p, is one turn of it: pp-run --continue -p "and of Italy?". With the same model nothing is tokenised anew, and with
    /// --prompt-cache nothing is computed again. Of single answers (-p) the last 20 are kept for this, for your eyes only; one that is gone
    /// on with is a chat from then on. Answers without a chat template are no chats.
    #[arg(long = "continue", value_name = "CHAT", num_args = 0..=1, default_missing_value = "", help_heading = "Chat")]
    pub resume: Option<String>,
    /// Do not save this chat, answer or prompt
    ///
    /// What is typed still goes to the history, unless --no-history is given too.
    #[arg(long, help_heading = "Chat")]
    pub no_save: bool,
    /// Do not write what is typed to the history
    #[arg(long, help_heading = "Chat")]
    pub no_history: bool,
    /// What to do when the context is full: ask, stop, shift, summarise
    ///
    /// It is announced at 80%, and nothing is dropped silently. shift forgets turns after the first, the oldest of them first,
    /// until the rest takes half of the context; summarise puts a summary, which the model writes, in the place of the older
    /// half of the turns; stop takes no more turns until you make room.
    #[arg(long, value_name = "WHAT", default_value = "ask", help_heading = "Chat")]
    pub context_full: String,
    #[arg(long, hide = true)]
    pub context_shift: bool,
    /// Show Markdown as what it means: on, off, auto
    ///
    /// auto is on for a terminal with colours. Headings, bold text, lists and code look like that, code has the colours of its
    /// language, and reasoning is dimmed.
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "Chat")]
    pub markdown: String,
    /// Keep words whole at the terminal's right edge: on, off, auto
    #[arg(long, value_name = "WHEN", default_value = "auto", help_heading = "Chat")]
    pub wrap: String,
    /// Where flags are set for all answers and chats [default: ~/.config/pp-run/config.toml]
    ///
    /// See CONFIGURATION below.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    pub config: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub offline: bool,
    /// Shortest prompt, and shortest answer, that is pruned, in tokens [default: auto]
    ///
    /// auto is where each begins to pay: for prompts by what is left out, for answers (--prune-answer) as measured on this machine when
    /// the first one comes.
    #[arg(long, value_name = "N", help_heading = "Probe Pruning")]
    pub prune_min_tokens: Option<String>,
    #[command(flatten)]
    pub prune: PruneArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

pub fn options(model: PathBuf, a: RunArgs, settings: Settings) -> Result<Options> {
    if a.answer.no_jinja {
        return Err(Error::usage(
            "--no-jinja: pp-run renders templates with Jinja only; --no-conversation goes without one",
        ));
    }
    let text = |s: String| if a.answer.no_escape { s } else { unescape(&s) };
    let predict = predict(a.answer.predict)?;
    let conversation = match (a.answer.conversation, a.answer.no_conversation) {
        (_, true) => Tristate::Off,
        (true, _) => Tristate::On,
        _ => Tristate::Auto,
    };
    let template = match (a.answer.chat_template, a.answer.chat_template_file) {
        (Some(t), _) => Some(Source::TextOrName(t)),
        (None, Some(f)) => Some(Source::File(f)),
        (None, None) => None,
    };
    let mut template_kwargs = a.answer.chat_template_kwargs.as_deref().map(object).transpose()?;
    let reasoning = match a.answer.reasoning.as_str() {
        "auto" | "on" => None,
        "show" => Some(Reasoning::Show),
        "dim" => Some(Reasoning::Dim),
        "hide" | "off" => Some(Reasoning::Hide),
        other => return Err(not_one_of("--reasoning", other, "show, dim, hide, off, auto")),
    };
    let reasoning_budget = match a.answer.reasoning_budget {
        _ if a.answer.reasoning == "off" => Some(0),
        -1 => None,
        n => Some(u64::try_from(n).map_err(|_| out_of_range("--reasoning-budget", n, "-1 or more"))?),
    };
    if a.answer.reasoning == "off" {
        template_kwargs.get_or_insert_default().entry("enable_thinking").or_insert(false.into());
    }
    let output_format = match a.output_format.as_str() {
        "text" => OutputFormat::Text,
        "json" => OutputFormat::Json,
        other => return Err(not_one_of("--output-format", other, "text, json")),
    };
    if a.no_stdin && a.file.as_deref() == Some(Path::new("-")) {
        return Err(Error::usage("-f - takes the prompt from stdin, which --no-stdin leaves alone: use one of them"));
    }
    if a.resume.is_some() && (output_format == OutputFormat::Json || conversation == Tristate::Off) {
        return Err(Error::usage(
            "--continue goes on with a chat: --output-format json and --no-conversation are for single answers",
        ));
    }
    let context_full = context_full(&a.context_full, a.context_shift)?;
    if a.prompt_cache.is_some() && a.prune.prune_replay.is_some() {
        return Err(Error::usage(
            "--prune-replay follows all batches of a prompt, of which --prompt-cache leaves out some",
        ));
    }
    let limit = bytes("--prompt-cache-limit", &a.prompt_cache_limit)?;
    let keeps = !a.no_prompt_cache && !a.no_save && a.prompt_cache.is_none() && a.trace.is_none();
    Ok(Options {
        log: log::options(a.log),
        model: model::options(model, a.model_args)?,
        context: context::options(a.context)?,
        sampling: sampling::options(a.sampling, !a.answer.no_escape)?,
        prune: prune::options(a.prune, a.prune_min_tokens)?,
        prompt: a.prompt.map(text),
        prompt_file: a.file,
        system: a.answer.system_prompt,
        system_file: a.answer.system_prompt_file,
        limits: Limits {
            predict,
            stop: a.answer.stop.into_iter().map(text).filter(|s| !s.is_empty()).collect(),
            special: a.answer.special,
        },
        reasoning_budget,
        form: form(a.answer.json, a.answer.json_schema.as_deref(), a.answer.grammar.as_deref()),
        draft: a.draft.as_deref().map(draft).transpose()?,
        conversation,
        single_turn: a.single_turn,
        template,
        template_kwargs,
        display_prompt: a.display_prompt,
        verbose_prompt: a.verbose_prompt,
        parse_special: a.answer.parse_special,
        no_stdin: a.no_stdin,
        strict_utf8: a.answer.strict_utf8,
        multiline_input: a.multiline_input,
        look: terminal::Options {
            reasoning,
            color: tristate("--color", &a.color)?,
            markdown: tristate("--markdown", &a.markdown)?,
            wrap: tristate("--wrap", &a.wrap)?,
            raw: a.raw,
            simple_io: a.simple_io,
        },
        output_format,
        output_file: a.output_file,
        prompt_cache: a.prompt_cache,
        prompt_cache_all: a.prompt_cache_all,
        prompt_cache_ro: a.prompt_cache_ro,
        kept_prompts: keeps.then_some(limit),
        trace: a.trace,
        in_prefix: text(a.in_prefix),
        in_suffix: text(a.in_suffix),
        show_timings: !a.no_show_timings,
        resume: a.resume.map(|name| if name.is_empty() { Resume::Last } else { Resume::Named(name) }),
        no_save: a.no_save,
        no_history: a.no_history,
        context_full,
        settings,
    })
}

/// The form that answers are to have. A schema that is no file is an object, true or false, and a grammar that is none has a rule.
fn form(json: bool, schema: Option<&str>, grammar: Option<&str>) -> Option<Form> {
    let is_schema = |text: &str| text.starts_with('{') || ["true", "false"].contains(&text);
    match (schema, grammar) {
        (Some(schema), _) => Some(Form::Schema(constraint::source(schema, is_schema))),
        (None, Some(grammar)) => Some(Form::Grammar(constraint::source(grammar, |text| text.contains("::=")))),
        (None, None) => json.then_some(Form::Json),
    }
}

fn predict(n: i64) -> Result<Predict> {
    match n {
        -1 => Ok(Predict::Unlimited),
        -2 => Ok(Predict::FillContext),
        n => Ok(Predict::AtMost(u64::try_from(n).map_err(|_| out_of_range("-n", n, "-2, -1 or more"))?)),
    }
}

fn draft(how: &str) -> Result<Draft> {
    match how {
        "ngram" => Ok(Draft::Ngram),
        "off" => Ok(Draft::Off),
        other => match other.strip_prefix("model:") {
            Some("") => Err(Error::usage("--draft model: wants a file: --draft model:FILE")),
            Some(path) => Ok(Draft::Model(path.into())),
            None => Err(not_one_of("--draft", other, "ngram, model:FILE, off")),
        },
    }
}

fn object(json: &str) -> Result<serde_json::Map<String, serde_json::Value>> {
    match serde_json::from_str(json) {
        Ok(serde_json::Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::usage("--chat-template-kwargs must be a JSON object")),
        Err(e) => Err(Error::usage(format!("--chat-template-kwargs is not JSON: {e}"))),
    }
}

fn context_full(what: &str, shift: bool) -> Result<ContextFull> {
    match what {
        "ask" if shift => Ok(ContextFull::Shift),
        "ask" => Ok(ContextFull::Ask),
        "stop" => Ok(ContextFull::Stop),
        "shift" => Ok(ContextFull::Shift),
        "summarise" | "summarize" => Ok(ContextFull::Summarise),
        other => Err(not_one_of("--context-full", other, "ask, stop, shift, summarise")),
    }
}
