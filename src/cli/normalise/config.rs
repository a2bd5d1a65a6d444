//! The configuration: flags for all runs, in a TOML file.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
use std::io::Read;
use std::path::Path;

use clap::Command;

use super::flags::{Flags, settled};
use crate::error::{Error, Result, nearest};

/// Longest configuration.
const MAX_CONFIG: u64 = 1 << 20;

/// The flags of a configuration that neither the command line nor the environment has, each with its name and the key that it comes from.
pub fn read(
    path: &Path,
    must_exist: bool,
    cli: &Command,
    flags: &Flags,
    given: &[String],
) -> Result<Vec<(OsString, [String; 2])>> {
    let mut out = Vec::new();
    let mut text = String::new();
    match fs::File::open(path).and_then(|f| f.take(MAX_CONFIG + 1).read_to_string(&mut text)) {
        Ok(n) if n as u64 > MAX_CONFIG => return Err(Error::malformed("is no configuration: too long").in_file(path)),
        Ok(_) => {}
        // HOME may be a folder of somebody else, which this user cannot read: then there is no configuration.
        Err(e) if matches!(e.kind(), NotFound | PermissionDenied | NotADirectory) && !must_exist => return Ok(out),
        Err(e) => return Err(Error::input(format!("cannot be read: {e}")).in_file(path)),
    }
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(0, |s| text[..s.start.min(text.len())].matches('\n').count() + 1);
        Error::malformed(format!("line {line}: {}", e.message())).in_file(path)
    })?;
    for (key, value) in table {
        let name = key.replace('_', "-");
        let flag = format!("--{name}");
        let Some(known) = flags.get(&flag).filter(|f| f.long != "config" && f.long != "continue") else {
            let names = cli.get_arguments().filter_map(|a| a.get_long());
            let hint = nearest(&name, names)
                .map_or_else(|| "see pp-run --help".to_owned(), |n| format!("did you mean '{n}'?"));
            return Err(Error::malformed(format!("unknown setting '{key}': {hint}")).in_file(path));
        };
        if settled(given, &known.long).is_some() {
            continue;
        }
        let bad = |what: &str| Error::malformed(format!("'{key}' wants {what}")).in_file(path);
        let text = |value: &toml::Value| match value {
            toml::Value::String(s) => Ok(s.clone()),
            toml::Value::Integer(i) => Ok(i.to_string()),
            toml::Value::Float(x) => Ok(x.to_string()),
            toml::Value::Boolean(b) => Ok(if *b { "on" } else { "off" }.to_owned()),
            _ => Err(bad("one value")),
        };
        let source = [known.long.clone(), format!("{}: '{key}'", path.display())];
        let mut add = |arg: String| out.push((OsString::from(arg), source.clone()));
        match value {
            toml::Value::Boolean(on) if !known.takes_value && on => add(flag),
            toml::Value::Boolean(_) if !known.takes_value => {}
            _ if !known.takes_value => return Err(bad("true or false")),
            // An object in JSON can be a table here.
            toml::Value::Table(table) if known.long == "chat-template-kwargs" => {
                add(format!("{flag}={}", serde_json::to_string(&table).map_err(|_| bad("a table"))?));
            }
            toml::Value::Array(values) if known.repeatable => {
                for value in &values {
                    add(format!("{flag}={}", text(value)?));
                }
            }
            value => add(format!("{flag}={}", text(&value)?)),
        }
    }
    Ok(out)
}
