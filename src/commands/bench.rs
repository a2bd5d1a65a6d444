//! `pp-run bench`: llama-bench's tests and columns; pruning ratios and llama.cpp's own engine alternately in one process.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ggml::llama::{Context, ContextParams, Model as LlamaModel};
use serde_json::{Value, json};

use super::load::load;
use super::output::print;
use super::pruning;
use super::signals::Signals;
use crate::error::{Error, Kind, Result};
use crate::log::{self, Log};
use crate::model::{self, Model};
use crate::session::{PruneReport, Session};
use crate::system::memory;
use crate::tokenizer::Token;
use crate::weights::Kernels;
use crate::{engine, prune};

/// Format of a table on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Markdown
    Md,
    /// JSON array
    Json,
    /// CSV
    Csv,
}

#[derive(Debug, Clone)]
pub struct Options {
    pub log: log::Options,
    /// The models, one after the other (`path` of the base options is each of these).
    pub models: Vec<PathBuf>,
    /// Everything else about the model.
    pub model: model::Options,
    pub context: engine::Options,
    /// `-p`: prompt lengths
    pub n_prompt: Vec<u32>,
    /// `-n`: tokens generated
    pub n_gen: Vec<u32>,
    /// `-pg`: prompt then generation
    pub prompt_gen: Vec<(u32, u32)>,
    /// `-d`: tokens in the cache before the test
    pub n_depth: Vec<u32>,
    /// `-r`
    pub repetitions: u32,
    /// `-t` list
    pub n_threads: Vec<usize>,
    /// `-o`
    pub format: Format,
    /// `--baseline llama.cpp`: run libllama alternately, print both and the ratio
    pub baseline: bool,
    /// What to prune, if at all: each test runs with each of these
    pub prune: Vec<Option<prune::Options>>,
}

/// What is timed: a prompt, then generated tokens, after `n_depth` tokens that are not timed.
#[derive(Debug, Clone, Copy)]
struct Test {
    n_prompt: usize,
    n_gen: usize,
    n_depth: usize,
}

impl Test {
    /// llama-bench's name.
    fn name(&self) -> String {
        let mut name = match (self.n_prompt, self.n_gen) {
            (p, 0) => format!("pp{p}"),
            (0, g) => format!("tg{g}"),
            (p, g) => format!("pp{p}+tg{g}"),
        };
        if self.n_depth > 0 {
            name.push_str(&format!(" @ d{}", self.n_depth));
        }
        name
    }

    fn n_tokens(&self) -> usize {
        self.n_prompt + self.n_gen
    }
}

/// Ours at some ratio, or the baseline.
enum Engine<'m> {
    Ours { session: Box<Session<'m>>, ratio: f64 },
    Llama { context: Context<'m>, n_batch: usize },
}

impl Engine<'_> {
    fn name(&self) -> &'static str {
        match self {
            Engine::Ours { .. } => "pp-run",
            Engine::Llama { .. } => "llama.cpp",
        }
    }

    /// What is left out; 0 = nothing.
    fn ratio(&self) -> f64 {
        match self {
            Engine::Ours { ratio, .. } => *ratio,
            Engine::Llama { .. } => 0.0,
        }
    }

    /// What pruning did in the last test.
    fn report(&self) -> Option<&PruneReport> {
        match self {
            Engine::Ours { session, .. } => session.prune_report(),
            Engine::Llama { .. } => None,
        }
    }

    fn clear(&mut self) {
        match self {
            Engine::Ours { session, .. } => session.rewind(0),
            Engine::Llama { context, .. } => context.clear(),
        }
    }

    /// Processes `tokens` from position `start` on.
    fn prompt(&mut self, tokens: &[Token], start: usize) -> Result<()> {
        match self {
            Engine::Ours { session, .. } => {
                let mut all = session.tokens().to_vec();
                all.extend_from_slice(tokens);
                session.sync(&all, &mut |_, _| {}).map(drop)
            }
            Engine::Llama { context, n_batch } => {
                for (i, piece) in tokens.chunks(*n_batch).enumerate() {
                    let first = start + i * *n_batch;
                    let batch: Vec<_> = piece
                        .iter()
                        .enumerate()
                        .map(|(j, &t)| (t, (first + j) as i32, 0, j + 1 == piece.len()))
                        .collect();
                    if !context.decode(&batch) {
                        return Err(Error::failed("llama.cpp failed to compute"));
                    }
                }
                Ok(())
            }
        }
    }

    fn decode(&mut self, token: Token, position: usize) -> Result<()> {
        match self {
            Engine::Ours { session, .. } => session.decode(token),
            Engine::Llama { .. } => self.prompt(&[token], position),
        }
    }

    /// The threads sleep while another engine runs.
    fn pause(&self) {
        match self {
            Engine::Ours { session, .. } => session.pause(),
            Engine::Llama { context, .. } => context.pause(),
        }
    }

    /// Runs a test on the given tokens (depth, prompt and generated ones) and times it.
    fn time(&mut self, test: &Test, tokens: &[Token]) -> Result<Duration> {
        self.clear();
        let (depth, rest) = tokens.split_at(test.n_depth);
        let (prompt, generated) = rest.split_at(test.n_prompt);
        if !depth.is_empty() {
            self.prompt(depth, 0)?;
        }
        if let Engine::Ours { session, .. } = self {
            session.expect(generated.len());
        }
        let start = Instant::now();
        if !prompt.is_empty() {
            self.prompt(prompt, test.n_depth)?;
        }
        for (i, &token) in generated.iter().enumerate() {
            self.decode(token, test.n_depth + test.n_prompt + i)?;
        }
        let time = start.elapsed();
        self.pause();
        Ok(time)
    }
}

