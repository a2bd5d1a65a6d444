//! The command line: from arguments to options that are resolved and checked.

mod args;
mod normalise;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{CommandFactory, FromArgMatches};

use crate::chat::template::Source;
use crate::chat::terminal::{self, Tristate};
use crate::commands::run::{ContextFull, OutputFormat, Resume, Settings};
use crate::commands::{Command, bench, calibrate, chats, perplexity, run, show, tokenize};
use crate::error::{Error, Result};
use crate::generate::{Limits, Predict};
use crate::gguf::OverrideValue;
use crate::graph::CacheType;
use crate::model::{RopeOptions, RopeScaling};
use crate::prune::{HistoryKind, Method, Metric, Picker};
use crate::system::cpus;
use crate::weights::{Kernels, Pack};
use crate::{engine, log, model, prune, sampler, weights};
use args::{
    BenchArgs, CalibrateArgs, Cli, ContextArgs, LogArgs, ModelArgs, PerplexityArgs, PruneArgs, PruneHowArgs, RopeArgs,
    RunArgs, SamplingArgs, Sub, TokenizeArgs,
};

/// What the user asked for.
#[derive(Debug)]
pub enum Parsed {
    /// A command, with lines to print on stderr first.
    Command(Box<Command>, Vec<String>),
    /// Text to print on stdout, with lines to print on stderr first: `--help`, `--version`, completions, the manual.
    Text(String, Vec<String>),
}

/// Parses an argument list, the program's name first. Errors are of kind [`crate::error::Kind::Usage`].
pub fn parse(args: Vec<OsString>, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Parsed> {
    let bare = args.len() <= 1;
    let command = command();
    let normalised = normalise::normalise(&command, args, env)?;
    let matches = match command.try_get_matches_from(&normalised.args) {
        Ok(matches) => matches,
        Err(e) if !e.use_stderr() => return Ok(Parsed::Text(e.render().to_string(), Vec::new())),
        Err(e) => return Err(Error::usage(one_line(&e.render().to_string()))),
    };
    let mut cli = Cli::from_arg_matches(&matches).map_err(|e| Error::usage(one_line(&e.render().to_string())))?;
    let command = match cli.command {
        None => match cli.run.model.take() {
            Some(model) => Command::Run(Box::new(run_options(model, cli.run, normalised.args, normalised.given)?)),
            // A saved chat knows its model.
            None if cli.run.resume.is_some() => {
                Command::Run(Box::new(run_options(PathBuf::new(), cli.run, normalised.args, normalised.given)?))
            }
            None if bare => Command::Models,
            None => Command::NoModel,
        },
        Some(Sub::Show(a)) => Command::Show(show::Options {
            path: a.path.or(a.model).ok_or_else(|| Error::usage("which model? pp-run show MODEL"))?,
            tensors: a.tensors,
            prunable: a.prunable,
            json: a.json,
        }),
        Some(Sub::Tokenize(a)) => Command::Tokenize(tokenize_options(a)),
        Some(Sub::Perplexity(a)) => Command::Perplexity(perplexity_options(a)?),
        Some(Sub::Calibrate(a)) => Command::Calibrate(calibrate_options(a)?),
        Some(Sub::Bench(a)) => Command::Bench(bench_options(a)?),
        Some(Sub::Chats(a)) => Command::Chats(match (a.show, a.delete_all) {
            (Some(name), _) => chats::Options::Show(name),
            (None, true) => chats::Options::DeleteAll,
            (None, false) if a.delete.is_empty() => chats::Options::List,
            (None, false) => chats::Options::Delete(a.delete),
        }),
        Some(Sub::Doctor) => Command::Doctor,
        Some(Sub::Completions { shell }) => return Ok(Parsed::Text(completions(shell)?, normalised.warnings)),
        Some(Sub::Man) => return Ok(Parsed::Text(manual()?, normalised.warnings)),
    };
    Ok(Parsed::Command(Box::new(command), normalised.warnings))
}

/// The command line as clap describes it.
fn command() -> clap::Command {
    Cli::command()
}

/// The completion script of a shell.
fn completions(shell: clap_complete::Shell) -> Result<String> {
    let mut out = Vec::new();
    clap_complete::generate(shell, &mut command(), "pp-run", &mut out);
    text(out)
}

/// The manual page.
fn manual() -> Result<String> {
    let mut out = Vec::new();
    let page = clap_mangen::Man::new(command());
    page.render(&mut out).map_err(|e| Error::failed(format!("the manual page cannot be made: {e}")))?;
    text(out)
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::internal(format!("the help is no text: {e}")))
}

/// Flags that a chat can change as it goes, by their long names.
const SETTABLE: &[&str] = &[
    "temp",
    "top-k",
    "top-p",
    "min-p",
    "repeat-penalty",
    "repeat-last-n",
    "presence-penalty",
    "frequency-penalty",
    "seed",
    "ignore-eos",
    "predict",
    "stop",
    "prune",
    "prune-method",
    "prune-picker",
    "prune-tokens",
    "prune-metric",
    "prune-skip",
    "prune-mlp-only",
    "prune-history",
    "prune-momentum",
    "prune-multiple",
    "prune-min-tokens",
    "context-full",
    "markdown",
    "wrap",
    "raw",
    "special",
    "in-prefix",
    "in-suffix",
];

