//! Prompt in, answer out: with a progress bar while the prompt is read, and with statistics.

use std::cell::{Cell, RefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kernels::Isa;

use super::drafts::Drafter;
use super::run::Options;
use super::signals::Signals;
use crate::chat::Template;
use crate::constraint::{Constraint, Grammar};
use crate::engine::{Loaded, Report, Session, Timeline};
use crate::error::{Error, Kind, Result};
use crate::generate::{Draft, DraftModel, Drafts, Guide, Predict, Pull, StopReason};
use crate::log::Log;
use crate::sampler::Sampler;
use crate::stats::{Stats, logits_hash};
use crate::tokenizer::{REASONING, Token, Tokenizer};

/// How often the bar of a prompt moves.
const TICK: Duration = Duration::from_millis(100);

/// What all answers of a run have in common.
pub struct Run<'a> {
    pub options: Options,
    pub log: Log,
    pub signals: Signals,
    pub model: &'a Loaded,
    pub tokenizer: &'a Tokenizer,
    /// The model that drafts, if one was loaded
    pub drafter: Option<Drafter<'a>>,
    /// The form that answers are to have, if any
    pub grammar: Option<Grammar>,
    /// When the load began.
    pub start: Instant,
    /// How the file wants answers to be drawn, for the first statistics.
    pub sampling: Cell<Option<String>>,
    /// The user knows of two BOS tokens.
    pub told_of_bos: Cell<bool>,
}

/// An answer's text, tokens and numbers.
pub struct Answer {
    pub text: String,
    pub tokens: Vec<Token>,
    pub stop: StopReason,
    /// Whether it has the form that it was to have; `None` if it was to have none
    pub is_whole: Option<bool>,
    pub stats: Stats,
}

/// A sampler for one answer, which is number `attempt` to its prompt, from 0 on: with one seed another attempt draws otherwise. As each
/// answer has a sampler of its own, what is drawn depends on nothing that came before the prompt.
pub fn sampler(run: &Run, session: &dyn Timeline, attempt: u32) -> Result<Sampler> {
    let (mut sampling, n_vocab) = (run.options.sampling.clone(), run.model.n_vocab());
    sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(attempt));
    if let Some((token, _)) = sampling.logit_bias.iter().find(|b| usize::try_from(b.0).is_ok_and(|t| t >= n_vocab)) {
        return Err(Error::usage(format!("--logit-bias: there is no token {token}: this model has {n_vocab}")));
    }
    Ok(Sampler::new(&sampling, n_vocab, session.n_ctx(), &run.tokenizer.eog_tokens(), Some(run.tokenizer)))
}

/// What holds answers to their form, if they are to have one.
pub fn constraint(run: &Run) -> Result<Option<Constraint>> {
    run.grammar.as_ref().map(|grammar| Constraint::new(grammar, run.tokenizer)).transpose()
}

/// The marks around what a model thinks, if its template knows any.
pub fn marks(template: &Template) -> Option<[&'static str; 2]> {
    REASONING.iter().find(|[_, close]| template.source().contains(close)).copied()
}

/// Says that an answer was cut before it had its form.
pub fn warn_if_cut(run: &Run, answer: &Answer) {
    if answer.is_whole == Some(false) {
        run.log.warn(&format!(
            "the answer was cut after {} tokens ({}), before it had its form: it is a beginning only",
            answer.tokens.len(),
            answer.stop.name()
        ));
    }
}

/// Processes the prompt and generates an answer; `show` is given the text as it comes. An interruption ends the answer and is no error.
pub fn answer(
    run: &Run,
    session: &mut dyn Timeline,
    mut sampler: Sampler,
    mut guide: Guide,
    prompt: &[Token],
    show: &mut dyn FnMut(&str) -> Result<()>,
) -> Result<Answer> {
    run.model.gguf().check_unchanged()?;
    let bos = run.tokenizer.bos();
    if bos.is_some()
        && prompt.len() > 1
        && prompt[..2].iter().all(|&t| Some(t) == bos)
        && !run.told_of_bos.replace(true)
    {
        run.log.warn(
            "the prompt begins with two BOS tokens: the model wants one, which is added, and the text has another",
        );
    }
    if run.options.verbose_prompt {
        run.log.note(&format!("the prompt has {} tokens; those in [brackets] are special:", prompt.len()));
        tokens_in_lines(run.tokenizer, prompt).iter().for_each(|line| run.log.status(line, false));
    }
    let mut draft_model = draft_model(run, session)?;
    let start = Instant::now();
    let (mut synced, processed) = read(run, session, prompt);
    if let Some(model) = draft_model.as_mut().filter(|m| synced.is_ok() && m.knows(prompt)) {
        session.pause();
        synced = read(run, model.session_mut(), prompt).0;
    }
    let mut stats = stats_of_prompt(session, prompt, processed, start.elapsed(), sampler.seed());
    stats.sampling = run.sampling.take();
    match synced {
        Err(e) if e.kind() == Kind::Interrupted => {
            let stop = StopReason::Interrupted;
            stats.stop_reason = stop.name();
            let is_whole = guide.constraint.is_some().then_some(false);
            return Ok(Answer { text: String::new(), tokens: Vec::new(), stop, is_whole, stats });
        }
        result => result?,
    };
    for &token in prompt {
        sampler.accept(token);
    }

    session.expect(match run.options.limits.predict {
        // The last token that is drawn is not decoded.
        Predict::AtMost(n) => usize::try_from(n).unwrap_or(usize::MAX).saturating_sub(1),
        Predict::Unlimited | Predict::FillContext => usize::MAX,
    });
    let mut text = String::new();
    let limits = run.options.limits.clone();
    let cost_of_token = Isa::best().cost_of_token();
    let drafts = match draft_model.as_deref_mut() {
        Some(model) => Some(Drafts::by_model(model, cost_of_token)),
        None => drafts_by_ngrams(run, session).then(|| Drafts::by_ngrams(cost_of_token)),
    };
    guide.budget = run.options.reasoning_budget;
    guide.answer_now = run.signals.answer_now.clone();
    guide.answer_now.store(false, Ordering::Relaxed);
    let interrupt = run.signals.interrupt.clone();
    let mut pull = Pull::new(session, run.tokenizer, sampler, limits, guide, drafts, interrupt);
    for piece in pull.by_ref() {
        let piece = piece?;
        show(&piece)?;
        text.push_str(&piece);
    }
    let total = start.elapsed();
    let first = pull.first_token().map(|at| at - start);
    stats.drafted = pull.drafted();
    (stats.drawing_time, stats.thought_tokens) = pull.drawn();
    let is_whole = pull.is_whole();
    let (tokens, stop) = pull.finish();
    stats.generated_tokens = tokens.len();
    stats.first_token_time = first;
    stats.generation_time = total - first.unwrap_or(total);
    stats.context_used = session.n_past();
    stats.logits_hash = logits_hash(session.logits());
    stats.prune = session.prune_report().map(Report::line);
    stats.prune_expected_kl = session.prune_report().filter(|r| r.pruned_tokens > 0).and_then(|r| r.expected_kl);
    stats.prune_in_short = session.prune_report().map(Report::in_short);
    stats.threads = session.take_fewer_threads().map(|fewer| fewer.to_string());
    stats.stop_reason = stop.name();
    stats.is_cut = stop == StopReason::Limit && !tokens.is_empty();
    Ok(Answer { text, tokens, stop, is_whole, stats })
}

