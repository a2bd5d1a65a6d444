//! Flags of `pp-run perplexity`, and the options that they become.

use std::path::PathBuf;

use clap::Args;

use super::context::{self, ContextArgs};
use super::log::{self, LogArgs};
use super::model::{self, ModelArgs};
use super::prune::{self, PruneArgs};
use super::value::out_of_range;
use crate::commands::perplexity::Options;
use crate::error::{Error, Result};
use crate::model::Options as ModelOptions;
use crate::prune::{Options as PruneOptions, Spread};

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// The model
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true)]
    pub model: PathBuf,
    /// The text
    #[arg(long, short = 'f', value_name = "FILE", allow_hyphen_values = true)]
    pub file: PathBuf,
    /// Windows to compute; -1 = all
    #[arg(long, value_name = "N", default_value_t = -1, allow_hyphen_values = true)]
    pub chunks: i64,
    /// Probe Pruning's protocol: so many consecutive windows in one pass, all positions counted, no BOS added
    #[arg(long, value_name = "B", requires = "seq")]
    pub batch: Option<u32>,
    /// Probe Pruning's protocol: tokens of a window
    #[arg(long, value_name = "T", requires = "batch")]
    pub seq: Option<u32>,
    /// Read so many tokens as a prompt, pruned by --prune, and score those after them (--after) densely
    ///
    /// Each window has C + N tokens. With --kl it is read densely as well, and the scores are compared.
    #[arg(long, value_name = "C", requires = "after", conflicts_with_all = ["batch", "ctx_size"])]
    pub context: Option<u32>,
    /// Tokens to score after each context
    #[arg(long, value_name = "N", requires = "context")]
    pub after: Option<u32>,
    /// Read only so many tokens at the end of each context, for comparison: --kl compares with reading all of it densely
    #[arg(long, value_name = "N", requires = "context")]
    pub read_last: Option<u32>,
    /// Compare with the dense model in the same run, or with the file of --kl-divergence-base: llama-perplexity's table of KL divergences
    #[arg(long, alias = "kl-divergence")]
    pub kl: bool,
    /// File of log-probabilities, llama-perplexity's: written, or with --kl compared with
    ///
    /// It holds those of the tokens that are scored, in 16 bits each, and its windows must be those of -c and --chunks.
    #[arg(long, alias = "save-all-logits", value_name = "FILE", conflicts_with_all = ["batch", "context"], allow_hyphen_values = true)]
    pub kl_divergence_base: Option<PathBuf>,
    /// Compare with this model read densely, such as the one that a smaller quantisation was made of, instead of the same one
    #[arg(long, value_name = "FILE", requires_all = ["context", "kl"], allow_hyphen_values = true)]
    pub kl_base: Option<PathBuf>,
    #[command(flatten)]
    pub prune: PruneArgs,
    #[command(flatten)]
    pub context_args: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

pub fn options(mut a: PerplexityArgs) -> Result<Options> {
    if a.batch.is_some() {
        // The scores of nearly equal channels decide what is kept, so the cache holds 32-bit floats, as in the reference.
        a.context_args.cache_type_k.get_or_insert_with(|| "f32".to_owned());
        a.context_args.cache_type_v.get_or_insert_with(|| "f32".to_owned());
    }
    let mut context = context::options(a.context_args)?;
    context.n_ctx = Some(context.n_ctx.unwrap_or(512));
    let batch = match (a.batch, a.seq) {
        (Some(b @ 1..=4096), Some(t @ 2..=1_048_576)) => Some((b as usize, t as usize)),
        (Some(b), Some(t)) => {
            return Err(Error::usage(format!("--batch {b} --seq {t}: expected 1 to 4096, and 2 to 1048576")));
        }
        _ => None,
    };
    // The pruned model is what is measured here: even short windows are pruned, whether that saves time or not.
    let reading = match (a.context, a.after) {
        (Some(c @ 1..=1_048_576), Some(n @ 1..=1_048_576)) => Some((c as usize, n as usize)),
        (Some(c), Some(n)) => {
            return Err(Error::usage(format!("--context {c} --after {n}: expected 1 to 1048576 of both")));
        }
        _ => None,
    };
    if reading.is_none() && a.prune.how.prune_plan.is_some() {
        return Err(Error::usage("--prune-plan is for reading: it needs --context C --after N"));
    }
    if reading.is_none() && a.prune.prune.as_deref().is_some_and(|r| r.starts_with("auto")) {
        return Err(Error::usage("--prune auto is for reading: it needs --context C --after N"));
    }
    if a.prune.how.prune_answer.is_some() {
        return Err(Error::usage("--prune-answer has no effect: no answer is written here"));
    }
    let mut prune = prune::options(a.prune, None)?.map(|p| PruneOptions { min_tokens: Some(2), ..p });
    if let (Some(prune), None) = (&mut prune, reading) {
        prune.spread = Spread::Paper;
    }
    let read_last = match (a.read_last, reading) {
        (Some(n), Some((n_read, _))) if !(1..=n_read).contains(&(n as usize)) => {
            return Err(out_of_range("--read-last", n, "1 to --context"));
        }
        (n, _) => n.map(|n| n as usize),
    };
    if a.kl && prune.is_none() && read_last.is_none() && a.kl_base.is_none() && a.kl_divergence_base.is_none() {
        return Err(Error::usage(
            "--kl compares the pruned model with the dense one: it needs --prune R, or a file (--kl-divergence-base)",
        ));
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
    let model = model::options(a.model, a.model_args)?;
    let kl_base = a.kl_base.map(|path| ModelOptions { path, ..model.clone() });
    Ok(Options {
        log: log::options(a.log),
        model,
        context,
        file: a.file,
        chunks,
        batch,
        reading,
        read_last,
        kl: a.kl,
        kl_base,
        logits_file: a.kl_divergence_base,
        prune,
    })
}
