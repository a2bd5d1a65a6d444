//! Flags of `pp-run eval`, and the options that they become.

use std::path::PathBuf;

use clap::Args;

use super::context::{self, ContextArgs};
use super::log::{self, LogArgs};
use super::model::{self, ModelArgs};
use super::prune::{self, PruneHowArgs};
use super::value::{not_one_of, out_of_range};
use crate::commands::eval::{Options, RunOptions};
use crate::error::{Error, Result};
use crate::eval::Rules;
use crate::prune::{HistoryKind, Method, Options as PruneOptions, Spread};

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The model
    #[arg(long, short = 'm', value_name = "FILE", allow_hyphen_values = true, required_unless_present = "compare")]
    pub model: Option<PathBuf>,
    /// Tasks: names, whose rows are in the folder of --data, and files
    ///
    /// Names are boolq, piqa, hellaswag, winogrande, arc_easy, arc_challenge, openbookqa, or any other NAME of which there is NAME.jsonl.
    /// Rows are recognised by their fields: Hugging Face's of these tasks; MosaicML's {query, choices, gold}, where query is the whole
    /// context, and {context_options, continuation, gold}; and the six lines of llama-perplexity's HellaSwag (NAME.txt).
    #[arg(long, value_name = "TASK,..", value_delimiter = ',', required_unless_present = "compare")]
    pub tasks: Vec<String>,
    /// Folder with the files of named tasks [default: .]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Whose rules: lm-eval (lm-evaluation-harness's, zero-shot), pp (those of Probe Pruning's paper)
    ///
    /// pp has contexts and choices of its own, tokenised one by one, 20 rows in a batch, 512 tokens of a row at most (-c), and counts by
    /// likelihood per token; rows that fill no batch are left out, and pruning is the paper's (--prune-paper).
    #[arg(long, value_name = "WHOSE", default_value = "lm-eval")]
    pub rules: String,
    /// Questions of each task, from the first on [default: all]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub limit: Option<i64>,
    /// Read each context as a prompt, pruned by --prune, and score the choices on all weights
    ///
    /// Without it contexts and choices are pruned together, 20 rows of a context and a choice in a batch.
    #[arg(long)]
    pub read: bool,
    /// Methods to run one after the other: dense, and those of --prune-method; each pruning one with all --ratios
    #[arg(long, value_name = "METHOD,..", value_delimiter = ',', conflicts_with_all = ["prune", "prune_method"], help_heading = "Probe Pruning")]
    pub methods: Vec<String>,
    /// Shares that the methods of --methods leave out
    #[arg(long, value_name = "R,..", value_delimiter = ',', requires = "methods", help_heading = "Probe Pruning")]
    pub ratios: Vec<String>,
    /// Folder for result files, as lm-evaluation-harness writes them
    ///
    /// What is computed is kept there at once: the same command goes on where it was interrupted.
    #[arg(long, short = 'o', alias = "output-path", value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Compare two runs question by question: folders of results, or files of samples
    ///
    /// Prints differences with their paired standard errors and McNemar's exact test. Runs that were not asked the same are refused.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with_all = ["model", "tasks"])]
    pub compare: Vec<PathBuf>,
    /// Share of the blocks' weights that is left out, 0 to 0.8, or with --read auto[:KL]
    #[arg(long, value_name = "R|auto[:KL]", allow_hyphen_values = true, help_heading = "Probe Pruning")]
    pub prune: Option<String>,
    #[command(flatten)]
    pub how: PruneHowArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

pub fn options(mut a: EvalArgs) -> Result<Options> {
    if let [first, second] = &a.compare[..] {
        return Ok(Options::Compare(first.clone(), second.clone()));
    }
    let rules = match a.rules.as_str() {
        "lm-eval" => Rules::LmEval,
        "pp" => Rules::Paper,
        other => return Err(not_one_of("--rules", other, "lm-eval, pp")),
    };
    let limit = match a.limit {
        None => None,
        Some(n) => {
            let limit = usize::try_from(n).ok().filter(|&n| n > 0);
            Some(limit.ok_or_else(|| out_of_range("--limit", n, "1 or more"))?)
        }
    };
    if a.how.prune_answer.is_some() {
        return Err(Error::usage("--prune-answer has no effect: no answer is written here"));
    }
    if a.read && rules == Rules::Paper {
        return Err(Error::usage("--read is not what the paper does: leave out --rules pp"));
    }
    if !a.read && a.how.prune_plan.is_some() {
        return Err(Error::usage("--prune-plan is for reading: it needs --read"));
    }
    let runs = runs(&a, rules)?;
    if a.read && a.prune.is_none() && a.methods.is_empty() {
        return Err(Error::usage("--read reads contexts with a plan: it needs --prune R"));
    }
    if runs.iter().any(Option::is_some) && !a.read {
        // The scores of nearly equal channels decide what is kept, so the cache holds 32-bit floats, as in the reference.
        a.context.cache_type_k.get_or_insert_with(|| "f32".to_owned());
        a.context.cache_type_v.get_or_insert_with(|| "f32".to_owned());
    }
    Ok(Options::Run(Box::new(RunOptions {
        log: log::options(a.log),
        model: model::options(a.model.unwrap_or_default(), a.model_args)?,
        context: context::options(a.context)?,
        tasks: a.tasks,
        data: a.data,
        rules,
        limit,
        read: a.read,
        runs,
        output: a.output,
    })))
}

/// What to prune in each run.
fn runs(a: &EvalArgs, rules: Rules) -> Result<Vec<Option<PruneOptions>>> {
    let prune = |amount: Option<&str>, method: Option<&str>| {
        let is_pp = matches!(method.or(a.how.prune_method.as_deref()), None | Some("pp"));
        let mut how =
            PruneHowArgs { prune_method: method.map(str::to_owned).or(a.how.prune_method.clone()), ..a.how.clone() };
        // In a list each method takes the flags that are for it.
        if method.is_some() && !is_pp {
            how.prune_paper = false;
        } else if rules == Rules::Paper && amount.is_some() {
            how.prune_paper |= is_pp;
        }
        let calibration = if method.is_some() { how.prune_calibration.take() } else { None };
        let mut options = prune::options_for(amount, how, None)?;
        if let Some(o) = &mut options {
            if calibration.is_some() && o.needs_calibration() {
                o.calibration = calibration;
            }
            finish(o, a.read)?;
        }
        Ok(options)
    };
    if a.methods.is_empty() {
        return Ok(vec![prune(a.prune.as_deref(), None)?]);
    }
    let mut runs = Vec::new();
    for method in &a.methods {
        if method == "dense" {
            runs.push(None);
            continue;
        }
        if a.ratios.is_empty() {
            return Err(Error::usage(format!("--methods {method} needs --ratios R,..: how much to leave out")));
        }
        for ratio in &a.ratios {
            runs.push(prune(Some(ratio), Some(method))?);
        }
    }
    Ok(runs)
}

/// What holds where texts are scored: they are pruned however short they are.
fn finish(o: &mut PruneOptions, read: bool) -> Result<()> {
    o.min_tokens = Some(2);
    if read {
        return match o.method {
            Method::Pp | Method::FullBatch if o.history == HistoryKind::None => Ok(()),
            _ => Err(Error::usage("--read goes with --prune-method pp or full-batch, and no history")),
        };
    }
    if o.target.is_some() {
        return Err(Error::usage("--prune auto is for reading: it needs --read"));
    }
    o.spread = Spread::Paper;
    Ok(())
}