/// The options `base` with other values for some flags of [`SETTABLE`], and the flags' names. Names are those of the command line, with or
/// without dashes, or ollama's. `off` takes a flag back that has no value, and ends pruning; nothing at all empties texts.
fn set(base: &run::Options, settings: &[(&str, &str)]) -> Result<(run::Options, Vec<&'static str>)> {
    let command = command();
    let mut args = base.settings.args.clone();
    let mut names = Vec::new();
    for (name, value) in settings {
        let name = settable(&command, name)?;
        let takes_value = command.get_arguments().any(|a| a.get_long() == Some(name) && a.get_action().takes_values());
        let flag = format!("--{name}");
        let is_it = |a: &OsString| {
            a.to_str().and_then(|a| a.strip_prefix(&flag)).is_some_and(|r| r.is_empty() || r.starts_with('='))
        };
        match (takes_value, value.to_lowercase().as_str()) {
            (false, "" | "on" | "true" | "1" | "yes") => {
                args.retain(|a| !is_it(a));
                args.push(flag.into());
            }
            (false, "off" | "false" | "0" | "no") => args.retain(|a| !is_it(a)),
            (false, other) => return Err(not_one_of(&flag, other, "on, off")),
            // What depends on the ratio goes with it.
            (true, "off") if name == "prune" => {
                args.retain(|a| a.to_str().is_none_or(|a| !a.starts_with("--prune")));
            }
            (true, "") if ["stop", "in-prefix", "in-suffix"].contains(&name) => args.retain(|a| !is_it(a)),
            (true, "") => return Err(Error::usage(format!("/set {name} wants a value"))),
            (true, _) => args.push(format!("{flag}={value}").into()),
        }
        names.push(name);
    }
    let usage = |e: clap::Error| Error::usage(one_line(&e.render().to_string()));
    let matches = command.try_get_matches_from(&args).map_err(usage)?;
    let cli = Cli::from_arg_matches(&matches).map_err(usage)?;
    Ok((run_options(base.model.path.clone(), cli.run, args, base.settings.given.clone())?, names))
}

/// The flag that a name stands for.
fn settable(command: &clap::Command, name: &str) -> Result<&'static str> {
    let typed = name.trim_start_matches('-').to_lowercase().replace('_', "-");
    let known = match typed.as_str() {
        "temperature" => "temp",
        "num-predict" | "n-predict" | "n" => "predict",
        other => other,
    };
    if let Some(name) = SETTABLE.iter().find(|n| **n == known) {
        return Ok(name);
    }
    let fixed = command.get_arguments().any(|a| a.get_long() == Some(known)) || known == "num-ctx";
    let hint = match normalise::nearest(known, SETTABLE.iter().copied()) {
        _ if fixed => {
            "it holds for the whole run: leave, and start with it as a flag (--continue goes on with this chat)".into()
        }
        Some(near) => format!("did you mean '{near}'?"),
        None => format!("these can be set: {}", SETTABLE.join(", ")),
    };
    Err(Error::usage(format!("'{typed}' cannot be set in a chat: {hint}")))
}

/// clap's message without its prefix, usage and line breaks.
fn one_line(message: &str) -> String {
    let message = message.split("\n\nUsage:").next().unwrap_or(message);
    let message = message.split("\n\nFor more").next().unwrap_or(message);
    let words: Vec<&str> = message.trim_start_matches("error: ").split_whitespace().collect();
    words.join(" ")
}

