//! The settings in force, as they are shown and kept.

use crate::chat::How;
use crate::commands::run::Options;
use crate::generate::Predict;
use crate::stats::Stats;

/// How an answer came about, for the file of the chat.
pub fn how(options: &Options, stats: &Stats) -> How {
    let how = |how: &String| Some(format!("{}: {how}", options.prune.as_ref()?.amount()));
    let prune = stats.prune.as_ref().and_then(how);
    How { seed: stats.seed, stop: stats.stop_reason.to_owned(), prune, flags: parameters(options) }
}

/// Flags of which each one counts.
const REPEATED: [&str; 2] = ["logit-bias", "dry-sequence-breaker"];

/// The settings in force, as flags.
pub fn parameters(o: &Options) -> Vec<String> {
    let s = &o.sampling;
    let predict = match o.limits.predict {
        Predict::AtMost(n) => n.to_string(),
        Predict::Unlimited => "-1".to_owned(),
        Predict::FillContext => "-2".to_owned(),
    };
    let mut lines = vec![
        format!("temp={}", s.temperature),
        format!("top-k={}", s.top_k),
        format!("top-p={}", s.top_p),
        format!("min-p={}", s.min_p),
        format!("repeat-penalty={}", s.repeat_penalty),
        format!("repeat-last-n={}", s.repeat_last_n),
        format!("presence-penalty={}", s.presence_penalty),
        format!("frequency-penalty={}", s.frequency_penalty),
        format!("seed={}", s.seed.map_or(-1, i64::from)),
        format!("predict={predict}"),
    ];
    lines.extend(o.limits.stop.iter().map(|s| format!("stop={s}")));
    let others = o.settings.args.iter().filter_map(|a| a.to_str()?.strip_prefix("--"));
    let others = others.filter(|a| {
        let name = a.split('=').next().unwrap_or(a);
        o.settings.names.contains(&name) && !lines.iter().any(|l| l.split('=').next() == Some(name))
    });
    let others: Vec<String> = others.map(str::to_owned).collect();
    for (i, other) in others.iter().enumerate() {
        // Of a flag that is there several times the last one counts.
        let name = other.split('=').next();
        if REPEATED.contains(&name.unwrap_or_default()) || !others[i + 1..].iter().any(|o| o.split('=').next() == name)
        {
            lines.push(other.clone());
        }
    }
    lines
}
