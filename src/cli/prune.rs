//! Flags about pruning, and the options that they become.

use std::path::PathBuf;

use clap::Args;

use super::value::{not_one_of, out_of_range};
use crate::error::{Error, Result};
use crate::prune::{HistoryKind, MAX_RATIO, Method, Metric, Options, Picker, Spread};

/// What `--prune auto` may cost: about what Q5_K_M costs Llama-3-8B.
const TARGET: f64 = 0.01;

#[derive(Debug, Args)]
#[command(next_help_heading = "Probe Pruning")]
pub struct PruneArgs {
    /// Share of the blocks' weights that reading a prompt leaves out, 0 to 0.8: each batch runs on the heads and channels that matter
    /// for it
    ///
    /// Before each block of the model runs on a micro-batch of a prompt, a probe of its tokens finds what is kept. Keys and values
    /// are always made of all heads, and the prompt's last tokens and the answer run dense. A prompt that is too short to gain is
    /// read densely (--prune-min-tokens). 0 is exactly the dense model.
    ///
    /// auto, or auto:KL, is the largest share that on this model costs no more than KL [0.01]: the divergence, in nats per token, of
    /// what follows from what follows a dense reading, by the curve that pp-run calibrate measured. Without one, reading is dense.
    ///
    /// Where whole texts are scored (pp-run perplexity without --context), and with --prune-paper, R counts heads and channels over
    /// all L layers as in the paper; as the first ones stay dense (--prune-skip N), the others leave out L / (L - N) times as much.
    #[arg(long, value_name = "R|auto[:KL]", allow_hyphen_values = true)]
    pub prune: Option<String>,
    #[command(flatten)]
    pub how: PruneHowArgs,
    /// Write what each block of each batch kept, as JSON
    ///
    /// --prune-replay runs with it again.
    #[arg(long, value_name = "FILE")]
    pub prune_dump: Option<PathBuf>,
    /// Keep what a dump of --prune-dump says
    ///
    /// The dump must be of the same model. Not together with --prompt-cache.
    #[arg(long, value_name = "FILE")]
    pub prune_replay: Option<PathBuf>,
}

