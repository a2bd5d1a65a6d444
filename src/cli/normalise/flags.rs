//! The flags of a command as the walk over its arguments sees them.

use std::collections::HashMap;

use clap::{ArgAction, Command};

use super::names::{OPPOSITES, SHORT};
use crate::error::{Error, nearest};

/// Flags by every spelling with its dashes.
pub type Flags = HashMap<String, Flag>;

/// What the walk needs to know of a flag.
pub struct Flag {
    pub long: String,
    pub takes_value: bool,
    /// The flag's value may be left out.
    pub optional_value: bool,
    /// Several values may follow the flag.
    pub many_values: bool,
    pub repeatable: bool,
}

/// Flags of `command` by every spelling with its dashes.
pub fn flags(command: &Command) -> Flags {
    let mut flags = HashMap::new();
    for arg in command.get_arguments().filter(|a| !a.is_positional()) {
        let values = arg.get_num_args();
        let takes_value = arg.get_action().takes_values();
        let flag = || Flag {
            long: arg.get_long().unwrap_or_default().to_owned(),
            takes_value,
            optional_value: takes_value && values.is_some_and(|v| v.min_values() == 0),
            many_values: takes_value && values.is_some_and(|v| v.max_values() > 1),
            repeatable: matches!(arg.get_action(), ArgAction::Append),
        };
        for name in arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten()) {
            flags.insert(format!("--{name}"), flag());
        }
        if let Some(c) = arg.get_short() {
            flags.insert(format!("-{c}"), flag());
        }
    }
    flags
}

/// The flag that settles what `name` would say, if one was given: the same flag, or one that says the opposite.
pub fn settled<'g>(given: &'g [String], name: &str) -> Option<&'g String> {
    let same = OPPOSITES.iter().find(|group| group.contains(&name));
    given.iter().find(|g| *g == name || same.is_some_and(|group| group.contains(&g.as_str())))
}

/// `-n64`, `-vq`: a one-letter flag with its value, or several of them.
pub fn letters<'f>(name: &str, flags: &'f Flags) -> Option<Vec<(&'f Flag, Option<String>)>> {
    let mut letters = name.strip_prefix('-').filter(|l| !l.starts_with('-') && !l.is_empty())?;
    let mut found = Vec::new();
    while let Some(c) = letters.chars().next() {
        let flag = flags.get(&format!("-{c}"))?;
        letters = &letters[c.len_utf8()..];
        if flag.takes_value {
            // `-n64` is a flag with its number; a letter with other text behind it is more likely a misspelt name.
            let fits = letters.starts_with(|c: char| c.is_ascii_digit() || "-./".contains(c));
            found.push((flag, Some(letters.to_owned())));
            return fits.then_some(found);
        }
        found.push((flag, None));
    }
    Some(found)
}

pub fn unknown_flag(name: &str, typed: &str, flags: &Flags) -> Error {
    let shorts = SHORT.iter().filter(|(_, long)| flags.contains_key(*long)).map(|(s, _)| *s);
    let hint = nearest(name, flags.keys().map(String::as_str).chain(shorts))
        .map_or_else(|| "see --help".to_owned(), |n| format!("did you mean '{n}'?"));
    Error::usage(format!("unknown flag '{typed}': {hint}"))
}