fn run_options(model: PathBuf, a: RunArgs, args: Vec<OsString>, given: Vec<String>) -> Result<run::Options> {
    if a.no_jinja {
        return Err(Error::usage(
            "--no-jinja: pp-run renders templates with Jinja only; --no-conversation goes without one",
        ));
    }
    let text = |s: String| if a.no_escape { s } else { unescape(&s) };
    let predict = match a.predict {
        -1 => Predict::Unlimited,
        -2 => Predict::FillContext,
        n => Predict::AtMost(u64::try_from(n).map_err(|_| out_of_range("-n", n, "-2, -1 or more"))?),
    };
    let conversation = match (a.conversation, a.no_conversation) {
        (_, true) => Tristate::Off,
        (true, _) => Tristate::On,
        _ => Tristate::Auto,
    };
    let template = match (a.chat_template, a.chat_template_file) {
        (Some(t), _) => Some(Source::TextOrName(t)),
        (None, Some(f)) => Some(Source::File(f)),
        (None, None) => None,
    };
    let template_kwargs = match a.chat_template_kwargs.map(|j| serde_json::from_str(&j)) {
        None => None,
        Some(Ok(serde_json::Value::Object(map))) => Some(map),
        Some(Ok(_)) => return Err(Error::usage("--chat-template-kwargs must be a JSON object")),
        Some(Err(e)) => return Err(Error::usage(format!("--chat-template-kwargs is not JSON: {e}"))),
    };
    let output_format = match a.output_format.as_str() {
        "text" => OutputFormat::Text,
        "json" => OutputFormat::Json,
        other => return Err(not_one_of("--output-format", other, "text, json")),
    };
    if a.prompt.is_some() && a.file.is_some() {
        return Err(Error::usage("-p and -f both give a prompt: use one of them (text on stdin is added to -p)"));
    }
    if a.resume.is_some() && (output_format == OutputFormat::Json || conversation == Tristate::Off) {
        return Err(Error::usage(
            "--continue goes on with a chat: --output-format json and --no-conversation are for single answers",
        ));
    }
    let context_full = match a.context_full.as_str() {
        "ask" if a.context_shift => ContextFull::Shift,
        "ask" => ContextFull::Ask,
        "stop" => ContextFull::Stop,
        "shift" => ContextFull::Shift,
        "summarise" | "summarize" => ContextFull::Summarise,
        other => return Err(not_one_of("--context-full", other, "ask, stop, shift, summarise")),
    };
    if a.prompt_cache.is_some() && a.prune.prune_replay.is_some() {
        return Err(Error::usage(
            "--prune-replay follows all batches of a prompt, of which --prompt-cache leaves out some",
        ));
    }
    Ok(run::Options {
        log: log_options(a.log),
        model: model_options(model, a.model_args, a.context.rope.clone())?,
        context: context(a.context)?,
        sampling: sampling(a.sampling)?,
        prune: prune_options(a.prune, a.prune_min_tokens)?,
        prompt: a.prompt.map(text),
        prompt_file: a.file,
        system: a.system_prompt,
        system_file: a.system_prompt_file,
        limits: Limits {
            predict,
            stop: a.stop.into_iter().map(text).filter(|s| !s.is_empty()).collect(),
            special: a.special,
        },
        conversation,
        single_turn: a.single_turn,
        template,
        template_kwargs,
        display_prompt: a.display_prompt,
        parse_special: a.parse_special,
        strict_utf8: a.strict_utf8,
        multiline_input: a.multiline_input,
        look: terminal::Options {
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
        trace: a.trace,
        in_prefix: text(a.in_prefix),
        in_suffix: text(a.in_suffix),
        show_timings: !a.no_show_timings,
        resume: a.resume.map(|name| if name.is_empty() { Resume::Last } else { Resume::Named(name) }),
        no_save: a.no_save,
        no_history: a.no_history,
        context_full,
        settings: Settings { args, given, names: SETTABLE, change: set },
    })
}

fn tokenize_options(a: TokenizeArgs) -> tokenize::Options {
    tokenize::Options {
        path: a.model,
        prompt: a.prompt.map(|p| if a.no_escape { p } else { unescape(&p) }),
        prompt_file: a.file,
        ids: a.ids,
        show_count: a.show_count,
        no_bos: a.no_bos,
        no_parse_special: a.no_parse_special,
    }
}

fn perplexity_options(mut a: PerplexityArgs) -> Result<perplexity::Options> {
    if a.batch.is_some() {
        // Scores decide between near equals: floats throughout, as in the reference.
        a.context.cache_type_k.get_or_insert_with(|| "f32".to_owned());
        a.context.cache_type_v.get_or_insert_with(|| "f32".to_owned());
    }
    let rope = a.context.rope.clone();
    let mut context = context(a.context)?;
    context.n_ctx = Some(context.n_ctx.unwrap_or(512));
    let batch = match (a.batch, a.seq) {
        (Some(b @ 1..=4096), Some(t @ 2..=1_048_576)) => Some((b as usize, t as usize)),
        (Some(b), Some(t)) => {
            return Err(Error::usage(format!("--batch {b} --seq {t}: expected 1 to 4096, and 2 to 1048576")));
        }
        _ => None,
    };
    // What is scored is pruned, whether it pays or not.
    let prune = prune_options(a.prune, None)?.map(|p| prune::Options { min_tokens: Some(2), ..p });
    if a.kl && prune.is_none() {
        return Err(Error::usage("--kl compares the pruned model with the dense one: it needs --prune R"));
    }
    let chunks = match a.chunks {
        -1 => None,
        n => Some(
            usize::try_from(n)
                .ok()
                .filter(|&n| n > 0)
                .ok_or_else(|| out_of_range("--chunks", n, "-1, or 1 or more"))?,
        ),
    };
    Ok(perplexity::Options {
        log: log_options(a.log),
        model: model_options(a.model, a.model_args, rope)?,
        context,
        file: a.file,
        chunks,
        batch,
        kl: a.kl,
        prune,
    })
}

fn calibrate_options(mut a: CalibrateArgs) -> Result<calibrate::Options> {
    a.context.cache_type_k.get_or_insert_with(|| "f32".to_owned());
    a.context.cache_type_v.get_or_insert_with(|| "f32".to_owned());
    Ok(calibrate::Options {
        log: log_options(a.log),
        model: model_options(a.model, a.model_args, a.context.rope.clone())?,
        context: context(a.context)?,
        file: a.file,
        output: a.output,
        n_seqs: a.seqs as usize,
        seq_len: a.seq_len as usize,
        batch: (a.batch.min(a.seqs)) as usize,
        positions: !a.no_positions,
    })
}

/// What to prune; `None` for nothing. Every flag that would have no effect is refused with the reason.
fn prune_options(a: PruneArgs, min_tokens: Option<String>) -> Result<Option<prune::Options>> {
    let of_batches = [("--prune-dump", a.prune_dump.is_some()), ("--prune-replay", a.prune_replay.is_some())];
    if let (None, Some((flag, _))) = (a.prune, of_batches.iter().find(|f| f.1)) {
        return Err(needs_ratio(flag));
    }
    let Some(mut o) = prune_how(a.prune, a.how, min_tokens)? else { return Ok(None) };
    o.dump = a.prune_dump;
    o.replay = a.prune_replay;
    if o.replay.is_some() && o.needs_calibration() {
        return Err(Error::usage(
            "--prune-replay keeps what the dump says: --prune-method and --prune-history have no effect",
        ));
    }
    Ok(Some(o))
}

fn needs_ratio(flag: &str) -> Error {
    Error::usage(format!("{flag} changes what --prune R does: give that too"))
}

/// [`prune_options`] without what concerns single batches.
fn prune_how(ratio: Option<f64>, a: PruneHowArgs, min_tokens: Option<String>) -> Result<Option<prune::Options>> {
    let given = [
        ("--prune-paper", a.prune_paper),
        ("--prune-method", a.prune_method.is_some()),
        ("--prune-picker", a.prune_picker.is_some()),
        ("--prune-tokens", a.prune_tokens.is_some()),
        ("--prune-samples", a.prune_samples.is_some()),
        ("--prune-metric", a.prune_metric.is_some()),
        ("--prune-skip", a.prune_skip.is_some()),
        ("--prune-mlp-only", a.prune_mlp_only),
        ("--prune-history", a.prune_history.is_some()),
        ("--prune-momentum", a.prune_momentum.is_some()),
        ("--prune-multiple", a.prune_multiple.is_some()),
        ("--prune-calibration", a.prune_calibration.is_some()),
        ("--prune-min-tokens", min_tokens.is_some()),
    ];
    let Some(ratio) = ratio else {
        return match given.iter().find(|g| g.1) {
            Some((flag, _)) => Err(needs_ratio(flag)),
            None => Ok(None),
        };
    };
    if !(0.0..=0.8).contains(&ratio) {
        return Err(out_of_range("--prune", ratio, "0 to 0.8"));
    }
    let mut o = if a.prune_paper { prune::Options::paper(ratio) } else { prune::Options::new(ratio) };
    o.method = match a.prune_method.as_deref() {
        None | Some("pp") => Method::Pp,
        Some("full-batch") => Method::FullBatch,
        Some("static") => Method::Static,
        Some("wanda-sp") => Method::WandaSp,
        Some("flap") => Method::Flap,
        Some("flap-as-coded") => Method::FlapAsCoded,
        Some(other) => {
            return Err(not_one_of("--prune-method", other, "pp, full-batch, static, wanda-sp, flap, flap-as-coded"));
        }
    };
    if o.method != Method::Pp {
        let why = match o.method {
            Method::FullBatch => "its probe is the whole batch, without history",
            _ => "it never looks at the batch",
        };
        let of_the_probe =
            ["--prune-picker", "--prune-tokens", "--prune-samples", "--prune-history", "--prune-momentum"];
        if let Some((flag, _)) = given.iter().find(|(flag, set)| *set && of_the_probe.contains(flag)) {
            return Err(Error::usage(format!("{flag} has no effect on --prune-method {}: {why}", o.method.name())));
        }
        if o.method != Method::FullBatch && a.prune_metric.is_some() {
            let name = o.method.name();
            return Err(Error::usage(format!("--prune-metric has no effect on --prune-method {name}: it has its own")));
        }
        // The published metric, unless another is asked for.
        o.metric = Metric::Ppsp;
        o.history = HistoryKind::None;
    }
    match a.prune_picker.as_deref() {
        None => {}
        Some("even") => o.picker = Picker::Even,
        Some("residual") => o.picker = Picker::Residual,
        Some(other) => return Err(not_one_of("--prune-picker", other, "even, residual")),
    }
    match a.prune_metric.as_deref() {
        None => {}
        Some("normalised" | "normalized") => o.metric = Metric::Normalised,
        Some("ppsp") => o.metric = Metric::Ppsp,
        Some(other) => return Err(not_one_of("--prune-metric", other, "normalised, ppsp")),
    }
    match a.prune_history.as_deref() {
        None => {}
        Some("none") => o.history = HistoryKind::None,
        Some("channel") => o.history = HistoryKind::Channel,
        Some("position") => o.history = HistoryKind::Position,
        Some(other) => return Err(not_one_of("--prune-history", other, "none, channel, position")),
    }
    if o.history != HistoryKind::None && o.metric == Metric::Normalised {
        if a.prune_metric.is_some() || a.prune_paper {
            return Err(Error::usage(
                "--prune-metric normalised has no history: a history holds squares of states as they are, not normalised                  (use --prune-metric ppsp or --prune-history none)",
            ));
        }
        o.metric = Metric::Ppsp;
    }
    if o.history == HistoryKind::None && a.prune_momentum.is_some() {
        return Err(Error::usage(
            "--prune-momentum has no effect without a history (--prune-history channel or position)",
        ));
    }
    let share = |flag: &str, x: f64| {
        if x > 0.0 && x <= 1.0 { Ok(x) } else { Err(out_of_range(flag, x, "more than 0, at most 1")) }
    };
    o.tokens = share("--prune-tokens", a.prune_tokens.unwrap_or(o.tokens))?;
    o.samples = share("--prune-samples", a.prune_samples.unwrap_or(o.samples))?;
    o.momentum = match a.prune_momentum.unwrap_or(o.momentum) {
        x if (0.0..=1.0).contains(&x) => x,
        x => return Err(out_of_range("--prune-momentum", x, "0 to 1")),
    };
    o.skip = a.prune_skip.unwrap_or(o.skip);
    o.mlp_only = a.prune_mlp_only;
    o.multiple = match a.prune_multiple.unwrap_or(o.multiple) {
        0 => return Err(out_of_range("--prune-multiple", 0, "1 or more")),
        n => n,
    };
    o.min_tokens = match min_tokens.as_deref() {
        None | Some("auto") => None,
        Some(n) => Some(n.parse().map_err(|_| not_one_of("--prune-min-tokens", n, "a number, auto"))?),
    };
    if a.prune_calibration.is_some() && !o.needs_calibration() {
        return Err(Error::usage(
            "--prune-calibration has no effect: neither the method nor its history uses statistics (see --prune-history)",
        ));
    }
    o.calibration = a.prune_calibration;
    Ok((ratio > 0.0).then_some(o))
}

fn bench_options(mut a: BenchArgs) -> Result<bench::Options> {
    let n_threads = match a.context.threads.take() {
        None => vec![cpus::default_threads()],
        Some(list) => numbers("-t", &[list])?.into_iter().map(|n| n as usize).collect(),
    };
    let format = match a.output.as_str() {
        "md" => bench::Format::Md,
        "json" => bench::Format::Json,
        "csv" => bench::Format::Csv,
        other => return Err(not_one_of("-o", other, "md, json, csv")),
    };
    let baseline = match a.baseline.as_deref() {
        None => false,
        Some("llama.cpp") => true,
        Some(other) => return Err(not_one_of("--baseline", other, "llama.cpp")),
    };
    let pair = |s: &String| -> Result<(u32, u32)> {
        match numbers("-pg", std::slice::from_ref(s))?[..] {
            [p, g] if p > 0 && g > 0 => Ok((p, g)),
            _ => Err(Error::usage(format!("-pg wants two numbers, such as 512,128; got '{s}'"))),
        }
    };
    let prompt_gen = a.prompt_gen.iter().map(pair).collect::<Result<Vec<_>>>()?;
    let either = a.n_prompt.is_empty() && a.n_gen.is_empty() && prompt_gen.is_empty();
    let tests = |list: &[String], default: u32, flag: &str| -> Result<Vec<u32>> {
        let all = if list.is_empty() && either { vec![default] } else { numbers(flag, list)? };
        Ok(all.into_iter().filter(|&n| n > 0).collect())
    };
    // As llama-bench: a list that is not given has its default, unless only -pg is.
    let default_prompt =
        if prompt_gen.is_empty() && a.n_prompt.is_empty() { vec![512] } else { tests(&a.n_prompt, 512, "-p")? };
    let default_gen = if prompt_gen.is_empty() && a.n_gen.is_empty() { vec![128] } else { tests(&a.n_gen, 128, "-n")? };
    if a.repetitions == 0 {
        return Err(out_of_range("-r", 0, "1 or more"));
    }
    let ratios = if a.prune.is_empty() { vec![None] } else { a.prune.into_iter().map(Some).collect() };
    let pruned = |ratio| prune_how(ratio, a.prune_how.clone(), a.prune_min_tokens.clone());
    let prune = ratios.into_iter().map(pruned).collect::<Result<Vec<_>>>()?;
    Ok(bench::Options {
        log: log_options(a.log),
        model: model_options(a.model.first().cloned().unwrap_or_default(), a.model_args, a.context.rope.clone())?,
        models: a.model,
        context: context(a.context)?,
        n_prompt: default_prompt,
        n_gen: default_gen,
        prompt_gen,
        n_depth: numbers("-d", &a.n_depth)?,
        repetitions: a.repetitions,
        n_threads,
        format,
        baseline,
        prune,
    })
}

/// `512,1024` and `128-512+128` (or `*2`), several times.
fn numbers(flag: &str, lists: &[String]) -> Result<Vec<u32>> {
    let bad = |part: &str| Error::usage(format!("{flag}: '{part}' is no number, list or range (first-last+step)"));
    let mut out = Vec::new();
    for part in lists.iter().flat_map(|l| l.split(',')).map(str::trim) {
        let Some((first, rest)) = part.split_once('-') else {
            out.push(part.parse().map_err(|_| bad(part))?);
            continue;
        };
        let split = rest.find(['+', '*']);
        let (last, step) = split.map_or((rest, "+1"), |i| rest.split_at(i));
        let (mut n, last): (u32, u32) = (first.parse().map_err(|_| bad(part))?, last.parse().map_err(|_| bad(part))?);
        let by: u32 = step[1..].parse().map_err(|_| bad(part))?;
        if n > last || by == 0 || (step.starts_with('*') && (by < 2 || n == 0)) || (last - n) / by > 10_000 {
            return Err(bad(part));
        }
        while n <= last {
            out.push(n);
            let next = if step.starts_with('*') { n.checked_mul(by) } else { n.checked_add(by) };
            let Some(next) = next else { break };
            n = next;
        }
    }
    Ok(out)
}

fn log_options(a: LogArgs) -> log::Options {
    let verbosity = if a.quiet {
        1
    } else if a.verbose {
        5
    } else {
        a.verbosity.unwrap_or(3)
    };
    log::Options { verbosity, file: a.log_file }
}

fn model_options(path: PathBuf, a: ModelArgs, rope: RopeArgs) -> Result<model::Options> {
    let n_gpu_layers = match a.n_gpu_layers.as_deref() {
        None | Some("auto" | "-1") => None,
        Some("all" | "-2") => Some(u32::MAX),
        Some(n) => Some(n.parse().map_err(|_| not_one_of("-ngl", n, "a number, all, auto"))?),
    };
    let (no_mmap, mlock) = match a.load_mode.as_deref() {
        None | Some("auto") => (a.no_mmap || a.direct_io, a.mlock),
        Some("mmap") => (false, a.mlock),
        Some("none" | "dio") => (true, a.mlock),
        Some("mlock") => (true, true),
        Some("mmap+mlock") => (false, true),
        Some(other) => return Err(not_one_of("--load-mode", other, "auto, mmap, none, mlock, mmap+mlock")),
    };
    let kernels = match a.kernels.as_str() {
        "auto" => Kernels::Auto,
        "ggml" => Kernels::Ggml,
        "native" => Kernels::Native,
        other => return Err(not_one_of("--kernels", other, "auto, ggml, native")),
    };
    let pack = match a.pack.as_str() {
        "batch" => Pack::Batch,
        "resident" if kernels == Kernels::Ggml => {
            return Err(Error::usage("--pack resident is of no use with --kernels ggml, which packs nothing"));
        }
        "resident" => Pack::Resident,
        other => return Err(not_one_of("--pack", other, "batch, resident")),
    };
    let overrides = a.override_kv.iter().flat_map(|list| list.split(',')).map(override_kv).collect::<Result<_>>()?;
    Ok(model::Options {
        path,
        mlock,
        check_tensors: a.check_tensors,
        override_kv: overrides,
        weights: weights::Options { n_gpu_layers, no_mmap, kernels, pack },
        rope: rope_options(rope)?,
    })
}

/// `key=type:value`
fn override_kv(text: &str) -> Result<(String, OverrideValue)> {
    let bad =
        || Error::usage(format!("--override-kv: '{text}' is not KEY=TYPE:VALUE with the type int, float, bool or str"));
    let (key, typed) = text.split_once('=').ok_or_else(bad)?;
    let (ty, value) = typed.split_once(':').ok_or_else(bad)?;
    let value = match ty {
        "int" => OverrideValue::Int(value.parse().map_err(|_| bad())?),
        "float" => OverrideValue::Float(value.parse().map_err(|_| bad())?),
        "bool" => OverrideValue::Bool(value.parse().map_err(|_| bad())?),
        "str" => OverrideValue::Str(value.to_owned()),
        _ => return Err(bad()),
    };
    Ok((key.to_owned(), value))
}

fn context(a: ContextArgs) -> Result<engine::Options> {
    let n_threads = match a.threads.as_deref() {
        None => cpus::default_threads(),
        Some(t) => n_threads("-t", t.parse().map_err(|_| not_one_of("-t", t, "a number"))?)?,
    };
    Ok(engine::Options {
        n_ctx: match a.ctx_size {
            None => None,
            Some(0) => Some(0),
            Some(n) => Some(
                u32::try_from(n)
                    .ok()
                    .filter(|&n| n <= 1 << 30)
                    .ok_or_else(|| out_of_range("-c", n, "0 to 1073741824"))?,
            ),
        },
        n_batch: size("-b", a.batch_size)?,
        n_ubatch: size("-ub", a.ubatch_size)?,
        n_threads,
        n_threads_batch: match a.threads_batch {
            None => n_threads,
            Some(-1) => n_threads,
            Some(n) => self::n_threads("-tb", n)?,
        },
        cache_type_k: cache_type("-ctk", a.cache_type_k.as_deref().unwrap_or("f16"))?,
        cache_type_v: cache_type("-ctv", a.cache_type_v.as_deref().unwrap_or("f16"))?,
        // Every backend of ours has it: auto is on.
        flash_attn: tristate("-fa", &a.flash_attn)? != Tristate::Off,
        exact: false,
    })
}

fn rope_options(a: RopeArgs) -> Result<RopeOptions> {
    let scaling = match a.rope_scaling.as_deref() {
        None => None,
        Some("none") => Some(RopeScaling::None),
        Some("linear") => Some(RopeScaling::Linear),
        Some("yarn") => Some(RopeScaling::Yarn),
        Some(other) => return Err(not_one_of("--rope-scaling", other, "none, linear, yarn")),
    };
    let positive = |flag: &str, x: Option<f32>| match x {
        Some(x) if !(x.is_finite() && x > 0.0) => Err(out_of_range(flag, x, "more than 0")),
        x => Ok(x),
    };
    // llama.cpp's "not set" is a negative number (or 0 for the context).
    let unless_negative = |x: Option<f32>| x.filter(|x| *x >= 0.0);
    Ok(RopeOptions {
        freq_base: positive("--rope-freq-base", a.rope_freq_base.filter(|&x| x != 0.0))?,
        freq_scale: positive(
            "--rope-freq-scale",
            a.rope_freq_scale.or(a.rope_scale.map(|s| 1.0 / s)).filter(|&x| x != 0.0),
        )?,
        scaling,
        yarn_orig_ctx: match a.yarn_orig_ctx {
            None | Some(0) => None,
            Some(n) => Some(size("--yarn-orig-ctx", n)?),
        },
        yarn_ext_factor: unless_negative(a.yarn_ext_factor),
        yarn_attn_factor: unless_negative(a.yarn_attn_factor),
        yarn_beta_slow: unless_negative(a.yarn_beta_slow),
        yarn_beta_fast: unless_negative(a.yarn_beta_fast),
    })
}

/// A number of tokens: of a batch or a context.
fn size(flag: &str, n: i64) -> Result<u32> {
    u32::try_from(n).ok().filter(|&n| (1..=1 << 24).contains(&n)).ok_or_else(|| out_of_range(flag, n, "1 to 16777216"))
}

fn n_threads(flag: &str, n: i64) -> Result<usize> {
    match n {
        -1 | 0 => Ok(cpus::default_threads()),
        1..=512 => Ok(n as usize),
        _ => Err(out_of_range(flag, n, "-1, or 1 to 512")),
    }
}

fn sampling(a: SamplingArgs) -> Result<sampler::Options> {
    let seed = match a.seed {
        None | Some(-1) => None,
        Some(n) => Some(u32::try_from(n).map_err(|_| out_of_range("--seed", n, "-1 to 4294967295"))?),
    };
    let finite = |flag: &str, x: f32| if x.is_finite() { Ok(x) } else { Err(out_of_range(flag, x, "a number")) };
    let share =
        |flag: &str, x: f32| if (0.0..=1.0).contains(&x) { Ok(x) } else { Err(out_of_range(flag, x, "0 to 1")) };
    if a.repeat_last_n < -1 {
        return Err(out_of_range("--repeat-last-n", a.repeat_last_n, "-1 or more"));
    }
    if a.repeat_penalty.is_nan() || a.repeat_penalty <= 0.0 {
        return Err(out_of_range("--repeat-penalty", a.repeat_penalty, "more than 0"));
    }
    Ok(sampler::Options {
        seed,
        temperature: finite("--temp", a.temp)?,
        top_k: a.top_k,
        top_p: share("--top-p", a.top_p)?,
        min_p: share("--min-p", a.min_p)?,
        repeat_penalty: finite("--repeat-penalty", a.repeat_penalty)?,
        repeat_last_n: a.repeat_last_n,
        presence_penalty: finite("--presence-penalty", a.presence_penalty)?,
        frequency_penalty: finite("--frequency-penalty", a.frequency_penalty)?,
        ignore_eos: a.ignore_eos,
    })
}

fn cache_type(flag: &str, text: &str) -> Result<CacheType> {
    match text.to_ascii_lowercase().as_str() {
        "f32" => Ok(CacheType::F32),
        "f16" => Ok(CacheType::F16),
        "q8_0" => Ok(CacheType::Q8_0),
        _ => Err(not_one_of(flag, text, "f16, f32, q8_0")),
    }
}

fn tristate(flag: &str, text: &str) -> Result<Tristate> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "1" | "true" | "yes" | "enabled" => Ok(Tristate::On),
        "off" | "0" | "false" | "no" | "disabled" => Ok(Tristate::Off),
        "auto" | "-1" => Ok(Tristate::Auto),
        _ => Err(not_one_of(flag, text, "on, off, auto")),
    }
}

