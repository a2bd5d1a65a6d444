//! `pp-run -m MODEL -p PROMPT`: one answer on stdout. Without a prompt, on a terminal: a chat.

mod options;

use std::io::{IsTerminal, stdin, stdout};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::chat::terminal::Tristate;
use crate::chat::{Conversation, Message, Role, Style, Template};
use crate::commands::load::{Signals, load};
use crate::commands::{
    Printer, chat, drop_line_break, print, prompt_cache, prompt_text, pruning, read_prompt, trace, write_file,
};
use crate::error::{Error, Kind, Result};
use crate::generate::{Predict, Pull, StopReason};
use crate::log::Log;
use crate::model::Model;
use crate::sampler::Sampler;
use crate::session::{PruneReport, Session};
use crate::stats::{Stats, logits_hash};
use crate::system::memory;
use crate::tokenizer::{Token, Tokenizer};

pub use options::{ContextFull, Options, OutputFormat, Resume, Settings};

/// Answers, or chats.
pub fn run(options: &Options, signals: Signals) -> Result<()> {
    let log = Log::new(&options.log, options.look.simple_io)?;
    let interactive = stdin().is_terminal() && stdout().is_terminal() && options.output_format == OutputFormat::Text;
    let prompt = prompt(options, &log)?;
    let resumed = options.resume.as_ref().map(chat::open).transpose()?;
    let mut options = options.clone();
    // A saved chat knows its model; only the command line knows better.
    let known = resumed
        .as_ref()
        .map(|opened| &opened.past.model)
        .filter(|_| !options.settings.given.iter().any(|g| g == "model"));
    if let Some(model) = known.filter(|m| m.exists() || options.model.path.as_os_str().is_empty()) {
        options.model.path.clone_from(model);
    }
    let options = &options;
    let system = match (&options.system, &options.system_file) {
        (Some(text), _) => Some(text.clone()),
        (None, Some(path)) => Some(text_for_model(path, options, &log)?),
        (None, None) => None,
    };
    // -cnv with a prompt is llama.cpp's way to ask for a chat that begins with it.
    let stays = interactive && (prompt.is_none() || (options.conversation == Tristate::On && !options.single_turn));
    // A chat that goes on takes a turn from a pipe too.
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

    let start = Instant::now();
    let (model, tokenizer) = load(&options.model, &options.context, &log, &signals)?;
    let template = template(options, &model, &tokenizer, &log)?;
    let run = Run { options: options.clone(), log, signals, model: &model, tokenizer: &tokenizer, start };
    match (template, prompt) {
        (Some(template), prompt) if chats => {
            chat::chat(run, &template, system.as_deref(), prompt.as_deref(), resumed, !stays)
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

/// How often the bar of a prompt moves.
const TICK: Duration = Duration::from_millis(100);

/// What one answer needs.
pub struct Run<'a> {
    pub options: Options,
    pub log: Log,
    pub signals: Signals,
    pub model: &'a Model,
    pub tokenizer: &'a Tokenizer,
    /// When the load began.
    start: Instant,
}

/// An answer's text, tokens and numbers.
pub struct Answer {
    pub text: String,
    pub tokens: Vec<Token>,
    pub stop: StopReason,
    pub stats: Stats,
}

/// A text for the model from a file, or from stdin for `-`, less one final line break.
fn text_for_model(path: &Path, options: &Options, log: &Log) -> Result<String> {
    let mut text = prompt_text(read_prompt(path)?, path, options.strict_utf8, &|m| log.warn(m))?;
    drop_line_break(&mut text);
    Ok(text)
}

/// The prompt of `-p` or `-f`, with the text on stdin below it; `None` if there is none at all.
fn prompt(options: &Options, log: &Log) -> Result<Option<String>> {
    let stdin_path = Path::new("-");
    let from_stdin = options.prompt_file.as_deref() == Some(stdin_path);
    let mut prompt = match &options.prompt_file {
        Some(path) => Some(text_for_model(path, options, log)?),
        None => options.prompt.clone(),
    };
    if !from_stdin && !stdin().is_terminal() {
        let text = text_for_model(stdin_path, options, log)?;
        if !text.is_empty() {
            prompt = Some(prompt.map_or(text.clone(), |p| format!("{p}\n\n{text}")));
        }
    }
    Ok(prompt)
}

/// The template to use; `None` for a raw completion.
fn template(options: &Options, model: &Model, tokenizer: &Tokenizer, log: &Log) -> Result<Option<Template>> {
    if options.conversation == Tristate::Off {
        return Ok(None);
    }
    let text = |token: Option<Token>| {
        token.map_or_else(String::new, |t| String::from_utf8_lossy(&tokenizer.piece(t, true)).into_owned())
    };
    let kwargs = options.template_kwargs.clone().unwrap_or_default();
    let template =
        Template::load(options.template.as_ref(), model.gguf(), text(tokenizer.bos()), text(tokenizer.eos()), kwargs);
    let template = match template {
        Err(e) if options.template.is_none() && options.conversation == Tristate::Auto => {
            log.warn(&format!("{e}"));
            None
        }
        other => other?,
    };
    if template.is_none() && options.conversation == Tristate::On {
        return Err(Error::malformed(
            "this model has no chat template: give one with --chat-template NAME or --chat-template-file FILE",
        )
        .in_file(&options.model.path));
    }
    Ok(template)
}

/// One prompt, one answer.
fn one_shot(run: &Run, template: Option<&Template>, system: Option<&str>, prompt: &str) -> Result<()> {
    let options = &run.options;
    let content = format!("{}{prompt}{}", options.in_prefix, options.in_suffix);
    // What cannot fit is not tokenized: that may take minutes.
    let n_ctx = options.context.n_ctx.filter(|&n| n > 0).unwrap_or(run.model.hparams().n_ctx_train) as usize;
    let most = if content.len() > n_ctx { n_ctx.saturating_mul(run.tokenizer.longest_piece()) } else { n_ctx };
    if content.len() > most {
        return Err(Error::malformed(format!(
            "the prompt has {} bytes, and {n_ctx} tokens, which is all that the context holds, are {most} at most: shorten it",
            content.len()
        )));
    }
    let mut reasoning = false;
    let tokens = match template {
        Some(template) => {
            let mut conversation = Conversation::new(template, run.tokenizer, system, options.parse_special);
            let tokens = conversation.ask(&content)?;
            reasoning = conversation.opens_reasoning();
            tokens
        }
        None => {
            if options.conversation != Tristate::Off {
                run.log.note(
                    "this model has no chat template: the prompt is completed as it is (--chat-template NAME gives it one)",
                );
            }
            let text = system.map_or(content.clone(), |s| format!("{s}\n\n{content}"));
            run.tokenizer.encode(&text, true, true)?
        }
    };
    let mut context = options.context.clone();
    if let (None, Predict::AtMost(n)) = (context.n_ctx, options.limits.predict) {
        // What the answer can need is known: no more memory than that.
        let needed = (tokens.len() as u64).saturating_add(n).max(prompt_cache::saved_tokens(run));
        let needed = needed.min(u64::from(run.model.hparams().n_ctx_train));
        context.n_ctx = Some(u32::try_from(needed.max(1)).unwrap_or(u32::MAX).next_multiple_of(256));
    }
    let mut session = Session::new(run.model, &context, 1, 1, run.signals.interrupt.clone())?;
    pruning::apply(&mut session, run.model, options.prune.as_ref(), context.n_threads_batch)?;
    if options.trace.is_some() {
        session.trace();
    }
    let mut held = prompt_cache::restore(run, &mut session)?;
    let mut sampler = sampler(run, &session);
    let json = options.output_format == OutputFormat::Json;
    let load_time = run.start.elapsed();
    if options.display_prompt && !json {
        print(prompt)?;
    }
    let mut printer = Printer::new(&Style::new(&options.look), &options.look, reasoning);
    let answer = answer(run, &mut session, &mut sampler, &tokens, &mut |text| {
        if json { Ok(()) } else { printer.show(text) }
    });
    if !json && answer.is_ok() {
        printer.end()?;
    }
    let answer = answer?;
    pruning::write_dump(&session, run.model, options.prune.as_ref())?;
    if json {
        let s = &answer.stats;
        let object = json!({
            "model": options.model.path.display().to_string(),
            "text": answer.text,
            "stop_reason": answer.stop.name(),
            "stop_string": if let StopReason::StopString(t) = &answer.stop { Some(t) } else { None },
            "prompt_tokens": s.prompt_tokens,
            "generated_tokens": s.generated_tokens,
            "context_used": s.context_used,
            "context_size": s.context_size,
            "seed": s.seed,
            "logits_hash": format!("{:016x}", s.logits_hash),
            "prune": s.prune,
            "peak_memory_bytes": memory::peak(),
            "timings": {
                "load_s": load_time.as_secs_f64(),
                "prompt_s": s.prompt_time.as_secs_f64(),
                "prompt_probe_s": s.probe_time.as_secs_f64(),
                "prompt_pack_s": s.pack_time.as_secs_f64(),
                "prompt_tokens_per_s": s.prompt_speed(),
                "generation_s": s.generation_time.as_secs_f64(),
                "generated_tokens_per_s": s.generation_speed(),
                "first_token_s": s.first_token_time.map(|t| t.as_secs_f64()),
            },
        });
        print(&format!("{object}\n"))?;
    }
    if options.show_timings {
        run.log.note(&answer.stats.line());
    }
    prompt_cache::taken(run, answer.stats.cached_tokens, &held);
    // If it fails, that is told when everything else is done.
    let stored = prompt_cache::store(run, &session, tokens.len(), &mut held);
    if let Some(path) = &options.trace {
        trace::write(path, run.start, load_time, session.traced())?;
    }
    if let Some(path) = &options.output_file {
        let mut turns = Vec::new();
        if let Some(system) = system {
            turns.push(Message { role: Role::System, content: system.to_owned() });
        }
        turns.push(Message { role: Role::User, content });
        turns.push(Message { role: Role::Assistant, content: answer.text });
        save(path, &turns)?;
    }
    match answer.stop {
        StopReason::Interrupted => {
            if let Err(e) = stored {
                run.log.warn(&e.to_string());
            }
            Err(run.signals.error())
        }
        StopReason::ContextFull if options.limits.predict != Predict::FillContext => {
            run.log.warn(&format!(
                "the answer was cut: the context of {} tokens is full (-c N makes it larger)",
                session.n_ctx()
            ));
            stored
        }
        _ => stored,
    }
}

/// The sampler of the options.
pub fn sampler(run: &Run, session: &Session) -> Sampler {
    Sampler::new(&run.options.sampling, run.model.n_vocab(), session.n_ctx(), &run.tokenizer.eog_tokens())
}

/// Processes the prompt and generates; `show` gets the text as it comes. An interruption ends the answer, it is no error.
pub fn answer(
    run: &Run,
    session: &mut Session,
    sampler: &mut Sampler,
    prompt: &[Token],
    show: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Answer> {
    run.model.gguf().check_unchanged()?;
    let start = Instant::now();
    let bar = run.log.progress("reading the prompt", prompt.len() as u64, "tokens");
    let processed = AtomicUsize::new(0);
    let within = session.batch_progress();
    let n_ubatch = run.options.context.n_ubatch as usize;
    let synced = std::thread::scope(|scope| {
        // Batches may take long: the bar goes on in between.
        let ticker = (!bar.is_hidden()).then(|| {
            let (bar, processed) = (&bar, &processed);
            scope.spawn(move || {
                loop {
                    std::thread::park_timeout(TICK);
                    let (done, total) = (processed.load(Ordering::Relaxed), bar.length().unwrap_or(0) as usize);
                    if done >= total || bar.is_finished() {
                        return;
                    }
                    let batch = n_ubatch.min(total - done);
                    bar.set_position((done as f64 + within() * batch as f64) as u64);
                }
            })
        });
        let synced = session.sync(prompt, &mut |done, total| {
            processed.store(done, Ordering::Relaxed);
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        if let Some(ticker) = ticker {
            ticker.thread().unpark();
        }
        synced
    });
    let processed = processed.into_inner();
    let mut stats = Stats {
        prompt_tokens: prompt.len(),
        cached_tokens: session.n_past() - processed,
        processed_tokens: processed,
        prompt_time: start.elapsed(),
        probe_time: session.prompt_times().probe,
        pack_time: session.prompt_times().pack,
        context_used: session.n_past(),
        context_size: session.n_ctx(),
        seed: sampler.seed(),
        logits_hash: logits_hash(session.logits()),
        ..Default::default()
    };
    match synced {
        Err(e) if e.kind() == Kind::Interrupted => {
            let stop = StopReason::Interrupted;
            stats.stop_reason = stop.name();
            return Ok(Answer { text: String::new(), tokens: Vec::new(), stop, stats });
        }
        result => result?,
    };
    for &token in prompt {
        sampler.accept(token);
    }

    session.expect(match run.options.limits.predict {
        // The last one drawn is not decoded.
        Predict::AtMost(n) => usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(1),
        Predict::Unlimited | Predict::FillContext => usize::MAX,
    });
    let mut text = String::new();
    let mut pull =
        Pull::new(session, run.tokenizer, sampler, run.options.limits.clone(), run.signals.interrupt.clone());
    for piece in pull.by_ref() {
        let piece = piece?;
        show(&piece)?;
        text.push_str(&piece);
    }
    let total = start.elapsed();
    let first = pull.first_token().map(|at| at - start);
    let (tokens, stop) = pull.finish();
    stats.generated_tokens = tokens.len();
    stats.first_token_time = first;
    stats.generation_time = total - first.unwrap_or(total);
    stats.context_used = session.n_past();
    stats.logits_hash = logits_hash(session.logits());
    stats.prune = session.prune_report().map(PruneReport::line);
    stats.prune_in_short = session.prune_report().map(PruneReport::in_short);
    stats.stop_reason = stop.name();
    Ok(Answer { text, tokens, stop, stats })
}

/// Writes a copy of a conversation.
pub fn save(path: &Path, messages: &[Message]) -> Result<()> {
    let mut text = String::new();
    for m in messages {
        let who = match m.role {
            Role::System => "System",
            Role::User => "User",
            Role::Assistant => "Assistant",
        };
        text.push_str(&format!("{who}:\n{}\n\n", m.content));
    }
    write_file(path, text.as_bytes())
}

impl Run<'_> {
    /// Whether Ctrl-C or SIGTERM came; the flag is ready for the next one.
    pub fn take_interrupt(&self) -> bool {
        self.signals.impatient.store(false, Ordering::Relaxed);
        self.signals.interrupt.swap(false, Ordering::Relaxed)
    }
}
