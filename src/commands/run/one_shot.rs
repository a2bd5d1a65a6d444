//! One prompt, one answer.

use std::time::Duration;

use serde_json::{Value, json};

use super::options::{Options, OutputFormat};
use crate::chat::terminal::Tristate;
use crate::chat::{Conversation, Message, Role, Style, Template, Turn};
use crate::commands::answer::{Answer, Run, answer, constraint, marks, sampler, warn_if_cut};
use crate::commands::chat::{how, keep_answer};
use crate::commands::output::{Printer, print, write_conversation};
use crate::commands::{prompt_cache, pruning, trace};
use crate::engine;
use crate::error::{Error, Result};
use crate::generate::{Guide, Predict, StopReason, parted};
use crate::system::memory;
use crate::tokenizer::Token;

/// One prompt, one answer.
pub fn one_shot<'a>(run: &Run<'a>, template: Option<&'a Template>, system: Option<&str>, prompt: &str) -> Result<()> {
    let options = &run.options;
    if template.is_none() && options.conversation != Tristate::Off {
        run.log.note(
            "this model has no chat template: the prompt is completed as it is (--chat-template NAME gives it one)",
        );
    }
    let Prompt { content, tokens, reasoning, conversation } = tokens(run, template, system, Vec::new(), prompt)?;
    let context = context(run, tokens.len());
    let mut timeline = run.model.timeline(&context, run.signals.interrupt.clone())?;
    let session = timeline.as_mut();
    pruning::apply_to(session, run.model, options.prune.as_ref(), context.n_threads_batch, &run.log)?;
    if options.trace.is_some() {
        run.model.require_own("--trace")?;
        session.own_mut().expect("checked above").trace();
    }
    let mut held = prompt_cache::restore(run, session)?;
    let sampler = sampler(run, session, 0)?;
    let constraint = constraint(run)?;
    let json = options.output_format == OutputFormat::Json;
    let load_time = run.start.elapsed();
    if options.display_prompt && !json {
        print(prompt)?;
    }
    let mut printer = Printer::new(&Style::new(&options.look), &options.look, reasoning);
    let guide = Guide { constraint, marks: template.and_then(marks), opened: reasoning, ..Guide::default() };
    let kept = prompt_cache::recall(run, session, &tokens);
    let answer = answer(run, session, sampler, guide, &tokens, &mut |text| {
        if json { Ok(()) } else { printer.show(text) }
    });
    if !json && answer.is_ok() {
        printer.end()?;
    }
    let answer = answer?;
    pruning::write_dump_of(session, run.model)?;
    if json {
        print(&format!("{}\n", as_json(options, &answer, reasoning, load_time)))?;
    }
    if options.show_timings {
        run.log.note(&answer.stats.line());
    } else if let Some(cut) = answer.stats.cut() {
        run.log.note(&cut);
    }
    warn_if_cut(run, &answer);
    prompt_cache::taken(run, answer.stats.cached_tokens, &held);
    if let Some(prompt) = kept {
        prompt_cache::keep(run, session, prompt);
    }
    // If this fails, it is reported when everything else is done.
    let stored = prompt_cache::store(run, session, tokens.len(), &mut held);
    let interrupted = answer.stop == StopReason::Interrupted;
    if let (Some(template), Some(mut conversation)) = (template, conversation)
        && !(interrupted && answer.tokens.is_empty())
        && conversation.answer(&answer.text, &answer.tokens, interrupted).is_ok()
    {
        keep_answer(run, template, conversation.turns(), how(options, &answer.stats));
    }
    if let Some(path) = &options.trace {
        trace::write(path, run.start, load_time, session.own().expect("checked above").traced())?;
    }
    if let Some(path) = &options.output_file {
        let mut turns = Vec::new();
        if let Some(system) = system {
            turns.push(Message { role: Role::System, content: system.to_owned() });
        }
        turns.push(Message { role: Role::User, content });
        turns.push(Message { role: Role::Assistant, content: answer.text });
        write_conversation(path, &turns)?;
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

/// A prompt as the model gets it.
pub struct Prompt<'a> {
    /// What it ends, if there is a template
    pub conversation: Option<Conversation<'a>>,
    /// The user's text
    pub content: String,
    pub tokens: Vec<Token>,
    /// The mark that ends the reasoning inside of which the prompt ends.
    pub reasoning: Option<&'static str>,
}

