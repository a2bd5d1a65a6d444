//! `pp-run perplexity`: as llama-perplexity, so that numbers can be compared; and as Probe Pruning's paper.

use std::path::PathBuf;
use std::slice;
use std::time::{Duration, Instant};

use super::input::read_text;
use super::kld;
use super::load::load;
use super::logits_file::{Head, Reader, Writer};
use super::output::print;
use super::pruning;
use super::scores::{Followed, Scores};
use super::signals::Signals;
use crate::engine::{LlamaSession, Loaded, OUTPUT_ROWS, Report, Session, libllama};
use crate::error::{Error, Result};
use crate::log::{self, Log};
use crate::model::Model;
use crate::tokenizer::{Token, Tokenizer};
use crate::{engine, model, prune};

#[derive(Debug, Clone)]
pub struct Options {
    pub log: log::Options,
    pub model: model::Options,
    /// The session; `n_ctx` is the window's length (512 if not given).
    pub context: engine::Options,
    /// `-f`
    pub file: PathBuf,
    /// `--chunks`; `None` = all
    pub chunks: Option<usize>,
    /// `--batch`, `--seq`: windows in one pass, tokens of a window
    pub batch: Option<(usize, usize)>,
    /// `--context`, `--after`: tokens that are read, and tokens that are scored after them
    pub reading: Option<(usize, usize)>,
    /// `--read-last`: tokens at the end of each context that are read; `None` = all
    pub read_last: Option<usize>,
    /// `--kl`
    pub kl: bool,
    /// `--kl-base`: the model to compare with, if it is another one
    pub kl_base: Option<model::Options>,
    /// `--kl-divergence-base`: a file of log-probabilities, which is read with `--kl`, and else written
    pub logits_file: Option<PathBuf>,
    /// What to prune, if at all
    pub prune: Option<prune::Options>,
}

/// What a run computes.
struct Protocol {
    /// Windows of equal length
    windows: Vec<Vec<Token>>,
    /// Windows in one pass
    n_seq: usize,
    /// First position that is scored
    first: usize,
}

/// What is done with a file of log-probabilities.
enum LogitsFile {
    None,
    Write(Writer),
    Read(Reader),
}

impl LogitsFile {
    /// Begins the file, or opens it, if there is to be one. `tokens` are those of the windows, in the text's order.
    fn open(options: &Options, n_ctx: usize, n_vocab: usize, tokens: &[Token]) -> Result<LogitsFile> {
        let head = Head { n_ctx, n_vocab, tokens };
        Ok(match &options.logits_file {
            None => LogitsFile::None,
            Some(path) if options.kl => LogitsFile::Read(Reader::open(path, &head)?),
            Some(path) => LogitsFile::Write(Writer::create(path, &head)?),
        })
    }

    /// Scores the tokens `next` by the rows of logits before them, which go into the file, or are compared with its rows or with `dense`.
    fn score(
        &mut self,
        scores: &mut Scores,
        logits: &[f32],
        dense: Option<&[f32]>,
        next: &[Token],
        n_threads: usize,
    ) -> Result<()> {
        match self {
            LogitsFile::Read(reader) => scores.add_compared(reader.compare(logits, next)?),
            LogitsFile::None => scores.add(logits, dense, next, n_threads),
            LogitsFile::Write(writer) => {
                writer.add(logits)?;
                scores.add(logits, dense, next, n_threads);
            }
        }
        Ok(())
    }

    /// Gives a file that was written its name.
    fn finish(self) -> Result<()> {
        match self {
            LogitsFile::Write(writer) => writer.finish(),
            LogitsFile::None | LogitsFile::Read(_) => Ok(()),
        }
    }
}

