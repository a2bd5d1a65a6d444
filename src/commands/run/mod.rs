//! `pp-run -m MODEL -p PROMPT`: one answer on stdout. Without a prompt, on a terminal: a chat.

mod one_shot;
mod options;

use std::cell::Cell;
use std::io::{IsTerminal, stdin, stdout};
use std::path::Path;
use std::slice;
use std::time::Instant;

use super::answer::Run;
use super::chat::{self, Beginning};
use super::drafts::{Drafter, load_draft_model};
use super::input::Reader;
use super::kv_types;
use super::load::load;
use super::signals::Signals;
use crate::chat::terminal::Tristate;
use crate::chat::{Hush, Style, Template};
use crate::constraint::Grammar;
use crate::engine::Loaded;
use crate::error::{Error, Result, shown};
use crate::gguf::{Gguf, Value};
use crate::log::Log;
use crate::tokenizer::{Token, Tokenizer};
use one_shot::one_shot;
pub use one_shot::{Prompt, as_json, context, tokens};
pub use options::{ContextFull, Options, OutputFormat, Resume, Settings};

/// Answers, or chats.
pub fn run(options: &Options, signals: Signals) -> Result<()> {
    let log = Log::new(&options.log, options.look.simple_io)?;
    let interactive = stdin().is_terminal() && options.output_format == OutputFormat::Text;
    let prompt = prompt(options, &log, &signals)?;
    let resumed = options.resume.as_ref().map(|resume| chat::open(resume, options.no_save)).transpose()?;
    let mut options = options.clone();
    // A saved chat says which model it was with, unless the command line names one.
    let known = resumed
        .as_ref()
        .map(|opened| &opened.past.model)
        .filter(|_| !options.settings.given.iter().any(|g| g == "model"));
    if let Some(model) = known.filter(|m| m.exists() || options.model.path.as_os_str().is_empty()) {
        options.model.path.clone_from(model);
    }
    let options = &options;
    let system = system(options, &log, &signals)?;
    // -cnv with a prompt is llama.cpp's way to ask for a chat that begins with it. Answers of a chat may go to a pipe, such as tee.
    let begins = options.conversation == Tristate::On && !options.single_turn && stdout().is_terminal();
    let stays = interactive && (prompt.is_none() || begins);
    // A chat that is continued takes a turn from a pipe too.
    let chats = stays || resumed.is_some();
    if prompt.is_none() && !interactive {
        return Err(Error::usage("no prompt: give one with -p or -f, or on stdin"));
    }
    if prompt.is_none() && options.conversation == Tristate::Off {
        return Err(Error::usage("no prompt to complete: give one with -p or -f"));
    }
    if chats && options.trace.is_some() {
        return Err(Error::usage("--trace is of one answer, not of a chat: give a prompt with -p or -f"));
    }

    let grammar = options.form.as_ref().map(Grammar::new).transpose()?;
    let screen = stays && Style::new(&options.look).has_screen();
    let watch = chats.then(|| signals.watch(screen)).transpose()?;
    // What is typed while the model is loaded waits for the first prompt.
    let hush = screen.then(|| Hush::begin(true));
    let start = Instant::now();
    let (model, tokenizer) = load(&options.model, &options.context, slice::from_ref(&options.prune), &log, &signals)?;
    let draft_model = load_draft_model(options, &model, &tokenizer, &log, &signals)?;
    signals.catch_answer_now()?;
    let (options, sampling) = &sampling_of_file(options, model.gguf())?;
    let unknown = unknown_sampling(model.gguf());
    if !unknown.is_empty() {
        log.note(&format!("the file wants answers drawn by {} too, which pp-run does not have", unknown.join(", ")));
    }
    let template = template(options, &model, &tokenizer)?;
    let interrupt = || signals.interrupt.clone();
    let drafter = draft_model.as_ref().map(|drafts| Drafter::new(drafts, &model, &options.context, interrupt()));
    let run = Run {
        options: options.clone(),
        log,
        signals,
        model: &model,
        tokenizer: &tokenizer,
        drafter,
        grammar,
        start,
        sampling: Cell::new(sampling.clone()),
        told_of_bos: Cell::new(false),
    };
    kv_types::tell_of_harm(&run);
    match (template, prompt) {
        (Some(template), prompt) if chats => {
            let watch = watch.expect("chats have one");
            let beginning = Beginning { system: system.as_deref(), first: prompt.as_deref(), resumed, watch, hush };
            chat::chat(run, &template, beginning, !stays)
        }
        (None, None) => Err(Error::malformed(
            "this model has no chat template: give one with --chat-template NAME or --chat-template-file FILE, or complete a \
             text with -p",
        )
        .in_file(&options.model.path)),
        (Some(_), None) => unreachable!("no prompt on a terminal is a chat"),
        (template, Some(prompt)) => one_shot(&run, template.as_ref(), system.as_deref(), &prompt),
    }
}

/// What the model's author wants answers to be drawn by, by the names that files and flags have for it.
const SAMPLING: [(&str, &str); 12] = [
    ("temp", "temp"),
    ("top_k", "top-k"),
    ("top_p", "top-p"),
    ("min_p", "min-p"),
    ("penalty_repeat", "repeat-penalty"),
    ("penalty_last_n", "repeat-last-n"),
    ("xtc_probability", "xtc-probability"),
    ("xtc_threshold", "xtc-threshold"),
    ("mirostat", "mirostat"),
    ("mirostat_tau", "mirostat-ent"),
    ("mirostat_eta", "mirostat-lr"),
    ("sequence", "samplers"),
];