fn out_of_range(flag: &str, got: impl std::fmt::Display, expected: &str) -> Error {
    Error::usage(format!("{flag} is {got}, expected {expected}"))
}

fn not_one_of(flag: &str, got: &str, expected: &str) -> Error {
    Error::usage(format!("{flag}: '{got}' is not one of: {expected}"))
}

/// llama.cpp's escapes: `\n \r \t \' \" \\ \xNN`; anything else stays as it is.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let (c, length) = match rest.as_bytes() {
            [b'n', ..] => ('\n', 1),
            [b'r', ..] => ('\r', 1),
            [b't', ..] => ('\t', 1),
            [b'\'', ..] => ('\'', 1),
            [b'"', ..] => ('"', 1),
            [b'\\', ..] => ('\\', 1),
            [b'x', a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit() => {
                (char::from(u8::from_str_radix(&rest[1..3], 16).expect("two hexadecimal digits")), 3)
            }
            _ => ('\\', 0),
        };
        out.push(c);
        rest = &rest[length..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &[&str]) -> Result<Parsed> {
        let args = std::iter::once("pp-run").chain(line.iter().copied()).map(OsString::from).collect();
        parse(args, &|_| None)
    }

    fn options(line: &[&str]) -> run::Options {
        let all: Vec<&str> = ["-m", "x.gguf"].iter().chain(line).copied().collect();
        match parse_line(&all).unwrap() {
            Parsed::Command(c, _) => match *c {
                Command::Run(o) => *o,
                other => panic!("{other:?}"),
            },
            Parsed::Text(t, _) => panic!("{t}"),
        }
    }

    #[test]
    fn clap_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn defaults_are_llama_cpps() {
        let o = options(&[]);
        assert_eq!(o.sampling, sampler::Options::default());
        assert_eq!((o.context.n_ctx, o.context.n_batch, o.context.n_ubatch), (None, 2048, 512));
        assert_eq!(o.limits.predict, Predict::Unlimited);
    }

    #[test]
    fn values_are_understood() {
        let o =
            options(&["-n", "-2", "-c", "0", "-fa", "-ctk", "q8_0", "--temp", "-1", "-p", r"a\n\x41\q", "-s", "-1"]);
        assert_eq!(o.limits.predict, Predict::FillContext);
        assert_eq!(o.context.n_ctx, Some(0));
        assert!(o.context.flash_attn && !options(&["-fa", "off"]).context.flash_attn);
        assert_eq!(o.context.cache_type_k, CacheType::Q8_0);
        assert_eq!(o.sampling.temperature, -1.0);
        assert_eq!(o.sampling.seed, None);
        assert_eq!(o.prompt.as_deref(), Some("a\nA\\q"));
        let o = options(&["-p", r"a\n", "--no-escape", "-r", "x", "--stop", "y", "-cnv", "-no-cnv", "-ngl", "all"]);
        assert_eq!(o.prompt.as_deref(), Some(r"a\n"));
        assert_eq!(o.limits.stop, ["x", "y"]);
        assert_eq!(o.conversation, Tristate::Off);
        assert_eq!(o.model.weights.n_gpu_layers, Some(u32::MAX));
        assert_eq!(o.model.weights.kernels, Kernels::Auto);
        assert_eq!(options(&["--kernels", "native"]).model.weights.kernels, Kernels::Native);
        let o = options(&["--override-kv", "a.b=int:3,c=str:x"]);
        assert_eq!(
            o.model.override_kv,
            [("a.b".into(), OverrideValue::Int(3)), ("c".into(), OverrideValue::Str("x".into()))]
        );
    }

    #[test]
    fn bad_values_are_refused_in_one_line() {
        for line in [
            &["-n", "-3"][..],
            &["-c", "-1"],
            &["-b", "0"],
            &["--top-p", "2"],
            &["-t", "1000"],
            &["-ctk", "q4_9"],
            &["-fa", "maybe"],
            &["--temp", "warm"],
            &["--temp", "nan"],
            &["--override-kv", "a=b"],
            &["--kernels", "mine"],
            &["--pack", "never"],
            &["--pack", "resident", "--kernels", "ggml"],
            &["--chat-template-kwargs", "[]"],
            &["-p", "a", "-f", "b"],
            &["-n"],
        ] {
            let all: Vec<&str> = ["-m", "x.gguf"].iter().chain(line).copied().collect();
            let error = parse_line(&all).unwrap_err();
            assert_eq!(error.kind().exit_code(), 2, "{line:?}");
            assert!(!error.to_string().contains('\n') && error.to_string().len() < 200, "{error}");
        }
    }

    #[test]
    fn without_a_model_models_are_looked_for() {
        let command = |line: &[&str]| match parse_line(line).unwrap() {
            Parsed::Command(c, _) => *c,
            Parsed::Text(t, _) => panic!("{t}"),
        };
        assert!(matches!(command(&[]), Command::Models));
        assert!(matches!(command(&["-p", "x"]), Command::NoModel));
        let Command::Run(o) = command(&["x.gguf", "-p", "x"]) else { panic!("a file is a model to run") };
        assert_eq!((o.model.path, o.prompt.as_deref()), ("x.gguf".into(), Some("x")));
    }

    #[test]
    fn lists_and_ranges() {
        assert_eq!(
            numbers("-p", &["1,2".into(), "4-8+2".into(), "1-8*2".into()]).unwrap(),
            [1, 2, 4, 6, 8, 1, 2, 4, 8]
        );
        for bad in ["x", "3-1", "1-5+0", "0-5*2", "-1"] {
            assert!(numbers("-p", &[bad.into()]).is_err(), "{bad}");
        }
    }
}
