//! Flags about sampling, and the options that they become.

use clap::Args;

use super::value::out_of_range;
use crate::error::Result;
use crate::sampler::Options;

#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingArgs {
    /// Seed of the draw; -1 = random
    ///
    /// The line of statistics says which it was.
    #[arg(long, short = 's', value_name = "N", allow_hyphen_values = true)]
    pub seed: Option<i64>,
    /// Temperature; 0 = always the most likely token
    #[arg(long, alias = "temperature", value_name = "X", default_value_t = 0.8, allow_hyphen_values = true)]
    pub temp: f32,
    /// Draw from the K most likely tokens; 0 = all
    #[arg(long, value_name = "K", default_value_t = 40, allow_hyphen_values = true)]
    pub top_k: i32,
    /// Draw from the tokens that make up this probability; 1 = all
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_hyphen_values = true)]
    pub top_p: f32,
    /// Least probability, relative to the best; 0 = off
    #[arg(long, value_name = "P", default_value_t = 0.05, allow_hyphen_values = true)]
    pub min_p: f32,
    /// Penalty on tokens that occurred; 1 = off
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_hyphen_values = true)]
    pub repeat_penalty: f32,
    /// Tokens that penalties look back at; -1 = the context
    #[arg(long, value_name = "N", default_value_t = 64, allow_hyphen_values = true)]
    pub repeat_last_n: i32,
    /// Penalty on presence; 0 = off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    pub presence_penalty: f32,
    /// Penalty on frequency; 0 = off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    pub frequency_penalty: f32,
    /// Never end an answer before -n or the context does
    #[arg(long)]
    pub ignore_eos: bool,
}

pub fn options(a: SamplingArgs) -> Result<Options> {
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
    Ok(Options {
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
