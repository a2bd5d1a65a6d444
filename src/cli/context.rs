//! Flags about sizes, threads and the cache, and the options that they become.

use clap::Args;

use super::value::{not_one_of, out_of_range, size, tristate};
use crate::chat::terminal::Tristate;
use crate::engine::Options;
use crate::error::Result;
use crate::graph::CacheType;
use crate::system::cpus;

#[derive(Debug, Args)]
#[command(next_help_heading = "Context")]
pub struct ContextArgs {
    /// Context in tokens; 0 = as trained [default: as trained, less if memory is short]
    ///
    /// Without it a single answer of -n tokens takes no more than it and its prompt, or the prompt cache, can need.
    #[arg(long, short = 'c', value_name = "N", allow_hyphen_values = true)]
    pub ctx_size: Option<i64>,
    /// Logical batch: the micro-batch is no larger
    ///
    /// perplexity runs as many windows side by side as fit in it.
    #[arg(long, short = 'b', value_name = "N", default_value_t = 2048, allow_hyphen_values = true)]
    pub batch_size: i64,
    /// Micro-batch: tokens of a prompt computed at once [-ub]
    ///
    /// With --prune each has a probe and kept heads and channels of its own.
    #[arg(long, value_name = "N", default_value_t = 512, allow_hyphen_values = true)]
    pub ubatch_size: i64,
    /// Threads for generation, at the most; -1 = one per core [default: -1]
    ///
    /// Cores are the physical ones that the process may use, only the performance cores where there are two kinds, and no more
    /// than a control group's quota. While other programs use the processors fewer threads compute, as one that is put aside makes
    /// all wait; the line of statistics says so. (Not where Linux's /proc is missing, not with a GPU, not by libllama, and not for
    /// answers with --kernels ggml from 512 cells of the cache on, whose rounding depends on the number of threads.) bench takes a list.
    #[arg(long, short = 't', value_name = "N", allow_hyphen_values = true)]
    pub threads: Option<String>,
    /// Threads for prompts, at the most [-tb] [default: as -t]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub threads_batch: Option<i64>,
    /// Compute for this share of the time only, 0 to 1: the program sleeps between steps
    ///
    /// For a cool and quiet machine: a step is a token of the answer, or a micro-batch of the prompt (-ub). Without it the share is 1.
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub power: Option<f64>,
    /// Priority beside other programs: -1 or low, 0 or normal, 1 or medium, 2 or high, 3 or realtime
    ///
    /// As in llama.cpp: the nice values 5, 0 (that which the process has), -5, -10 and -20, of which the last three are for
    /// administrators. If the system does not allow it the priority stays, with a warning.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub prio: Option<String>,
    /// Type of cached keys: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, iq4_nl, q4_0 [-ctk] [default: f16]
    ///
    /// When an answer or a chat first uses a quantised cache with a model, it is measured on a short text what that costs; if it is much, a
    /// line says so then and from then on.
    #[arg(long, value_name = "TYPE")]
    pub cache_type_k: Option<String>,
    /// Type of cached values: the same [-ctv] [default: f16]
    #[arg(long, value_name = "TYPE")]
    pub cache_type_v: Option<String>,
    /// Flash attention: on, off, auto [-fa]
    #[arg(long, value_name = "WHEN", num_args = 0..=1, default_missing_value = "on", default_value = "auto", allow_negative_numbers = true)]
    pub flash_attn: String,
}

pub fn options(a: ContextArgs) -> Result<Options> {
    let n_threads = match a.threads.as_deref() {
        None => cpus::default_threads(),
        Some(t) => threads(t)?,
    };
    Ok(Options {
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
        exact: false,
        adapts: true,
        power: match a.power {
            None => 1.0,
            Some(p) if p > 0.0 && p <= 1.0 => p,
            Some(p) => return Err(out_of_range("--power", p, "more than 0, at most 1")),
        },
        nice: match a.prio.as_deref() {
            None => None,
            Some(prio) => nice(prio)?,
        },
        // All backends that we use have flash attention, so `auto` means on.
        flash_attn: tristate("-fa", &a.flash_attn)? != Tristate::Off,
    })
}

/// Threads of -t.
pub fn threads(text: &str) -> Result<usize> {
    n_threads("-t", text.trim().parse().map_err(|_| not_one_of("-t", text, "a number"))?)
}

/// Threads of a flag: -1 and 0 are one for each core.
fn n_threads(flag: &str, n: i64) -> Result<usize> {
    match n {
        -1 | 0 => Ok(cpus::default_threads()),
        1..=512 => Ok(n as usize),
        _ => Err(out_of_range(flag, n, "-1, or 1 to 512")),
    }
}

/// The nice value of a priority, as llama.cpp has them; `None`: that which the process has.
fn nice(prio: &str) -> Result<Option<i32>> {
    match prio {
        "-1" | "low" => Ok(Some(5)),
        "0" | "normal" => Ok(None),
        "1" | "medium" => Ok(Some(-5)),
        "2" | "high" => Ok(Some(-10)),
        "3" | "realtime" => Ok(Some(-20)),
        _ => Err(not_one_of("--prio", prio, "-1 or low, 0 or normal, 1 or medium, 2 or high, 3 or realtime")),
    }
}

fn cache_type(flag: &str, text: &str) -> Result<CacheType> {
    let found = CacheType::ALL.into_iter().find(|ty| ty.name().eq_ignore_ascii_case(text));
    found.ok_or_else(|| not_one_of(flag, text, &CacheType::ALL.map(CacheType::name).join(", ")))
}
