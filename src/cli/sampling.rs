//! Flags about sampling, and the options that they become.

use clap::{ArgAction, Args};

use super::value::{not_one_of, out_of_range, unescape};
use crate::error::{Error, Result};
use crate::sampler::{Dry, Mirostat, Options, Step};
use crate::tokenizer::Token;

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
    /// Add to a token's logit, or take from it: 15043+1, 15043-2.5, 15043-inf (repeatable) [-l]
    ///
    /// pp-run tokenize shows the tokens of a text.
    #[arg(long, short = 'l', value_name = "TOKEN+X", action = ArgAction::Append, allow_hyphen_values = true)]
    pub logit_bias: Vec<String>,
    /// What is done to logits before the draw, in this order: names with ';' between
    ///
    /// A name that is not in the list is not done. Temperature 0 takes the most likely token of what is left.
    #[arg(
        long,
        value_name = "NAMES",
        default_value = "penalties;dry;top_n_sigma;top_k;typ_p;top_p;min_p;xtc;temperature",
        overrides_with = "sampler_seq",
        allow_hyphen_values = true
    )]
    pub samplers: String,
    /// The same by letters, in the default order edskypmxt
    #[arg(
        long,
        alias = "sampling-seq",
        value_name = "LETTERS",
        overrides_with = "samplers",
        allow_hyphen_values = true
    )]
    pub sampler_seq: Option<String>,
    /// Cut logits so many standard deviations below the best; -1 = off
    #[arg(long, alias = "top-nsigma", value_name = "N", default_value_t = -1.0, allow_hyphen_values = true)]
    pub top_n_sigma: f32,
    /// Draw from the tokens of this probability whose surprise is the most typical; 1 = off
    #[arg(long, alias = "typical-p", value_name = "P", default_value_t = 1.0, allow_hyphen_values = true)]
    pub typical: f32,
    /// Probability that the best tokens are left out (XTC); 0 = off
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_hyphen_values = true)]
    pub xtc_probability: f32,
    /// XTC leaves out those of this probability and more, but for the last; above 0.5 = off
    #[arg(long, value_name = "P", default_value_t = 0.1, allow_hyphen_values = true)]
    pub xtc_threshold: f32,
    /// Dynamic temperature: so much lower for the surest choice, and higher for the most open one; 0 = off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    pub dynatemp_range: f32,
    /// Exponent with which the dynamic temperature depends on the entropy
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_hyphen_values = true)]
    pub dynatemp_exp: f32,
    /// Penalty on going on with a repetition (DRY): X * base ^ (its length - allowed length); 0 = off
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_hyphen_values = true)]
    pub dry_multiplier: f32,
    /// Base of DRY's penalty, 1 or more
    #[arg(long, value_name = "X", default_value_t = 1.75, allow_hyphen_values = true)]
    pub dry_base: f32,
    /// Repetitions of fewer tokens have no penalty of DRY's
    #[arg(long, value_name = "N", default_value_t = 2, allow_hyphen_values = true)]
    pub dry_allowed_length: i32,
    /// Tokens that DRY looks back at; -1 = the context
    #[arg(long, value_name = "N", default_value_t = 64, allow_hyphen_values = true)]
    pub dry_penalty_last_n: i32,
    /// A text that no repetition of DRY's reaches over (repeatable); none = no such text [default: \n : \" *]
    #[arg(long, value_name = "TEXT", action = ArgAction::Append, allow_hyphen_values = true)]
    pub dry_sequence_breaker: Vec<String>,
    /// Mirostat, 1 or 2, which keeps the surprise of the text near a target; 0 = off
    ///
    /// It takes the place of all other steps but biases and the temperature.
    #[arg(long, value_name = "N", default_value_t = 0, allow_hyphen_values = true)]
    pub mirostat: i64,
    /// Mirostat's learning rate, eta
    #[arg(long, value_name = "X", default_value_t = 0.1, allow_hyphen_values = true)]
    pub mirostat_lr: f32,
    /// Mirostat's target, tau, in bits
    #[arg(long, value_name = "X", default_value_t = 5.0, allow_hyphen_values = true)]
    pub mirostat_ent: f32,
    /// Draw tokens near this probability over time (adaptive-p), after all other steps; -1 = off
    #[arg(long, value_name = "P", default_value_t = -1.0, allow_hyphen_values = true)]
    pub adaptive_target: f32,
    /// How far adaptive-p looks back: 1 / (1 - X) tokens; 0 to 0.99
    #[arg(long, value_name = "X", default_value_t = 0.9, allow_hyphen_values = true)]
    pub adaptive_decay: f32,
}

/// What a breaker of DRY may have; libllama would cut it there.
const MAX_BREAKER: usize = 40;

