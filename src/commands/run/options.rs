//! What an answer or a chat runs with.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::chat::template::{Kwargs, Source};
use crate::chat::terminal::{self, Tristate};
use crate::constraint::Form;
use crate::error::Result;
use crate::generate::{Draft, Limits};
use crate::{engine, log, model, prune, sampler};

/// One-shot completion and chat.
#[derive(Debug, Clone)]
pub struct Options {
    pub log: log::Options,
    pub model: model::Options,
    pub context: engine::Options,
    pub sampling: sampler::Options,
    /// What to prune, if at all
    pub prune: Option<prune::Options>,
    /// `-p`, escapes processed
    pub prompt: Option<String>,
    /// `-f`; `-` is stdin
    pub prompt_file: Option<PathBuf>,
    /// `-sys`
    pub system: Option<String>,
    /// `-sysf`
    pub system_file: Option<PathBuf>,
    /// When an answer ends
    pub limits: Limits,
    /// `--json`, `--json-schema`, `--grammar`: the form that answers are to have
    pub form: Option<Form>,
    /// `--reasoning-budget`: tokens that the model may think; `None`: any number
    pub reasoning_budget: Option<u64>,
    /// `--draft`; `None`: drafts where they change nothing but the time
    pub draft: Option<Draft>,
    /// Whether a prompt is a turn in a chat template (`-cnv`) or raw text (`-no-cnv`); `Auto`: a turn if the model has a template
    pub conversation: Tristate,
    /// `-st`: one turn, then exit
    pub single_turn: bool,
    /// `--chat-template`, `--chat-template-file`
    pub template: Option<Source>,
    /// `--chat-template-kwargs`: a JSON object
    pub template_kwargs: Option<Kwargs>,
    /// Echo the prompt on stdout.
    pub display_prompt: bool,
    /// `--verbose-prompt`: the prompt's tokens on stderr
    pub verbose_prompt: bool,
    /// Text of the user may name special tokens (`--parse-special`).
    pub parse_special: bool,
    /// stdin is not read (`--no-stdin`).
    pub no_stdin: bool,
    /// Prompts must be UTF-8.
    pub strict_utf8: bool,
    /// `-mli`
    pub multiline_input: bool,
    /// How an answer looks on a terminal
    pub look: terminal::Options,
    /// `--output-format`
    pub output_format: OutputFormat,
    /// `-o`: a copy of the conversation
    pub output_file: Option<PathBuf>,
    /// `--prompt-cache`: where tokens and their cells are kept
    pub prompt_cache: Option<PathBuf>,
    /// `--prompt-cache-all`: those of the answer too
    pub prompt_cache_all: bool,
    /// `--prompt-cache-ro`: the file is only read
    pub prompt_cache_ro: bool,
    /// Bytes that the folder of long prompts may take; `None`: prompts are neither kept nor looked up
    pub kept_prompts: Option<u64>,
    /// `--trace`: times of the prompt's nodes
    pub trace: Option<PathBuf>,
    /// `--in-prefix`: text before each input
    pub in_prefix: String,
    /// `--in-suffix`: text after each input
    pub in_suffix: String,
    /// The line of statistics after an answer (`--no-show-timings` turns it off).
    pub show_timings: bool,
    /// `--continue`: go on with a saved chat
    pub resume: Option<Resume>,
    /// `--no-save`
    pub no_save: bool,
    /// `--no-history`
    pub no_history: bool,
    /// `--context-full`
    pub context_full: ContextFull,
    pub settings: Settings,
}

/// Where the options come from, and how a chat's `/set` changes them: by the rules of the command line.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The arguments that the options were made from: `--name=value` each
    pub args: Vec<OsString>,
    /// Long names of the flags that the command line itself has
    pub given: Vec<String>,
    /// Long names of the flags that a chat can change
    pub names: &'static [&'static str],
    pub change: Change,
}

/// Options, and the names and values of flags that are to change in them, become other options and the flags' long names.
pub type Change = fn(&Options, &[(&str, &str)]) -> Result<(Options, Vec<&'static str>)>;

/// Format of an answer on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    /// The answer's text.
    Text,
    /// One JSON object.
    Json,
}

/// Which saved chat to go on with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The one that was written to last
    Last,
    /// By its name
    Named(String),
}

/// What a chat does when its context is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextFull {
    /// Let the user choose
    Ask,
    /// Nothing: the turn is refused
    Stop,
    /// Forget old turns, but for the system prompt and the first exchange
    Shift,
    /// Put a summary in their place
    Summarise,
}