/// One repetition of a test.
#[derive(Debug, Clone, Copy)]
struct Sample {
    time: Duration,
    /// Of this, the time in which the weights that the answer ran on were reduced
    freeze: Duration,
}

/// Times of one engine on one test.
struct Row {
    engine: &'static str,
    kernels: Kernels,
    test: Test,
    n_threads: usize,
    /// What was to be left out; 0 = nothing
    prune: f64,
    /// What pruning did, in the last repetition
    report: Option<PruneReport>,
    samples: Vec<Sample>,
    /// Median over the repetitions of the baseline's time by ours.
    ratio: Option<f64>,
}

impl Row {
    /// Share of the blocks' weights that it ran on.
    fn kept(&self) -> f64 {
        match &self.report {
            Some(r) if r.is_fixed || r.pruned_tokens > 0 || r.frozen.is_some() => r.kept,
            _ => 1.0,
        }
    }

    /// How a test that was to be pruned ran.
    fn how(&self) -> Option<String> {
        let report = self.report.as_ref()?;
        Some(match self.test.n_prompt + self.test.n_depth {
            0 if !report.is_fixed => "dense: there is no prompt to choose masks by (-d N gives one)".to_owned(),
            _ => report.line(),
        })
    }
}

/// Runs the tests on every model.
pub fn run(options: &Options, signals: &Signals) -> Result<()> {
    let log = Log::new(&options.log, false)?;
    let mut tests = Vec::new();
    for &n_depth in &options.n_depth {
        let mut add =
            |p: u32, g: u32| tests.push(Test { n_prompt: p as usize, n_gen: g as usize, n_depth: n_depth as usize });
        options.n_prompt.iter().for_each(|&p| add(p, 0));
        options.n_gen.iter().for_each(|&g| add(0, g));
        options.prompt_gen.iter().for_each(|&(p, g)| add(p, g));
    }
    if tests.is_empty() {
        return Err(Error::usage("nothing to measure: -p and -n are both 0"));
    }
    let mut table = Table {
        format: options.format,
        baseline: options.baseline,
        prune: options.prune.iter().any(Option::is_some),
        rows: Vec::new(),
    };
    for path in &options.models {
        let mut model_options = options.model.clone();
        model_options.path = path.clone();
        let (model, _) = load(&model_options, &options.context, &log, signals)?;
        let n_gpu_layers = options.model.weights.n_gpu_layers.unwrap_or(u32::MAX);
        let llama = if options.baseline {
            let refused = |e: ggml::llama::LlamaError| Error::failed(format!("llama.cpp: {}", e.0)).in_file(path);
            Some(LlamaModel::load(path, n_gpu_layers).map_err(refused)?)
        } else {
            None
        };
        for &n_threads in &options.n_threads {
            for test in &tests {
                for row in measure(options, &model, llama.as_ref(), n_threads, *test, &log, signals)? {
                    table.add(&row, &model, options)?;
                }
            }
        }
    }
    table.finish()
}