/// What holds for any ratio.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Probe Pruning")]
pub struct PruneHowArgs {
    /// Share of heads and channels to leave out of answers, too, 0 to 0.8 [default: 0]
    ///
    /// An answer then runs on reduced weights, chosen by the prompt and made once, before its second token, unless it is too short
    /// to gain (--prune-min-tokens). This costs much more quality than pruned reading.
    #[arg(long, value_name = "R", allow_hyphen_values = true)]
    pub prune_answer: Option<f64>,
    /// The paper's own configuration, for batches of many samples; the other flags change it
    ///
    /// A probe of half of the tokens and 5% of the samples, of the largest residual norm; the metric PPsp; a history by position
    /// with momentum 0.99, for which pp-run calibrate must have run. The defaults are for one prompt at a time instead: a tenth
    /// of the tokens at even distances, no history, and a metric on states that are normalised token by token.
    #[arg(long)]
    pub prune_paper: bool,
    /// What decides: pp, full-batch, static, wanda-sp, flap, flap-as-coded [default: pp]
    ///
    /// pp is Probe Pruning. full-batch takes the whole batch as the probe, which shows the best quality that a probe can reach
    /// and saves no time. The others never look at the batch, but at statistics of pp-run calibrate: static is pp's metric on
    /// these; flap-as-coded is FLAP as Probe Pruning's published code has it. A flag that would have no effect on the method is
    /// refused.
    #[arg(long, value_name = "METHOD")]
    pub prune_method: Option<String>,
    /// Tokens and samples of the probe: even (at even distances), residual (of the largest norm) [default: even]
    #[arg(long, value_name = "PICKER")]
    pub prune_picker: Option<String>,
    /// Share of the tokens in the probe [default: 0.1]
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true)]
    pub prune_tokens: Option<f64>,
    /// Share of the samples in the probe [default: 1]
    #[arg(long, value_name = "SHARE", allow_hyphen_values = true)]
    pub prune_samples: Option<f64>,
    /// What a channel is worth: normalised, ppsp (the paper's) [default: normalised]
    ///
    /// ppsp is also the default of full-batch and of the histories channel and position.
    #[arg(long, value_name = "METRIC")]
    pub prune_metric: Option<String>,
    /// How what reading leaves out is spread over the blocks: depth (more in later ones), uniform, calibrated, or a file [default: depth]
    ///
    /// calibrated is what costs least by what pp-run calibrate measured on the model, and what --prune auto takes; the probe is then
    /// seconded by what the channels did on that text.
    ///
    /// A block may be dropped whole; then only its keys and values are made. A file is JSON: {"pp-run prune plan": 1, "budgets":
    /// [{"layers": [[A, M], ..]}, ..]}, with the shares to leave out of the attention and of the MLP of each layer, 0 to 1, for
    /// one or more ratios; between them they are interpolated.
    #[arg(long, value_name = "PLAN")]
    pub prune_plan: Option<String>,
    /// Read the first piece of a long prompt both ways; if that costs more than KL, prune the rest less, or not at all
    ///
    /// With --prune auto or --prune-plan calibrated. The piece is one of -ub tokens, and the prompt must be more than twice as long. What is
    /// compared is what the model expects of the 64 tokens after it. The piece itself is kept as it was read densely.
    #[arg(long, value_name = "KL", allow_hyphen_values = true)]
    pub prune_guard: Option<f64>,
    /// First layers that stay dense [default: 3]
    #[arg(long, value_name = "N")]
    pub prune_skip: Option<usize>,
    /// Attention stays dense
    #[arg(long)]
    pub prune_mlp_only: bool,
    /// What the probe is fused with: none, channel, position (both need pp-run calibrate) [default: none]
    #[arg(long, value_name = "KIND")]
    pub prune_history: Option<String>,
    /// Share of the old in the history after each batch; 1 = it never changes [default: 0.99]
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub prune_momentum: Option<f64>,
    /// The number of kept channels is a multiple of this [default: 64]
    #[arg(long, value_name = "N")]
    pub prune_multiple: Option<usize>,
    /// Statistics from pp-run calibrate [default: the model's name with .ppcal]
    #[arg(long, value_name = "FILE")]
    pub prune_calibration: Option<PathBuf>,
}

/// What to prune; `None` for nothing. Every flag that would have no effect is refused with the reason.
pub fn options(a: PruneArgs, min_tokens: Option<String>) -> Result<Option<Options>> {
    let of_batches = [("--prune-dump", a.prune_dump.is_some()), ("--prune-replay", a.prune_replay.is_some())];
    if let (None, Some((flag, _))) = (&a.prune, of_batches.iter().find(|f| f.1)) {
        return Err(needs_ratio(flag));
    }
    let Some(mut o) = options_for(a.prune.as_deref(), a.how, min_tokens)? else { return Ok(None) };
    o.dump = a.prune_dump;
    o.replay = a.prune_replay;
    if o.replay.is_some() && o.needs_calibration() {
        return Err(Error::usage(
            "--prune-replay keeps what the dump says: --prune auto, --prune-plan calibrated, --prune-method and --prune-history have no \
             effect",
        ));
    }
    Ok(Some(o))
}

fn needs_ratio(flag: &str) -> Error {
    Error::usage(format!("{flag} changes what --prune R does: give that too"))
}