/// The beginning of these keys.
const OF_SAMPLING: &str = "general.sampling.";

/// What else the file wants answers to be drawn by, as names and values.
fn unknown_sampling(gguf: &Gguf) -> Vec<String> {
    let meta = gguf.metadata();
    let said = meta.keys().filter_map(|key| {
        let name = key.strip_prefix(OF_SAMPLING).filter(|name| !SAMPLING.iter().any(|s| s.0 == *name))?;
        let number = || Some(meta.get(key)?.as_i128()?.to_string());
        let real = || Some(meta.f32(key).ok()??.to_string());
        let value = meta.lossy(key).or_else(number).or_else(real).unwrap_or_default();
        // Of what is 0 there is to be nothing.
        (value != "0").then(|| format!("{} {value}", shown(name)))
    });
    said.collect()
}

/// The options, with the file's settings of sampling where the user has none; and what the statistics say of that, if there are any.
pub fn sampling_of_file(options: &Options, gguf: &Gguf) -> Result<(Options, Option<String>)> {
    let is_set = |flag: &str| {
        let sets = |a: &str| a.strip_prefix("--").is_some_and(|a| a.split('=').next() == Some(flag));
        options
            .settings
            .args
            .iter()
            .filter_map(|a| a.to_str())
            .any(|a| sets(a) || (flag == "samplers" && a.starts_with("--sampler-seq=")))
    };
    let mut settings = Vec::new();
    for (name, flag) in SAMPLING.into_iter().filter(|(_, flag)| !is_set(flag)) {
        let key = format!("{OF_SAMPLING}{name}");
        let value = match gguf.metadata().get(&key) {
            None => continue,
            Some(Value::F32(x)) => x.to_string(),
            Some(Value::F64(x)) => x.to_string(),
            Some(Value::Str(text)) if name == "sequence" => String::from_utf8_lossy(text.as_ref()).into_owned(),
            Some(value) => value.as_i128().map(|n| n.to_string()).ok_or_else(|| {
                let message = format!("metadata '{key}' is of type {}, expected f32", value.value_type().name());
                Error::malformed(message).in_file(gguf.path())
            })?,
        };
        settings.push((flag, value));
    }
    if settings.is_empty() {
        return Ok((options.clone(), None));
    }
    let pairs: Vec<(&str, &str)> = settings.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
    let (with, _) = (options.settings.change)(options, &pairs).map_err(|e| {
        Error::malformed(format!("general.sampling of the file cannot be used: {e}")).in_file(gguf.path())
    })?;
    let all: Vec<String> = pairs.iter().map(|(flag, value)| format!("{flag} {value}")).collect();
    Ok((with, Some(format!("drawn as the file says: {}", all.join(", ")))))
}

pub fn reader<'a>(options: &Options, log: &'a Log, signals: &'a Signals) -> Reader<'a> {
    Reader { strict: options.strict_utf8, log, signals }
}

/// The system prompt, if there is one.
pub fn system(options: &Options, log: &Log, signals: &Signals) -> Result<Option<String>> {
    match (&options.system, &options.system_file) {
        (Some(text), _) => Ok(Some(text.clone())),
        (None, Some(path)) => reader(options, log, signals).read(path, "").map(Some),
        (None, None) => Ok(None),
    }
}

/// The prompt of `-f` and `-p`, with the text on stdin below it; `None` if there is none at all.
fn prompt(options: &Options, log: &Log, signals: &Signals) -> Result<Option<String>> {
    let stdin_path = Path::new("-");
    let reader = reader(options, log, signals);
    let from_stdin = options.prompt_file.as_deref() == Some(stdin_path);
    let file = options.prompt_file.as_deref().map(|path| reader.read(path, "")).transpose()?;
    // The question comes last, so that another one to the same text has all of the text in common.
    let mut prompt = match (file, options.prompt.clone()) {
        (Some(file), Some(question)) => Some(format!("{file}\n\n{question}")),
        (file, question) => file.or(question),
    };
    if !from_stdin && !options.no_stdin && !stdin().is_terminal() {
        let way_out = if prompt.is_some() { "; --no-stdin leaves it alone" } else { "" };
        let text = reader.read(stdin_path, way_out)?;
        prompt = match prompt {
            _ if text.is_empty() => prompt,
            None => Some(text),
            Some(prompt) => {
                // Whoever runs pp-run in a loop over lines of stdin did not mean this.
                log.note(&format!(
                    "{} bytes of stdin are added below the prompt; --no-stdin leaves stdin alone",
                    text.len()
                ));
                Some(format!("{prompt}\n\n{text}"))
            }
        };
    }
    Ok(prompt)
}

/// The template to use; `None` for a raw completion.
pub fn template(options: &Options, model: &Loaded, tokenizer: &Tokenizer) -> Result<Option<Template>> {
    if options.conversation == Tristate::Off {
        return Ok(None);
    }
    let text = |token: Option<Token>| token.map(|t| String::from_utf8_lossy(&tokenizer.piece(t, true)).into_owned());
    let template =
        Template::load(options.template.as_ref(), model.gguf(), text(tokenizer.bos()), text(tokenizer.eos()))?;
    if template.is_none() && options.conversation == Tristate::On {
        return Err(Error::malformed(
            "this model has no chat template: give one with --chat-template NAME or --chat-template-file FILE",
        )
        .in_file(&options.model.path));
    }
    Ok(template)
}
