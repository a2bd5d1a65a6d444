//! Flags of `pp-run bench`, and the options that they become.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::context::{self, ContextArgs};
use super::log::{self, LogArgs};
use super::model::{self, ModelArgs};
use super::prune::{self, PruneHowArgs};
use super::value::{not_one_of, out_of_range};
use crate::commands::bench::{Format, Options};
use crate::error::{Error, Result};
use crate::system::cpus;

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The model (repeatable)
    #[arg(long, short = 'm', value_name = "FILE", action = ArgAction::Append, required = true, allow_hyphen_values = true)]
    pub model: Vec<PathBuf>,
    /// Lengths of prompts: a list such as 512,2048 or a range first-last+step; 0 = none [default: 512]
    #[arg(long, short = 'p', value_name = "N,..", allow_hyphen_values = true)]
    pub n_prompt: Vec<String>,
    /// Tokens to generate; 0 = none [default: 128]
    #[arg(long, short = 'n', value_name = "N,..", allow_hyphen_values = true)]
    pub n_gen: Vec<String>,
    /// Prompt and generation in one test [-pg]
    #[arg(long, value_name = "PP,TG")]
    pub prompt_gen: Vec<String>,
    /// Tokens computed at once, and the time beside that of one token: a list such as 2,4,8 or 1-16
    ///
    /// A step computes the logits after each of its tokens, as for a draft of an answer that is checked. Its cost t(n)/t(1) says from which
    /// share of accepted tokens on a draft of n - 1 tokens pays. -d gives the context.
    #[arg(long, value_name = "N,..", allow_hyphen_values = true)]
    pub steps: Vec<String>,
    /// Tokens in the cache before the test
    ///
    /// An answer is pruned by what its prompt shows, so tests of generation with --prune need some.
    #[arg(long, short = 'd', value_name = "N,..", default_value = "0")]
    pub n_depth: Vec<String>,
    /// Repetitions of each test
    #[arg(long, short = 'r', value_name = "N", default_value_t = 5)]
    pub repetitions: u32,
    /// Format: md, json, csv
    #[arg(long, short = 'o', value_name = "FORMAT", default_value = "md")]
    pub output: String,
    /// Run llama.cpp's own engine alternately in the same process, and print the ratio: llama.cpp
    ///
    /// It runs on the weights as they are in the file and as ggml rearranges them for its kernels (repacked), and for each test the faster
    /// of the two counts. The rearranged weights are a copy; where it does not fit into memory, a warning says so.
    #[arg(long, value_name = "ENGINE")]
    pub baseline: Option<String>,
    /// Shares of the blocks' weights that reading leaves out, 0 to 0.8 or auto: a list; each test runs with each of them
    #[arg(
        long,
        value_name = "R,..",
        value_delimiter = ',',
        allow_hyphen_values = true,
        help_heading = "Probe Pruning"
    )]
    pub prune: Vec<String>,
    /// Shortest prompt, and shortest answer, that is pruned, in tokens [default: auto]
    ///
    /// auto is where each begins to pay: for prompts by what is left out, for answers (--prune-answer) as measured on this machine when
    /// the first one comes.
    #[arg(long, value_name = "N", help_heading = "Probe Pruning")]
    pub prune_min_tokens: Option<String>,
    #[command(flatten)]
    pub prune_how: PruneHowArgs,
    #[command(flatten)]
    pub context: ContextArgs,
    #[command(flatten)]
    pub model_args: ModelArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

pub fn options(mut a: BenchArgs) -> Result<Options> {
    let n_threads = match a.context.threads.take() {
        None => vec![cpus::default_threads()],
        Some(list) => list.split(',').map(context::threads).collect::<Result<_>>()?,
    };
    let format = match a.output.as_str() {
        "md" => Format::Md,
        "json" => Format::Json,
        "csv" => Format::Csv,
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
    let context = context::options(a.context)?;
    let mut steps: Vec<usize> = numbers("--steps", &a.steps)?.into_iter().map(|n| n as usize).collect();
    let longest = context.n_batch.min(context.n_ubatch) as usize;
    if let Some(n) = steps.iter().find(|n| !(1..=longest).contains(*n)) {
        return Err(out_of_range("--steps", *n, &format!("1 to {longest}, the tokens of a micro-batch (-ub)")));
    }
    if !steps.is_empty() {
        steps.push(1);
        steps.sort_unstable();
        steps.dedup();
    }
    // As in llama-bench, a list that is not given has its default, unless another test is given.
    let is_bare = prompt_gen.is_empty() && steps.is_empty();
    let tests = |flag: &str, list: &[String], default: u32| -> Result<Vec<u32>> {
        let all = if list.is_empty() && is_bare { vec![default] } else { numbers(flag, list)? };
        Ok(all.into_iter().filter(|&n| n > 0).collect())
    };
    let (n_prompt, n_gen) = (tests("-p", &a.n_prompt, 512)?, tests("-n", &a.n_gen, 128)?);
    if a.repetitions == 0 {
        return Err(out_of_range("-r", 0, "1 or more"));
    }
    if !steps.is_empty() && !a.prune.is_empty() {
        return Err(Error::usage("--steps runs on all weights: leave out --prune, or measure it without --steps"));
    }
    let amounts = if a.prune.is_empty() { vec![None] } else { a.prune.iter().map(|r| Some(r.as_str())).collect() };
    let pruned = |amount| prune::options_for(amount, a.prune_how.clone(), a.prune_min_tokens.clone());
    let prune = amounts.into_iter().map(pruned).collect::<Result<Vec<_>>>()?;
    Ok(Options {
        log: log::options(a.log),
        model: model::options(a.model.first().cloned().unwrap_or_default(), a.model_args)?,
        models: a.model,
        context,
        n_prompt,
        n_gen,
        prompt_gen,
        steps,
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

#[cfg(test)]
mod tests {
    use super::*;

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