/// [`options`] without what concerns single batches.
pub fn options_for(amount: Option<&str>, a: PruneHowArgs, min_tokens: Option<String>) -> Result<Option<Options>> {
    let given = [
        ("--prune-paper", a.prune_paper),
        ("--prune-method", a.prune_method.is_some()),
        ("--prune-picker", a.prune_picker.is_some()),
        ("--prune-tokens", a.prune_tokens.is_some()),
        ("--prune-samples", a.prune_samples.is_some()),
        ("--prune-metric", a.prune_metric.is_some()),
        ("--prune-answer", a.prune_answer.is_some()),
        ("--prune-plan", a.prune_plan.is_some()),
        ("--prune-guard", a.prune_guard.is_some()),
        ("--prune-skip", a.prune_skip.is_some()),
        ("--prune-mlp-only", a.prune_mlp_only),
        ("--prune-history", a.prune_history.is_some()),
        ("--prune-momentum", a.prune_momentum.is_some()),
        ("--prune-multiple", a.prune_multiple.is_some()),
        ("--prune-calibration", a.prune_calibration.is_some()),
        ("--prune-min-tokens", min_tokens.is_some()),
    ];
    let Some(amount) = amount else {
        return match given.iter().find(|g| g.1) {
            Some((flag, _)) => Err(needs_ratio(flag)),
            None => Ok(None),
        };
    };
    let (ratio, target) = self::amount(amount)?;
    let mut o = if a.prune_paper { Options::paper(ratio) } else { Options::new(ratio) };
    o.target = target;
    o.method = method(a.prune_method.as_deref())?;
    if o.method != Method::Pp {
        check_method(o.method, &given)?;
        // These methods score with the published metric, unless another is asked for.
        o.metric = Metric::Ppsp;
        o.history = HistoryKind::None;
    }
    choose(&mut o, &a)?;
    if !o.method.looks_at_batch() {
        if target.is_some() {
            return Err(Error::usage(format!(
                "--prune auto has no effect on --prune-method {}: what that costs is not measured",
                o.method.name()
            )));
        }
        if a.prune_plan.is_some() {
            return Err(Error::usage(format!("--prune-plan has no effect on --prune-method {}", o.method.name())));
        }
        o.spread = Spread::Paper;
    }
    match a.prune_plan.as_deref() {
        None | Some("calibrated") if target.is_some() && !a.prune_mlp_only && !a.prune_paper => {
            o.spread = Spread::Calibrated;
        }
        _ if target.is_some() => {
            return Err(Error::usage(
                "--prune auto goes by what the model's own plan costs: --prune-plan, --prune-mlp-only and --prune-paper ask for others",
            ));
        }
        None if a.prune_mlp_only => o.spread = Spread::Paper,
        None => {}
        Some(_) if a.prune_mlp_only => {
            return Err(Error::usage("--prune-mlp-only and --prune-plan both say what is left out: give one"));
        }
        Some("depth") => o.spread = Spread::Depth,
        Some("uniform") => o.spread = Spread::Uniform,
        Some("calibrated") => o.spread = Spread::Calibrated,
        Some(file) => o.spread = Spread::File(file.into()),
    }
    o.guard = match a.prune_guard {
        Some(kl) if !(kl > 0.0 && kl.is_finite()) => return Err(out_of_range("--prune-guard", kl, "more than 0")),
        Some(_) if o.spread != Spread::Calibrated => {
            return Err(Error::usage(
                "--prune-guard goes by what the model's own plan costs: it needs --prune auto or --prune-plan calibrated",
            ));
        }
        guard => guard,
    };
    let share = |flag: &str, x: f64| {
        if x > 0.0 && x <= 1.0 { Ok(x) } else { Err(out_of_range(flag, x, "more than 0, at most 1")) }
    };
    o.tokens = share("--prune-tokens", a.prune_tokens.unwrap_or(o.tokens))?;
    o.samples = share("--prune-samples", a.prune_samples.unwrap_or(o.samples))?;
    o.momentum = match a.prune_momentum.unwrap_or(o.momentum) {
        x if (0.0..=1.0).contains(&x) => x,
        x => return Err(out_of_range("--prune-momentum", x, "0 to 1")),
    };
    o.answer = match a.prune_answer.unwrap_or(0.0) {
        x if (0.0..=0.8).contains(&x) => x,
        x => return Err(out_of_range("--prune-answer", x, "0 to 0.8")),
    };
    if o.answer > 0.0 && !o.method.looks_at_batch() && o.answer != o.ratio {
        return Err(Error::usage(format!(
            "--prune-method {} has one mask for prompts and answers: --prune-answer is 0 or the same as --prune",
            o.method.name()
        )));
    }
    if a.prune_skip.is_some() && o.answer == 0.0 && matches!(o.spread, Spread::Calibrated | Spread::File(_)) {
        return Err(Error::usage("--prune-skip has no effect: the plan says what each layer leaves out"));
    }
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
            "--prune-calibration has no effect: neither the plan nor the method nor its history uses statistics (see --prune-plan)",
        ));
    }
    o.calibration = a.prune_calibration;
    Ok((ratio > 0.0 || target.is_some()).then_some(o))
}