/// llama-perplexity's windows: of `-c` tokens, each beginning with BOS if the model wants it; the second half of each is scored.
/// With `--batch` and `--seq` Probe Pruning's: consecutive pieces of the text as it is, scored whole.
fn protocol(options: &Options, tokens: &[Token], bos: Option<Token>, n_ctx_train: usize) -> Result<Protocol> {
    let (n_ctx, n_seq) = match options.batch {
        Some((batch, seq)) => (seq, batch),
        None => {
            let n_ctx = options.context.n_ctx.filter(|&n| n > 0).map_or(n_ctx_train, |n| n as usize);
            if n_ctx < 4 {
                return Err(Error::usage(format!("-c is {n_ctx}, expected 4 or more: half of a window is scored")));
            }
            (n_ctx, options.context.n_batch as usize / n_ctx)
        }
    };
    let (least, windows) = if options.batch.is_some() { (n_ctx, "one window") } else { (2 * n_ctx, "two windows") };
    if tokens.len() < least {
        return Err(Error::malformed(format!(
            "has {} tokens, but {windows} of {n_ctx} are needed at least: use a longer text or shorter windows",
            tokens.len()
        ))
        .in_file(&options.file));
    }
    let n_chunks = options.chunks.unwrap_or(usize::MAX).min(tokens.len() / n_ctx);
    let mut windows: Vec<Vec<Token>> = tokens.chunks_exact(n_ctx).take(n_chunks).map(<[_]>::to_vec).collect();
    if options.batch.is_none() {
        windows.iter_mut().for_each(|w| w[0] = bos.unwrap_or(w[0]));
    }
    let first = if options.batch.is_some() { 0 } else { n_ctx / 2 };
    Ok(Protocol { n_seq: n_seq.clamp(1, n_chunks), windows, first })
}

/// Scores what follows each of a text's contexts, which are read as prompts are. With `--kl` the dense model reads them, too, or another
/// model (`--kl-base`).
fn reading(
    options: &Options,
    (model, tokenizer): (&Model, &Tokenizer),
    tokens: &[Token],
    (n_read, n_after): (usize, usize),
    log: &Log,
    signals: &Signals,
) -> Result<()> {
    let n = n_read + n_after;
    let n_chunks = options.chunks.unwrap_or(usize::MAX).min(tokens.len() / n);
    if n_chunks == 0 {
        return Err(
            Error::malformed(format!("has {} tokens, but one window has {n}", tokens.len())).in_file(&options.file)
        );
    }
    let base = options.kl_base.as_ref().map(|of| load_base(of, options, tokenizer, log, signals)).transpose()?;
    let bos = bos(tokenizer);
    let n_threads = options.context.n_threads_batch;
    let context = engine::Options { n_ctx: Some(u32::try_from(n).unwrap_or(u32::MAX)), ..options.context.clone() };
    let new = |model| Session::new(model, &context, 1, n_after, signals.interrupt.clone());
    let mut session = new(model)?;
    pruning::apply(&mut session, model, options.prune.as_ref(), n_threads, log)?;
    let mut dense = options.kl.then(|| new(base.as_ref().and_then(Loaded::own).unwrap_or(model))).transpose()?;
    log.note(&format!("{n_chunks} windows of {n_read} tokens that are read and {n_after} that are scored"));
    let bar = log.progress("perplexity", (n_chunks * n) as u64, "tokens");
    let mut scores = Scores::default();
    let (mut time, mut dense_time) = (Duration::ZERO, Duration::ZERO);
    for (done, window) in tokens.chunks_exact(n).take(n_chunks).enumerate() {
        let mut window = window.to_vec();
        window[0] = bos.unwrap_or(window[0]);
        let (context, after) = window.split_at(n_read);
        let dense_read = dense.as_mut().map(|dense| Followed::new(dense, context, after)).transpose();
        let dense_read = dense_read.map_err(|e| signals.named(e))?;
        let context = &context[n_read - options.read_last.unwrap_or(n_read)..];
        let read = Followed::new(&mut session, context, after).map_err(|e| signals.named(e))?;
        dense_time += dense_read.as_ref().map_or(Duration::ZERO, |b| b.time);
        time += read.time;
        let base_session = dense.as_mut().filter(|_| base.is_some());
        let scored = scores.add_followed(&mut session, &read, dense_read.as_ref(), base_session, after, n_threads);
        scored.map_err(|e| signals.named(e))?;
        bar.set_position(((done + 1) * n) as u64);
        bar.suspend(|| print(&format!("[{}]{:.4},", done + 1, scores.sums.estimate().0)))?;
    }
    bar.finish_and_clear();
    pruning::write_dump(&session, model)?;
    finish(options, session.prune_report(), &scores, time, dense_time, log)
}