/// The statistics of an answer whose prompt was read: `processed` of its tokens in this time, the others came from a cache.
pub fn stats_of_prompt(
    session: &dyn Timeline,
    prompt: &[Token],
    processed: usize,
    prompt_time: Duration,
    seed: u32,
) -> Stats {
    Stats {
        prompt_tokens: prompt.len(),
        cached_tokens: session.n_past() - processed,
        processed_tokens: processed,
        prompt_time,
        probe_time: session.prompt_times().probe,
        pack_time: session.prompt_times().pack,
        context_used: session.n_past(),
        context_size: session.n_ctx(),
        seed,
        logits_hash: logits_hash(session.logits()),
        ..Default::default()
    }
}

/// Tokens as the model gets them, one in a line: number and text, that of special ones in brackets.
pub fn tokens_in_lines(tokenizer: &Tokenizer, tokens: &[Token]) -> Vec<String> {
    let line = |&token: &Token| match (tokenizer.is_control(token), tokenizer.in_words(token)) {
        (true, text) => format!("{token:>7} [{text}]"),
        // Between quotes spaces are seen.
        (false, text) => format!("{token:>7} '{text}'"),
    };
    tokens.iter().map(line).collect()
}

/// The model that drafts answers of this session, if one does. [`Kind::Memory`] if there is no room for its memory of the text.
pub fn draft_model<'r, 'a>(run: &'r Run<'a>, session: &dyn Timeline) -> Result<Option<RefMut<'r, DraftModel<'a>>>> {
    let takes_any = session.own().is_some_and(|s| s.max_draft() > 0);
    match (&run.options.draft, &run.drafter) {
        (Some(Draft::Model(_)), Some(drafter)) if takes_any => drafter.with_context(session.n_ctx()).map(Some),
        _ => Ok(None),
    }
}

/// Whether a text's own n-grams draft its answers. Unless the user asks for that, they do only where it changes nothing but the time.
fn drafts_by_ngrams(run: &Run, session: &dyn Timeline) -> bool {
    match run.options.draft {
        Some(Draft::Ngram) => true,
        Some(_) => false,
        None => session.own().is_some_and(Session::drafts_are_exact),
    }
}

/// Processes the prompt with a progress bar. Returns how that went, and how many tokens were processed.
fn read(run: &Run, session: &mut dyn Timeline, prompt: &[Token]) -> (Result<usize>, usize) {
    let bar = run.log.progress("reading the prompt", prompt.len() as u64, "tokens");
    let processed = AtomicUsize::new(0);
    let within = session.batch_progress();
    let n_ubatch = session.n_ubatch();
    let synced = std::thread::scope(|scope| {
        // The thread below ends when this end of the channel is dropped, by a panic too.
        let (_reading, ended) = mpsc::channel::<()>();
        // One batch may take long: a thread moves the bar while it is computed.
        if !bar.is_hidden() {
            let (bar, processed) = (&bar, &processed);
            scope.spawn(move || {
                while ended.recv_timeout(TICK) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let (done, total) = (processed.load(Ordering::Relaxed), bar.length().unwrap_or(0) as usize);
                    let batch = n_ubatch.min(total.saturating_sub(done));
                    bar.set_position((done as f64 + within() * batch as f64) as u64);
                }
            });
        }
        session.sync(prompt, &mut |done, total| {
            processed.store(done, Ordering::Relaxed);
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })
    });
    bar.finish_and_clear();
    (synced, processed.into_inner())
}