/// The options. `escape`: backslashes in texts are read as [`unescape`] reads them.
pub fn options(a: SamplingArgs, escape: bool) -> Result<Options> {
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
    if a.dry_penalty_last_n < -1 {
        return Err(out_of_range("--dry-penalty-last-n", a.dry_penalty_last_n, "-1 or more"));
    }
    if a.dry_base.is_nan() || a.dry_base < 1.0 {
        return Err(out_of_range("--dry-base", a.dry_base, "1 or more"));
    }
    if a.dry_allowed_length < 0 {
        return Err(out_of_range("--dry-allowed-length", a.dry_allowed_length, "0 or more"));
    }
    if !(0.0..=0.99).contains(&a.adaptive_decay) {
        return Err(out_of_range("--adaptive-decay", a.adaptive_decay, "0 to 0.99"));
    }
    if a.adaptive_target.is_nan() || a.adaptive_target > 1.0 {
        return Err(out_of_range("--adaptive-target", a.adaptive_target, "0 to 1, or -1"));
    }
    let mirostat = match a.mirostat {
        0 => Mirostat::Off,
        1 => Mirostat::One,
        2 => Mirostat::Two,
        n => return Err(out_of_range("--mirostat", n, "0, 1 or 2")),
    };
    let dry = Dry {
        multiplier: finite("--dry-multiplier", a.dry_multiplier)?,
        base: finite("--dry-base", a.dry_base)?,
        allowed_length: a.dry_allowed_length,
        last_n: a.dry_penalty_last_n,
        breakers: breakers(a.dry_sequence_breaker, escape)?,
    };
    let steps = match &a.sampler_seq {
        Some(letters) => letters.chars().filter_map(|c| step_of_letter(c).transpose()).collect(),
        None => a.samplers.split(';').filter(|n| !n.trim().is_empty()).filter_map(|n| step(n).transpose()).collect(),
    };
    let steps: Result<Vec<Step>> = steps;
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
        logit_bias: a.logit_bias.iter().map(|text| bias(text)).collect::<Result<_>>()?,
        dry,
        top_n_sigma: finite("--top-n-sigma", a.top_n_sigma)?,
        typical_p: share("--typical", a.typical)?,
        xtc_probability: share("--xtc-probability", a.xtc_probability)?,
        xtc_threshold: share("--xtc-threshold", a.xtc_threshold)?,
        dynatemp_range: finite("--dynatemp-range", a.dynatemp_range)?,
        dynatemp_exponent: finite("--dynatemp-exp", a.dynatemp_exp)?,
        mirostat,
        mirostat_tau: finite("--mirostat-ent", a.mirostat_ent)?,
        mirostat_eta: finite("--mirostat-lr", a.mirostat_lr)?,
        adaptive_target: a.adaptive_target,
        adaptive_decay: a.adaptive_decay,
        steps: steps?,
    })
}

/// `TOKEN+X` or `TOKEN-X`.
fn bias(text: &str) -> Result<(Token, f32)> {
    let parsed = text.find(['+', '-']).and_then(|at| {
        let token: Token = text[..at].trim().parse().ok()?;
        // The number has no sign of its own: that would be a second one.
        let size: f32 = text[at + 1..].parse().ok().filter(|_| !text[at + 1..].starts_with(['+', '-']))?;
        let bias = if text[at..].starts_with('-') { -size } else { size };
        (bias < f32::INFINITY).then_some((token, bias))
    });
    parsed.ok_or_else(|| Error::usage(format!("--logit-bias: '{text}' is not like 15043+1, 15043-2.5 or 15043-inf")))
}

/// Breakers of DRY; llama.cpp's if there are none.
fn breakers(texts: Vec<String>, escape: bool) -> Result<Vec<String>> {
    let mut breakers = Vec::new();
    for text in &texts {
        let text = if escape { unescape(text) } else { text.clone() };
        match text.as_str() {
            "none" => breakers.clear(),
            _ if text.is_empty() || text.len() > MAX_BREAKER || text.contains('\0') => {
                let wanted = format!("a text of 1 to {MAX_BREAKER} bytes without zeros");
                return Err(out_of_range("--dry-sequence-breaker", format!("'{text}'"), &wanted));
            }
            _ => breakers.push(text),
        }
    }
    Ok(if texts.is_empty() { Options::default().dry.breakers } else { breakers })
}

/// llama.cpp's name of adaptive-p, which is always the last step and on with `--adaptive-target`.
const ADAPTIVE: (&str, char) = ("adaptive_p", 'a');

/// The step of a name, with llama.cpp's other spellings; none for the one that has no place of its own.
fn step(name: &str) -> Result<Option<Step>> {
    let plain = |name: &str| name.trim().to_lowercase().replace(['_', '-'], "");
    let typed = match plain(name).as_str() {
        "nucleus" => "topp".to_owned(),
        "temp" => "temperature".to_owned(),
        "typ" | "typical" | "typicalp" => "typp".to_owned(),
        other => other.to_owned(),
    };
    if typed == plain(ADAPTIVE.0) {
        return Ok(None);
    }
    let names = || Step::ALL.map(|s| s.1).join(", ");
    let found = Step::ALL.iter().find(|s| plain(s.1) == typed);
    found.map(|s| Some(s.0)).ok_or_else(|| not_one_of("--samplers", name, &names()))
}

/// The step of a letter.
fn step_of_letter(c: char) -> Result<Option<Step>> {
    let letters = || Step::ALL.map(|s| format!("{} ({})", s.2, s.1)).join(", ");
    match Step::ALL.iter().find(|s| s.2 == c) {
        Some(s) => Ok(Some(s.0)),
        None if c == ADAPTIVE.1 => Ok(None),
        None => Err(not_one_of("--sampler-seq", &c.to_string(), &letters())),
    }
}