/// One test on every engine, alternately.
fn measure(
    options: &Options,
    model: &Model,
    llama: Option<&LlamaModel>,
    n_threads: usize,
    test: Test,
    log: &Log,
    signals: &Signals,
) -> Result<Vec<Row>> {
    let n_ctx = u32::try_from(test.n_depth + test.n_tokens()).unwrap_or(u32::MAX);
    let context =
        engine::Options { n_ctx: Some(n_ctx), n_threads, n_threads_batch: n_threads, ..options.context.clone() };
    // The baseline first, then what is compared with it.
    let mut engines = Vec::new();
    if let Some(llama) = llama {
        let params = llama_params(&context);
        let refused = |e: ggml::llama::LlamaError| Error::failed(format!("llama.cpp: {}", e.0));
        let n_batch = context.n_batch as usize;
        engines.push(Engine::Llama { context: Context::new(llama, &params).map_err(refused)?, n_batch });
    }
    for pruned in &options.prune {
        let interrupt: Arc<AtomicBool> = signals.interrupt.clone();
        let mut session = Session::new(model, &context, 1, 1, interrupt)?;
        pruning::apply(&mut session, model, pruned.as_ref(), n_threads)?;
        engines.push(Engine::Ours { session: Box::new(session), ratio: pruned.as_ref().map_or(0.0, |p| p.ratio) });
    }
    // Any tokens will do; these are spread over the vocabulary.
    let n_vocab = model.n_vocab() as u64;
    let tokens: Vec<Token> =
        (0..n_ctx as u64).map(|i| ((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % n_vocab) as Token).collect();

    let interrupted = |e: Error| if e.kind() == Kind::Interrupted { signals.error() } else { e };
    let bar = log.progress(&test.name(), u64::from(options.repetitions), "");
    for engine in &mut engines {
        let warm = Test { n_gen: test.n_gen.min(1), ..test };
        engine.time(&warm, &tokens[..warm.n_depth + warm.n_tokens()]).map_err(interrupted)?;
    }
    let mut samples = vec![Vec::new(); engines.len()];
    for repetition in 0..options.repetitions {
        let mut order: Vec<usize> = (0..engines.len()).collect();
        if repetition % 2 == 1 {
            order.reverse();
        }
        for i in order {
            let time = engines[i].time(&test, &tokens).map_err(interrupted)?;
            let frozen = engines[i].report().and_then(|r| r.frozen);
            samples[i].push(Sample { time, freeze: frozen.map_or(Duration::ZERO, |f| f.0) });
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let baseline = llama.map(|_| samples[0].clone());
    let row = |(engine, samples): (&Engine, Vec<Sample>)| {
        let ours = matches!(engine, Engine::Ours { .. });
        let ratio = baseline.as_ref().filter(|_| ours).map(|baseline| {
            let pairs = baseline.iter().zip(&samples);
            median(pairs.map(|(theirs, ours)| theirs.time.as_secs_f64() / ours.time.as_secs_f64()).collect())
        });
        Row {
            engine: engine.name(),
            kernels: if ours { model.kernels() } else { Kernels::Ggml },
            test,
            n_threads,
            prune: engine.ratio(),
            report: engine.report().cloned(),
            samples,
            ratio,
        }
    };
    let rows: Vec<Row> = engines.iter().zip(samples).map(row).collect();
    for row in &rows {
        if let Some(how) = row.how() {
            log.note(&format!("{} at --prune {}: {how}", row.test.name(), row.prune));
        }
    }
    Ok(rows)
}

/// libllama's settings for the same run.
fn llama_params(context: &engine::Options) -> ContextParams {
    ContextParams {
        n_ctx: context.n_ctx.unwrap_or(0),
        n_batch: context.n_batch,
        n_ubatch: context.n_ubatch,
        n_seq_max: 1,
        n_threads: context.n_threads as u32,
        n_threads_batch: context.n_threads_batch as u32,
        type_k: context.cache_type_k.tensor_type(),
        type_v: context.cache_type_v.tensor_type(),
        flash_attn: context.flash_attn,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    if n % 2 == 1 { values[n / 2] } else { (values[n / 2 - 1] + values[n / 2]) / 2.0 }
}

/// Mean and sample standard deviation.
fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}

/// Rows as they come (Markdown, CSV) or all at once (JSON).
struct Table {
    format: Format,
    baseline: bool,
    /// Whether something is pruned
    prune: bool,
    rows: Vec<Value>,
}

impl Table {
    fn add(&mut self, row: &Row, model: &Model, options: &Options) -> Result<()> {
        let nanoseconds = |t: Duration| t.as_nanos() as f64;
        let n = row.test.n_tokens() as f64;
        let times: Vec<f64> = row.samples.iter().map(|s| nanoseconds(s.time)).collect();
        let freezes: Vec<f64> = row.samples.iter().map(|s| nanoseconds(s.freeze)).collect();
        let speeds: Vec<f64> = times.iter().map(|t| n / t * 1e9).collect();
        let unfrozen: Vec<f64> = times.iter().zip(&freezes).map(|(t, f)| n / (t - f) * 1e9).collect();
        let (avg_ns, stddev_ns) = mean_and_deviation(&times);
        let (avg_ts, stddev_ts) = mean_and_deviation(&speeds);
        let frozen = row.report.as_ref().and_then(|r| r.frozen);
        let c = &options.context;
        let mut value = json!({
            "engine": row.engine,
            "kernels": row.kernels.name(),
            "test": row.test.name(),
            "backends": model.backend(),
            "model_filename": model.gguf().path().display().to_string(),
            "model_type": model.description(),
            "model_size": model.n_bytes(),
            "model_n_params": model.n_params(),
            "n_batch": c.n_batch,
            "n_ubatch": c.n_ubatch,
            "n_threads": row.n_threads,
            "type_k": c.cache_type_k.name(),
            "type_v": c.cache_type_v.name(),
            "flash_attn": c.flash_attn,
            "n_prompt": row.test.n_prompt,
            "n_gen": row.test.n_gen,
            "n_depth": row.test.n_depth,
            "prune": row.prune,
            "kept": row.kept(),
            "prune_report": row.how(),
            "freeze_bytes": frozen.map_or(0, |f| f.1),
            "avg_freeze_ns": mean_and_deviation(&freezes).0,
            "samples_freeze_ns": freezes,
            "avg_ts_without_freeze": mean_and_deviation(&unfrozen).0,
            "samples_ts_without_freeze": unfrozen,
            "avg_ns": avg_ns,
            "stddev_ns": stddev_ns,
            "avg_ts": avg_ts,
            "stddev_ts": stddev_ts,
            "samples_ns": times,
            "samples_ts": speeds,
        });
        if let Some(ratio) = row.ratio {
            value["ratio"] = ratio.into();
        }
        match self.format {
            Format::Json => {}
            Format::Md => self.markdown(row, model, avg_ts, stddev_ts)?,
            Format::Csv => self.csv(&value)?,
        }
        self.rows.push(value);
        Ok(())
    }

    fn markdown(&self, row: &Row, model: &Model, avg: f64, deviation: f64) -> Result<()> {
        let mut columns = vec![
            ("model", 24, model.description()),
            ("size", 10, memory::human(model.n_bytes())),
            ("params", 10, format!("{:.2} M", model.n_params() as f64 / 1e6)),
            ("backend", 10, model.backend()),
            ("threads", 7, row.n_threads.to_string()),
            ("test", 16, row.test.name()),
            ("t/s", 20, format!("{avg:.2} \u{b1} {deviation:.2}")),
        ];
        if self.baseline {
            columns.push(("engine", 9, row.engine.to_owned()));
        }
        if self.prune {
            columns.push(("prune", 5, if row.prune > 0.0 { row.prune.to_string() } else { "-".to_owned() }));
            columns.push(("kept", 6, format!("{:.1}%", 100.0 * row.kept())));
        }
        if self.baseline {
            columns.push(("ratio", 6, row.ratio.map_or_else(String::new, |r| format!("{r:.3}"))));
        }
        let line = |cell: &dyn Fn(&(&str, usize, String)) -> String| {
            let cells: Vec<String> = columns.iter().map(cell).collect();
            format!("|{}|\n", cells.join("|"))
        };
        // The first column is to the left, numbers are to the right.
        let text = |name: &str, width: usize, text: &str| match name {
            "model" => format!(" {text:<width$} "),
            _ => format!(" {text:>width$} "),
        };
        if self.rows.is_empty() {
            let rule = |name: &str, width: usize| "-".repeat(width + 1) + if name == "model" { "-" } else { ":" };
            print(
                &(line(&|(name, width, _)| text(name, *width, name)) + &line(&|(name, width, _)| rule(name, *width))),
            )?;
        }
        print(&line(&|(name, width, cell)| text(name, *width, cell)))
    }

    fn csv(&self, value: &Value) -> Result<()> {
        // Every row has the same columns; lists are for JSON.
        let object = value.as_object().expect("a row is an object");
        let mut columns: Vec<&str> =
            object.iter().filter(|(k, v)| !v.is_array() && *k != "ratio").map(|(k, _)| k.as_str()).collect();
        if self.baseline {
            columns.push("ratio");
        }
        let quote = |v: &Value| match v {
            Value::String(s) => format!("\"{}\"", s.replace('"', "\"\"")),
            Value::Null => String::new(),
            v => v.to_string(),
        };
        if self.rows.is_empty() {
            print(&(columns.join(",") + "\n"))?;
        }
        let cells: Vec<String> = columns.iter().map(|c| quote(object.get(*c).unwrap_or(&Value::Null))).collect();
        print(&(cells.join(",") + "\n"))
    }

    fn finish(self) -> Result<()> {
        match self.format {
            Format::Json => {
                let text = serde_json::to_string_pretty(&self.rows).map_err(|e| Error::failed(e.to_string()))?;
                print(&(text + "\n"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_deviations() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(mean_and_deviation(&[1.0, 3.0]), (2.0, 2.0f64.sqrt()));
        assert_eq!(mean_and_deviation(&[5.0]), (5.0, 0.0));
    }
}