/// The token that windows begin with, if the model wants one.
fn bos(tokenizer: &Tokenizer) -> Option<Token> {
    tokenizer.bos().filter(|_| tokenizer.add_bos())
}

/// The model to compare with. [`crate::error::Kind::Usage`] if its tokens are others than those of `tokenizer`.
fn load_base(
    of: &model::Options,
    options: &Options,
    tokenizer: &Tokenizer,
    log: &Log,
    signals: &Signals,
) -> Result<Loaded> {
    let (base, of_base) = load(of, &options.context, &[], log, signals)?;
    base.require_own("--kl-base")?;
    let pieces = |t: &Tokenizer| (0..t.n_vocab()).map(|i| t.piece(i as Token, true)).collect::<Vec<_>>();
    match pieces(&of_base) == pieces(tokenizer) {
        true => Ok(base),
        false => Err(Error::usage("--kl-base has another vocabulary than the model: nothing can be compared")),
    }
}

/// Scores a text. With `--kl` the dense model scores it too, batch by batch.
pub fn run(options: &Options, signals: &Signals) -> Result<()> {
    let log = Log::new(&options.log, false)?;
    let text = read_text(&options.file)?;
    let (loaded, tokenizer) = load(&options.model, &options.context, slice::from_ref(&options.prune), &log, signals)?;
    let tokens = tokenizer.encode(&text, true, false)?;
    if let Loaded::Libllama(model) = &loaded {
        return by_libllama(options, model, &tokens, bos(&tokenizer), &log, signals);
    }
    let model = loaded.require_own("perplexity")?;
    if let Some((n_read, n_after)) = options.reading {
        return reading(options, (model, &tokenizer), &tokens, (n_read, n_after), &log, signals);
    }
    let Protocol { windows, n_seq, first } =
        protocol(options, &tokens, bos(&tokenizer), model.hparams().n_ctx_train as usize)?;
    let n_ctx = windows[0].len();
    let n_threads = options.context.n_threads_batch;
    let mut context = options.context.clone();
    context.n_ctx = Some(u32::try_from(n_ctx).unwrap_or(u32::MAX));
    if options.batch.is_some() {
        // Scores decide between near equals: they are as exact as those of the reference.
        context.exact = true;
        // One pass prunes all windows together, so all of their tokens are one micro-batch.
        context.n_ubatch = u32::try_from(n_seq * n_ctx).unwrap_or(u32::MAX);
        context.n_batch = context.n_ubatch;
    }
    let mut session = Session::new(model, &context, n_seq, n_seq * n_ctx, signals.interrupt.clone())?;
    pruning::apply(&mut session, model, options.prune.as_ref(), n_threads, &log)?;

    let mut file = LogitsFile::open(options, n_ctx, model.n_vocab(), &tokens[..windows.len() * n_ctx])?;
    log.note(&format!("{} windows of {n_ctx} tokens, {n_seq} at a time", windows.len()));
    let bar = log.progress("perplexity", (windows.len() * n_ctx) as u64, "tokens");
    let mut scores = Scores::default();
    let (mut time, mut dense_time) = (Duration::ZERO, Duration::ZERO);
    let mut done = 0;
    let interrupted = |e| signals.named(e);
    for group in windows.chunks(n_seq) {
        let seqs: Vec<&[Token]> = group.iter().map(Vec::as_slice).collect();
        let mut states = |prune: bool, time: &mut Duration| {
            let start = Instant::now();
            let states = session.states(&seqs, first, prune).map_err(interrupted);
            *time += start.elapsed();
            states
        };
        let is_beside = options.kl && options.logits_file.is_none();
        let dense = if is_beside { Some(states(false, &mut dense_time)?) } else { None };
        let pruned = states(true, &mut time)?;
        let n_embd = model.hparams().n_embd;
        for (i, window) in group.iter().enumerate() {
            // The state of token i predicts token i + 1; for the state of the last token there is nothing to compare with.
            let n = n_ctx - 1 - first;
            let row = i * (n_ctx - first);
            let next = &window[first + 1..];
            for start in (0..n).step_by(OUTPUT_ROWS) {
                let end = n.min(start + OUTPUT_ROWS);
                let part = (row + start) * n_embd..(row + end) * n_embd;
                let dense = dense.as_ref().map(|d| &d[part.clone()]);
                let logits = session.outputs(&pruned[part]).map_err(interrupted)?;
                let dense = dense.map(|dense| session.outputs(dense)).transpose().map_err(interrupted)?;
                file.score(&mut scores, &logits, dense.as_deref(), &next[start..end], n_threads)?;
            }
            done += 1;
            bar.set_position((done * n_ctx) as u64);
            bar.suspend(|| print(&format!("[{done}]{:.4},", scores.sums.estimate().0)))?;
        }
    }
    bar.finish_and_clear();
    file.finish()?;
    pruning::write_dump(&session, model)?;
    finish(options, session.prune_report(), &scores, time, dense_time, &log)
}

