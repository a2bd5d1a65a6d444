//! Settings that a chat can change as it goes: the command line is read again, with other values for some flags.

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};

use super::args::{Cli, Sub};
use super::value::{not_one_of, one_line};
use super::{batch, run};
use crate::commands::run::{Options, Settings};
use crate::error::{Error, Result, nearest};

/// Flags that a chat can change as it goes, by their long names.
pub const SETTABLE: &[&str] = &[
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
    "logit-bias",
    "samplers",
    "sampler-seq",
    "top-n-sigma",
    "typical",
    "xtc-probability",
    "xtc-threshold",
    "dynatemp-range",
    "dynatemp-exp",
    "dry-multiplier",
    "dry-base",
    "dry-allowed-length",
    "dry-penalty-last-n",
    "dry-sequence-breaker",
    "mirostat",
    "mirostat-lr",
    "mirostat-ent",
    "adaptive-target",
    "adaptive-decay",
    "predict",
    "reasoning",
    "reasoning-budget",
    "json",
    "json-schema",
    "grammar",
    "draft",
    "stop",
    "prune",
    "prune-method",
    "prune-picker",
    "prune-tokens",
    "prune-metric",
    "prune-plan",
    "prune-answer",
    "prune-guard",
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
    "verbose-prompt",
    "in-prefix",
    "in-suffix",
];

/// What of these cannot be said of a row of a batch: what a terminal shows, what several answers at a time have no use for, and how prompts are
/// read, which is the same for all rows.
const NOT_OF_ROWS: &[&str] =
    &["draft", "context-full", "markdown", "wrap", "raw", "verbose-prompt", "in-prefix", "in-suffix"];

/// Other programs' names of some of these.
const ALIASES: &[(&str, &str)] =
    &[("temperature", "temp"), ("num-predict", "predict"), ("n-predict", "predict"), ("n", "predict")];

/// Flags of texts and lists, which an empty value takes back.
const TEXTS: &[&str] = &[
    "stop",
    "in-prefix",
    "in-suffix",
    "logit-bias",
    "dry-sequence-breaker",
    "json-schema",
    "grammar",
    "samplers",
    "sampler-seq",
];

/// The options `base` with other values for some flags of [`SETTABLE`], and the long names of these flags. A flag can be named as on the
/// command line, with or without dashes, or as ollama names it. The value `off` takes back a flag that has no value, and ends pruning. An
/// empty value takes back all texts of a flag of [`TEXTS`].
pub fn set(base: &Options, settings: &[(&str, &str)]) -> Result<(Options, Vec<&'static str>)> {
    let hint = "leave, and start with it as a flag (--continue goes on with this chat)";
    change(base, settings, SETTABLE, &|name| format!("'{name}' cannot be set in a chat"), hint)
}

/// The same for a row of a batch.
pub fn set_of_row(base: &Options, settings: &[(&str, &str)]) -> Result<(Options, Vec<&'static str>)> {
    let is_of_row = |name: &&str| !NOT_OF_ROWS.contains(name) && !name.starts_with("prune");
    let names: Vec<&str> = SETTABLE.iter().copied().filter(is_of_row).collect();
    change(base, settings, &names, &|name| format!("the field '{name}' is not known"), "it is a flag of the command")
}

/// [`set`] of these flags; `refusal` and `hint` are what is said of another one, the hint if it is a flag at all.
fn change(
    base: &Options,
    settings: &[(&str, &str)],
    settable: &[&'static str],
    refusal: &dyn Fn(&str) -> String,
    hint: &str,
) -> Result<(Options, Vec<&'static str>)> {
    let command = Cli::command();
    let mut args = base.settings.args.clone();
    let mut names = Vec::new();
    for (name, value) in settings {
        let name = known(&command, name, settable, refusal, hint)?;
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
            // The other pruning flags are refused without a ratio, so they go with it.
            (true, "off") if name == "prune" => {
                args.retain(|a| a.to_str().is_none_or(|a| !a.starts_with("--prune")));
            }
            (true, "off") if ["json-schema", "grammar"].contains(&name) => args.retain(|a| !is_it(a)),
            (true, "") if TEXTS.contains(&name) => args.retain(|a| !is_it(a)),
            (true, "") => return Err(Error::usage(format!("{name} wants a value"))),
            (true, _) => args.push(format!("{flag}={value}").into()),
        }
        names.push(name);
    }
    let usage = |e: clap::Error| Error::usage(one_line(&e.render().to_string()));
    let matches = command.try_get_matches_from(&args).map_err(usage)?;
    let cli = Cli::from_arg_matches(&matches).map_err(usage)?;
    let settings = Settings { args, ..base.settings.clone() };
    let options = match cli.command {
        Some(Sub::Batch(a)) => batch::run_options(*a, cli.run, settings)?,
        _ => run::options(base.model.path.clone(), cli.run, settings)?,
    };
    Ok((options, names))
}

/// The flag of `settable` that a name stands for.
fn known(
    command: &clap::Command,
    name: &str,
    settable: &[&'static str],
    refusal: &dyn Fn(&str) -> String,
    hint: &str,
) -> Result<&'static str> {
    let typed = name.trim_start_matches('-').to_lowercase().replace('_', "-");
    let known = ALIASES.iter().find(|a| a.0 == typed).map_or(typed.as_str(), |a| a.1);
    if let Some(name) = settable.iter().find(|n| **n == known) {
        return Ok(name);
    }
    let fixed = command.get_arguments().any(|a| a.get_long() == Some(known)) || known == "num-ctx";
    let names = settable.iter().copied().chain(ALIASES.iter().map(|a| a.0));
    let hint = match nearest(known, names) {
        _ if fixed => format!("it holds for the whole run: {hint}"),
        Some(near) => {
            format!("did you mean '{}'?", ALIASES.iter().find(|a| a.0 == near).map_or(near, |a| a.1))
        }
        None => format!("these can be set: {}", settable.join(", ")),
    };
    Err(Error::usage(format!("{}: {hint}", refusal(&typed))))
}