/// `R`, `auto` or `auto:KL`: the ratio, and the divergence that it is to be found by.
fn amount(text: &str) -> Result<(f64, Option<f64>)> {
    let bad = || not_one_of("--prune", text, "0 to 0.8, auto, auto:KL");
    let target = match text.strip_prefix("auto") {
        None => None,
        Some("") => Some(TARGET),
        Some(kl) => {
            let kl = kl.strip_prefix(':').and_then(|kl| kl.parse().ok());
            Some(kl.filter(|kl| *kl > 0.0 && f64::is_finite(*kl)).ok_or_else(bad)?)
        }
    };
    match target {
        Some(_) => Ok((0.0, target)),
        None => match text.parse().map_err(|_| bad())? {
            ratio if (0.0..=MAX_RATIO).contains(&ratio) => Ok((ratio, None)),
            ratio => Err(out_of_range("--prune", ratio, "0 to 0.8")),
        },
    }
}

fn method(name: Option<&str>) -> Result<Method> {
    Ok(match name {
        None | Some("pp") => Method::Pp,
        Some("full-batch") => Method::FullBatch,
        Some("static") => Method::Static,
        Some("wanda-sp") => Method::WandaSp,
        Some("flap") => Method::Flap,
        Some("flap-as-coded") => Method::FlapAsCoded,
        Some(other) => {
            return Err(not_one_of("--prune-method", other, "pp, full-batch, static, wanda-sp, flap, flap-as-coded"));
        }
    })
}

/// Refuses flags that have no effect on a method other than Probe Pruning.
fn check_method(method: Method, given: &[(&str, bool)]) -> Result<()> {
    let why = match method {
        Method::FullBatch => "its probe is the whole batch, without history",
        _ => "it never looks at the batch",
    };
    let of_the_probe = ["--prune-picker", "--prune-tokens", "--prune-samples", "--prune-history", "--prune-momentum"];
    if let Some((flag, _)) = given.iter().find(|(flag, set)| *set && of_the_probe.contains(flag)) {
        return Err(Error::usage(format!("{flag} has no effect on --prune-method {}: {why}", method.name())));
    }
    if method != Method::FullBatch && given.contains(&("--prune-metric", true)) {
        let name = method.name();
        return Err(Error::usage(format!("--prune-metric has no effect on --prune-method {name}: it has its own")));
    }
    Ok(())
}

/// The probe's picker, the metric and the history, which must fit together.
fn choose(o: &mut Options, a: &PruneHowArgs) -> Result<()> {
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
                "--prune-metric normalised has no history: a history holds squares of states as they are, not normalised \
                 (use --prune-metric ppsp or --prune-history none)",
            ));
        }
        o.metric = Metric::Ppsp;
    }
    if o.history == HistoryKind::None && a.prune_momentum.is_some() {
        return Err(Error::usage(
            "--prune-momentum has no effect without a history (--prune-history channel or position)",
        ));
    }
    Ok(())
}