/// Scores a text window by window on a model that libllama runs.
fn by_libllama(
    options: &Options,
    model: &libllama::Model,
    tokens: &[Token],
    bos: Option<Token>,
    log: &Log,
    signals: &Signals,
) -> Result<()> {
    if options.prune.is_some() || options.reading.is_some() || options.kl && options.logits_file.is_none() {
        return Err(Error::unsupported(
            "by libllama: a text is scored as it is; --prune, --context, and --kl without a file need a graph of pp-run's own",
        ));
    }
    let Protocol { windows, first, .. } = protocol(options, tokens, bos, model.n_ctx_train() as usize)?;
    let n_ctx = windows[0].len();
    let context = engine::Options { n_ctx: Some(u32::try_from(n_ctx).unwrap_or(u32::MAX)), ..options.context.clone() };
    let mut session = LlamaSession::new(model, &context, signals.interrupt.clone())?;
    let mut file = LogitsFile::open(options, n_ctx, model.n_vocab(), &tokens[..windows.len() * n_ctx])?;
    log.note(&format!("{} windows of {n_ctx} tokens", windows.len()));
    let bar = log.progress("perplexity", (windows.len() * n_ctx) as u64, "tokens");
    let (mut scores, start) = (Scores::default(), Instant::now());
    for (done, window) in windows.iter().enumerate() {
        // After the last token there is nothing to compare with.
        let scored = session.score(&window[..n_ctx - 1], first, &mut |i, logits| {
            file.score(&mut scores, logits, None, &window[i + 1..i + 2], 1)
        });
        scored.map_err(|e| signals.named(e))?;
        bar.set_position(((done + 1) * n_ctx) as u64);
        bar.suspend(|| print(&format!("[{}]{:.4},", done + 1, scores.sums.estimate().0)))?;
    }
    bar.finish_and_clear();
    file.finish()?;
    finish(options, None, &scores, start.elapsed(), Duration::ZERO, log)
}

/// Says what came of it.
fn finish(
    options: &Options,
    report: Option<&Report>,
    scores: &Scores,
    time: Duration,
    dense_time: Duration,
    log: &Log,
) -> Result<()> {
    let (perplexity, error) = scores.sums.estimate();
    if !perplexity.is_finite() {
        print("\n")?;
        return Err(Error::failed("the perplexity is not a number: the model computes NaN (try --check-tensors)"));
    }
    if let Some(report) = report {
        log.note(&report.line());
    }
    let seconds = |t: Duration| t.as_secs_f64();
    log.note(&match options.kl {
        true => format!("passes {:.3} s, dense {:.3} s", seconds(time), seconds(dense_time)),
        false => format!("passes {:.3} s", seconds(time)),
    });
    print("\n")?;
    if options.kl {
        print(&format!("{}\n", kld::table(&scores.compared)))?;
    }
    print(&format!("Final estimate: PPL = {perplexity:.4} +/- {error:.5}\n"))
}