/// The tokens of the prompt, in the chat template if there is one. What was said `before` is in a template only.
pub fn tokens<'a>(
    run: &Run<'a>,
    template: Option<&'a Template>,
    system: Option<&str>,
    before: Vec<Turn>,
    prompt: &str,
) -> Result<Prompt<'a>> {
    let options = &run.options;
    let content = format!("{}{prompt}{}", options.in_prefix, options.in_suffix);
    let n_ctx = options.context.n_ctx.filter(|&n| n > 0).unwrap_or(run.model.n_ctx_train()) as usize;
    if !run.tokenizer.can_fit(content.len(), n_ctx) {
        return Err(Error::malformed(format!(
            "the prompt has {} bytes, too many for {n_ctx} tokens, which is all that the context holds: shorten it",
            content.len()
        )));
    }
    let (mut reasoning, mut begun) = (None, None);
    let tokens = match template {
        Some(template) => {
            let mut conversation = Conversation::new(template, run.tokenizer, system, options.parse_special);
            if !before.is_empty() {
                conversation.resume([conversation.turns(), &before].concat(), false);
            }
            conversation.set_kwargs(options.template_kwargs.as_ref());
            let tokens = conversation.ask(&content)?;
            reasoning = conversation.opens_reasoning();
            begun = Some(conversation);
            tokens
        }
        None => {
            let text = system.map_or(content.clone(), |s| format!("{s}\n\n{content}"));
            run.tokenizer.encode(&text, true, true)?
        }
    };
    Ok(Prompt { content, tokens, reasoning, conversation: begun })
}

/// The options of the session; its context is no larger than the prompt and the answer need, if that is known.
pub fn context(run: &Run, n_tokens: usize) -> engine::Options {
    let options = &run.options;
    let mut context = options.context.clone();
    if let (None, Predict::AtMost(n)) = (context.n_ctx, options.limits.predict) {
        // The length of the answer is limited, so a smaller context will do.
        let needed = (n_tokens as u64).saturating_add(n).max(prompt_cache::saved_tokens(run));
        let needed = needed.min(u64::from(run.model.n_ctx_train()));
        context.n_ctx = Some(u32::try_from(needed.max(1)).unwrap_or(u32::MAX).next_multiple_of(256));
    }
    context
}

/// `--output-format json`: the answer and its numbers.
pub fn as_json(options: &Options, answer: &Answer, opened: Option<&'static str>, load_time: Duration) -> Value {
    let (reasoning, text) = parted(&answer.text, opened);
    let s = &answer.stats;
    json!({
        "model": options.model.path.display().to_string(),
        "text": text,
        "reasoning": reasoning,
        "complete": answer.is_whole,
        "stop_reason": answer.stop.name(),
        "stop_string": if let StopReason::StopString(t) = &answer.stop { Some(t) } else { None },
        "prompt_tokens": s.prompt_tokens,
        "cached_tokens": s.cached_tokens,
        "generated_tokens": s.generated_tokens,
        "reasoning_tokens": s.thought_tokens,
        "context_used": s.context_used,
        "context_size": s.context_size,
        "seed": s.seed,
        "logits_hash": format!("{:016x}", s.logits_hash),
        "draft": s.drafted.map(|d| json!({ "drafted": d.drafted, "accepted": d.accepted, "steps": d.steps })),
        "prune": s.prune,
        "prune_expected_kl": s.prune_expected_kl,
        "threads": s.threads,
        "peak_memory_bytes": memory::peak(),
        "timings": {
            "load_s": load_time.as_secs_f64(),
            "prompt_s": s.prompt_time.as_secs_f64(),
            "prompt_probe_s": s.probe_time.as_secs_f64(),
            "prompt_pack_s": s.pack_time.as_secs_f64(),
            "prompt_tokens_per_s": s.prompt_speed(),
            "generation_s": s.generation_time.as_secs_f64(),
            "drawing_s": s.drawing_time.as_secs_f64(),
            "generated_tokens_per_s": s.generation_speed(),
            "first_token_s": s.first_token_time.map(|t| t.as_secs_f64()),
        },
    })
}
