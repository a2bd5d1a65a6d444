//! From what llama.cpp's users type to what clap reads.
//!
//! clap knows `-c` and `--ctx-size`; llama.cpp's users also type `-ngl 99`, `--top_k 40`, and flags that mean nothing here.
//! The walk knows which flags take a value, so that a value that looks like a flag (`-p "-ngl"`) stays a value.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind::{NotADirectory, NotFound, PermissionDenied};
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{ArgAction, Command};

use crate::error::{Error, Result};
use crate::system::places;

/// Single-dash names of several letters, and the long names that they stand for.
const SHORT: &[(&str, &str)] = &[
    ("-ngl", "--n-gpu-layers"),
    ("-lm", "--load-mode"),
    ("-dio", "--direct-io"),
    ("-ub", "--ubatch-size"),
    ("-tb", "--threads-batch"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-fa", "--flash-attn"),
    ("-sys", "--system-prompt"),
    ("-sysf", "--system-prompt-file"),
    ("-st", "--single-turn"),
    ("-cnv", "--conversation"),
    ("-no-cnv", "--no-conversation"),
    ("-ins", "--conversation"),
    ("-cml", "--conversation"),
    ("-if", "--interactive"),
    ("-sp", "--special"),
    ("-mli", "--multiline-input"),
    ("-co", "--color"),
    ("-lv", "--verbosity"),
    ("-pg", "--prompt-gen"),
    ("-jf", "--json-schema-file"),
    ("-j", "--json-schema"),
    ("-l", "--logit-bias"),
    ("-hf", "--hf-repo"),
    ("-sm", "--split-mode"),
    ("-ts", "--tensor-split"),
    ("-mg", "--main-gpu"),
    ("-dev", "--device"),
    ("-nkvo", "--no-kv-offload"),
    ("-kvo", "--kv-offload"),
    ("-fit", "--fit"),
    ("-fitt", "--fit-target"),
    ("-fitc", "--fit-ctx"),
    ("-np", "--parallel"),
    ("-cb", "--cont-batching"),
    ("-nocb", "--no-cont-batching"),
    ("-dt", "--defrag-thold"),
];

/// Flags without a meaning here, and whether they take a value.
const IGNORED: &[(&str, bool)] = &[
    ("--split-mode", true),
    ("--tensor-split", true),
    ("--main-gpu", true),
    ("--device", true),
    ("--no-kv-offload", false),
    ("--kv-offload", false),
    ("--fit", true),
    ("--fit-target", true),
    ("--fit-ctx", true),
    ("--numa", true),
    ("--parallel", true),
    ("--cont-batching", false),
    ("--no-cont-batching", false),
    ("--swa-full", false),
    ("--defrag-thold", true),
    ("--log-colors", true),
    ("--log-prefix", false),
    ("--log-timestamps", false),
    // What is kept when the context shifts, which it does not by default.
    ("--keep", true),
    ("--no-context-shift", false),
    ("--warmup", false),
    ("--no-warmup", false),
    ("--no-repack", false),
    ("--no-host", false),
];

/// Flags of llama.cpp that pp-run does not have yet, and what it lacks.
const NOT_YET: &[(&str, &str)] = &[
    ("--grammar", "constrained output"),
    ("--grammar-file", "constrained output"),
    ("--json-schema", "constrained output"),
    ("--json-schema-file", "constrained output"),
    ("--lora", "adapters"),
    ("--lora-scaled", "adapters"),
    ("--control-vector", "control vectors"),
    ("--mmproj", "images"),
    ("--image", "images"),
    ("--logit-bias", "logit biases"),
    ("--hf-repo", "downloads (it is always offline)"),
    ("--model-url", "downloads (it is always offline)"),
    ("--mirostat", "this sampler"),
    ("--samplers", "orders of samplers"),
    ("--dry-multiplier", "this sampler"),
    ("--xtc-probability", "this sampler"),
    ("--typical", "this sampler"),
    ("--dynatemp-range", "this sampler"),
    ("--model-draft", "speculative decoding"),
];

/// Long names and llama.cpp's names for their environment variables, without the prefix `LLAMA_ARG_`. With `PP_ARG_` these are known
/// too, and so are all other flags by their own names.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("model", "MODEL"),
    ("predict", "N_PREDICT"),
    ("ctx-size", "CTX_SIZE"),
    ("batch-size", "BATCH"),
    ("ubatch-size", "UBATCH"),
    ("threads", "THREADS"),
    ("threads-batch", "THREADS_BATCH"),
    ("n-gpu-layers", "N_GPU_LAYERS"),
    ("flash-attn", "FLASH_ATTN"),
    ("cache-type-k", "CACHE_TYPE_K"),
    ("cache-type-v", "CACHE_TYPE_V"),
    ("load-mode", "LOAD_MODE"),
    ("kernels", "KERNELS"),
    ("chat-template", "CHAT_TEMPLATE"),
    ("chat-template-file", "CHAT_TEMPLATE_FILE"),
    ("top-k", "TOP_K"),
    ("temp", "TEMP"),
    ("rope-freq-base", "ROPE_FREQ_BASE"),
    ("rope-freq-scale", "ROPE_FREQ_SCALE"),
];

/// An argument list for clap, and notes for the user.
#[derive(Debug)]
pub struct Normalised {
    /// Arguments, the program's name first.
    pub args: Vec<OsString>,
    /// One line each.
    pub warnings: Vec<String>,
    /// Long names of the flags of the command line itself.
    pub given: Vec<String>,
}

/// What the walk needs to know of a flag.
struct Flag {
    long: String,
    takes_value: bool,
    /// The value may be left out.
    optional_value: bool,
    /// Several values may follow.
    many_values: bool,
    repeatable: bool,
}

/// Flags of `command` by every spelling with its dashes.
fn flags(command: &Command) -> HashMap<String, Flag> {
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

/// Rewrites `args` (the program's name first) for `cli`.
pub fn normalise(cli: &Command, args: Vec<OsString>, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Normalised> {
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = vec![args.next().unwrap_or_else(|| "pp-run".into())];
    let mut rest: Vec<OsString> = args.collect();
    if let Some(name) = called_as(&out[0]) {
        rest.insert(0, name.into());
    }
    let mut command = cli;
    if let Some(word) = rest.first().and_then(|w| w.to_str()).filter(|w| !w.starts_with('-') && !w.is_empty()) {
        match cli.find_subcommand(word) {
            Some(sub) => {
                out.push(rest.remove(0));
                command = sub;
            }
            // The default command by name.
            None if ["run", "chat", "complete", "completion", "cli"].contains(&word) => drop(rest.remove(0)),
            None if word == "help" => {
                rest.remove(0);
                match rest.first().and_then(|w| w.to_str()).and_then(|w| cli.find_subcommand(w)) {
                    Some(_) => out.push(rest.remove(0)),
                    None => rest.clear(),
                }
                out.push("--help".into());
            }
            None if is_model(&rest[0]) => {}
            None => return Err(unknown_command(cli, word)),
        }
    }
    // A model where a command could be.
    if out.len() == 1 && rest.first().is_some_and(is_model) {
        rest.insert(0, "--model".into());
    }
    let strict = rest.iter().any(|a| a == "--strict-utf8");
    let flags = flags(command);
    let mut warnings = Vec::new();
    let mut given: Vec<String> = Vec::new();
    let mut rest = rest.into_iter().peekable();
    while let Some(arg) = rest.next() {
        let Some(text) = arg.to_str().filter(|t| t.len() > 1 && t.starts_with('-')) else {
            out.push(arg);
            continue;
        };
        if text == "--" {
            out.push(arg);
            out.extend(rest.by_ref());
            break;
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(value)),
            _ => (text, None),
        };
        let short = SHORT.iter().find(|(s, _)| *s == name).map(|(_, long)| (*long).to_owned());
        let name = match (&short, name.strip_prefix("--")) {
            // A letter that this command uses otherwise keeps its meaning there.
            (Some(_), _) if flags.contains_key(name) => name.to_owned(),
            (Some(long), _) => long.clone(),
            (None, Some(long)) => format!("--{}", long.replace('_', "-")),
            (None, None) => name.to_owned(),
        };
        // One flag, or several letters, the last of which may have its value behind it.
        let cluster;
        let found: Vec<(&Flag, Option<String>)> = match flags.get(&name) {
            Some(flag) => vec![(flag, value.map(str::to_owned))],
            None => {
                if let Some((_, takes_value)) = IGNORED.iter().find(|(n, _)| *n == name) {
                    if *takes_value && value.is_none() {
                        rest.next();
                    }
                    warnings.push(format!("{text} has no effect in pp-run"));
                    continue;
                }
                if let Some((_, what)) = NOT_YET.iter().find(|(n, _)| *n == name) {
                    return Err(Error::usage(format!("{text}: pp-run does not have {what} yet")));
                }
                if ["-h", "--help", "-V", "--version"].contains(&name.as_str()) {
                    out.push(arg);
                    continue;
                }
                if name == "--usage" {
                    out.push("--help".into());
                    continue;
                }
                match letters(&name, &flags) {
                    Some(found) => cluster = found,
                    None => return Err(unknown_flag(&name, text, &flags)),
                }
                cluster
            }
        };
        for (flag, value) in found {
            if given.contains(&flag.long) && !flag.repeatable {
                warnings.push(format!("--{} is given more than once: the last one counts", flag.long));
            }
            given.push(flag.long.clone());
            // A value that may be left out is none that looks like a flag.
            let is_flag = |v: &OsString| v.to_str().is_some_and(|v| v.starts_with('-') && v.parse::<f64>().is_err());
            let value = match value {
                Some(value) => Some(value.into()),
                None if flag.many_values => None,
                None if flag.optional_value => rest.next_if(|v| !is_flag(v)),
                None if flag.takes_value => rest.next(),
                None => None,
            };
            let mut arg = OsString::from(format!("--{}", flag.long));
            if let Some(value) = value {
                arg.push("=");
                arg.push(match PROMPTS.contains(&flag.long.as_str()) {
                    true => prompt(value, strict, &format!("--{}", flag.long), &mut warnings)?,
                    false => value,
                });
            }
            out.push(arg);
        }
    }
    let on_command_line = given.clone();
    let mut longs: Vec<&str> = flags.values().map(|f| f.long.as_str()).filter(|l| !l.is_empty()).collect();
    longs.sort_unstable();
    longs.dedup();
    for long in longs {
        let own = long.to_uppercase().replace('-', "_");
        let theirs = ENVIRONMENT.iter().find(|(l, _)| *l == long).map(|e| e.1);
        let names = [
            Some(format!("PP_ARG_{own}")),
            theirs.map(|v| format!("PP_ARG_{v}")),
            theirs.map(|v| format!("LLAMA_ARG_{v}")),
        ];
        let found =
            names.into_iter().flatten().find_map(|name| env(&name).filter(|v| !v.is_empty()).map(|v| (name, v)));
        let Some((name, value)) = found else { continue };
        if let Some(other) = settled(&given, long) {
            warnings.push(format!("--{other} replaces {name}"));
            continue;
        }
        given.push(long.to_owned());
        if flags[&format!("--{long}")].takes_value {
            let mut arg = OsString::from(format!("--{long}="));
            arg.push(value);
            out.push(arg);
        } else if switch(&value.to_string_lossy(), &name)? {
            out.push(format!("--{long}").into());
        }
    }
    // Measurements must not depend on what somebody once wrote into a file: it is for answers and chats.
    if std::ptr::eq(command, cli) {
        let named = out.iter().rev().find_map(|a| a.to_str()?.strip_prefix("--config=").map(PathBuf::from));
        if let Some(path) = named {
            config(&path, true, cli, &flags, &given, &mut out)?;
        } else if let Some(path) = places::config(env) {
            config(&path, false, cli, &flags, &given, &mut out)?;
        }
    }
    Ok(Normalised { args: out, warnings, given: on_command_line })
}

/// `on` or `off` of a flag without a value.
fn switch(value: &str, name: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" | "yes" => Ok(true),
        "0" | "false" | "off" | "no" => Ok(false),
        _ => Err(Error::usage(format!("{name}: '{value}' is not one of: true, false"))),
    }
}

/// Longest configuration.
const MAX_CONFIG: u64 = 1 << 20;

/// Adds the flags of a configuration that neither the command line nor the environment has.
fn config(
    path: &Path,
    must_exist: bool,
    cli: &Command,
    flags: &HashMap<String, Flag>,
    given: &[String],
    out: &mut Vec<OsString>,
) -> Result<()> {
    let mut text = String::new();
    match fs::File::open(path).and_then(|f| f.take(MAX_CONFIG + 1).read_to_string(&mut text)) {
        Ok(n) if n as u64 > MAX_CONFIG => return Err(Error::malformed("is no configuration: too long").in_file(path)),
        Ok(_) => {}
        // A home that is somebody else's has no configuration for this user.
        Err(e) if matches!(e.kind(), NotFound | PermissionDenied | NotADirectory) && !must_exist => return Ok(()),
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
        match value {
            toml::Value::Boolean(on) if !known.takes_value => out.extend(on.then(|| OsString::from(&flag))),
            _ if !known.takes_value => return Err(bad("true or false")),
            toml::Value::Array(values) if known.repeatable => {
                for value in &values {
                    out.push(format!("{flag}={}", text(value)?).into());
                }
            }
            value => out.push(format!("{flag}={}", text(&value)?).into()),
        }
    }
    Ok(())
}

/// Flags that say the opposite of each other, or the same in another way.
const OPPOSITES: &[&[&str]] = &[
    &["conversation", "no-conversation"],
    &["chat-template", "chat-template-file"],
    &["display-prompt", "no-display-prompt"],
    &["escape", "no-escape"],
    &["show-timings", "no-show-timings"],
    &["jinja", "no-jinja"],
    &["mmap", "no-mmap", "load-mode"],
    &["verbose", "verbosity", "quiet"],
    &["prompt", "file"],
    &["system-prompt", "system-prompt-file"],
    &["context-full", "context-shift"],
];

/// The flag that was given and leaves nothing for `name` to say: itself, or its opposite.
fn settled<'g>(given: &'g [String], name: &str) -> Option<&'g String> {
    let same = OPPOSITES.iter().find(|group| group.contains(&name));
    given.iter().find(|g| *g == name || same.is_some_and(|group| group.contains(&g.as_str())))
}

/// Flags whose value is a text for the model.
const PROMPTS: [&str; 2] = ["prompt", "system-prompt"];

/// A text for the model, which a shell may give in any bytes.
fn prompt(value: OsString, strict: bool, flag: &str, warnings: &mut Vec<String>) -> Result<OsString> {
    if value.to_str().is_some() {
        return Ok(value);
    }
    if strict {
        let good = value.to_string_lossy().find('\u{fffd}').unwrap_or(0);
        return Err(Error::malformed(format!("{flag} is not UTF-8 text (at byte {good})")));
    }
    warnings.push(format!("{flag}: what is not UTF-8 text is replaced by U+FFFD"));
    Ok(value.to_string_lossy().into_owned().into())
}

/// The sub-command that a link named after one of llama.cpp's tools stands for.
fn called_as(program: &OsString) -> Option<&'static str> {
    let name = Path::new(program).file_stem()?.to_str()?;
    match name {
        "llama-bench" => Some("bench"),
        "llama-perplexity" => Some("perplexity"),
        "llama-tokenize" => Some("tokenize"),
        _ => None,
    }
}

/// `FILE.gguf`, which is no flag.
fn is_model(arg: &OsString) -> bool {
    let bytes = arg.as_encoded_bytes();
    bytes.ends_with(b".gguf") && !bytes.starts_with(b"-")
}

/// `-n64`, `-vq`: a one-letter flag with its value, or several of them.
fn letters<'f>(name: &str, flags: &'f HashMap<String, Flag>) -> Option<Vec<(&'f Flag, Option<String>)>> {
    let mut letters = name.strip_prefix('-').filter(|l| !l.starts_with('-') && !l.is_empty())?;
    let mut found = Vec::new();
    while let Some(c) = letters.chars().next() {
        let flag = flags.get(&format!("-{c}"))?;
        letters = &letters[c.len_utf8()..];
        if flag.takes_value {
            // The value of a flag with a number follows at once; other texts are more likely a misspelt name.
            let fits = letters.starts_with(|c: char| c.is_ascii_digit() || "-./".contains(c));
            found.push((flag, Some(letters.to_owned())));
            return fits.then_some(found);
        }
        found.push((flag, None));
    }
    Some(found)
}

fn unknown_command(cli: &Command, word: &str) -> Error {
    let names = cli.get_subcommands().map(|s| s.get_name()).chain(["run", "chat"]);
    let hint = nearest(word, names).map_or_else(|| "see pp-run --help".to_owned(), |n| format!("did you mean '{n}'?"));
    Error::usage(format!("unknown command '{word}': {hint}"))
}

fn unknown_flag(name: &str, typed: &str, flags: &HashMap<String, Flag>) -> Error {
    let shorts = SHORT.iter().filter(|(_, long)| flags.contains_key(*long)).map(|(s, _)| *s);
    let hint = nearest(name, flags.keys().map(String::as_str).chain(shorts))
        .map_or_else(|| "see --help".to_owned(), |n| format!("did you mean '{n}'?"));
    Error::usage(format!("unknown flag '{typed}': {hint}"))
}

/// The most similar name, if one is similar at all; the first in the alphabet of equals.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|n| (n, strsim::jaro_winkler(word, n)))
        .filter(|(_, similarity)| *similarity > 0.8)
        .max_by(|a, b| a.1.total_cmp(&b.1).then_with(|| b.0.cmp(a.0)))
        .map(|(n, _)| n)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    fn run(line: &[&str]) -> Result<Normalised> {
        let args = std::iter::once("pp-run").chain(line.iter().copied()).map(OsString::from).collect();
        normalise(&Cli::command(), args, &|_| None)
    }

    fn words(line: &[&str]) -> Vec<String> {
        run(line).unwrap().args[1..].iter().map(|a| a.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn names_become_long_and_values_stay() {
        let table: &[(&[&str], &[&str])] = &[
            (&["-ngl", "99"], &["--n-gpu-layers=99"]),
            (&["--top_k", "5"], &["--top-k=5"]),
            (&["--top_k=5"], &["--top-k=5"]),
            (&["-p", "-ngl"], &["--prompt=-ngl"]),
            (&["-p", "--top_k"], &["--prompt=--top_k"]),
            (&["-sys", "-st", "-st"], &["--system-prompt=-st", "--single-turn"]),
            (&["-n64", "-t8"], &["--predict=64", "--threads=8"]),
            (&["-vq", "-ve"], &["--verbose", "--quiet", "--verbose", "--escape"]),
            (&["-n", "-1"], &["--predict=-1"]),
            (&["-fa", "-cnv"], &["--flash-attn", "--conversation"]),
            (&["-fa", "off"], &["--flash-attn=off"]),
            (&["-fa", "-1"], &["--flash-attn=-1"]),
            (&["--temp=0.5"], &["--temp=0.5"]),
            (&["run", "-q"], &["--quiet"]),
            (&["a.gguf", "-q"], &["--model=a.gguf", "--quiet"]),
            (&["chat", "a.gguf"], &["--model=a.gguf"]),
            (&["chats", "--delete", "a", "b"], &["chats", "--delete", "a", "b"]),
            (&["show", "a.gguf"], &["show", "a.gguf"]),
            (&["-p", "a.gguf"], &["--prompt=a.gguf"]),
            (&["bench", "-p", "512", "-pg", "8,8"], &["bench", "--n-prompt=512", "--prompt-gen=8,8"]),
            (&["-np", "4", "-q"], &["--quiet"]),
            (&["--", "-ngl"], &["--", "-ngl"]),
        ];
        for (typed, expected) in table {
            assert_eq!(words(typed), *expected, "{typed:?}");
        }
    }

    #[test]
    fn unknown_names_get_a_suggestion() {
        let table = [
            ("--tempp", "'--temp'"),
            ("-nlg", "'-ngl'"),
            ("--ctx", "'--ctx-size'"),
            ("benhc", "'bench'"),
            ("--grammar", "does not have constrained output yet"),
        ];
        for (typed, expected) in table {
            let error = run(&[typed]).unwrap_err().to_string();
            assert!(error.contains(expected), "{typed}: {error}");
        }
    }

    #[test]
    fn repeated_and_ignored_flags_are_noted() {
        let n = run(&["-c", "1", "-c", "2", "-r", "a", "-r", "b", "--numa", "distribute"]).unwrap();
        assert_eq!(n.warnings.len(), 2, "{:?}", n.warnings);
    }

    #[test]
    fn the_environment_fills_in() {
        let env = |name: &str| (name == "LLAMA_ARG_CTX_SIZE").then(|| OsString::from("77"));
        let n = normalise(&Cli::command(), vec!["pp-run".into()], &env).unwrap();
        assert_eq!(n.args[1], "--ctx-size=77");
        let n = normalise(&Cli::command(), vec!["pp-run".into(), "-c".into(), "5".into()], &env).unwrap();
        assert_eq!((n.args.len(), n.warnings.len()), (2, 1));
        assert_eq!(n.given, ["ctx-size"]);
        // Letters with their value count too, and so do opposites.
        let env = |name: &str| match name {
            "PP_ARG_PREDICT" => Some(OsString::from("3")),
            "PP_ARG_NO_CONVERSATION" | "PP_ARG_NO_SHOW_TIMINGS" => Some("1".into()),
            "LLAMA_ARG_CHAT_TEMPLATE" => Some("chatml".into()),
            _ => None,
        };
        let line =
            ["pp-run", "-n8", "-cnv", "--show-timings", "--chat-template-file", "x"].map(OsString::from).to_vec();
        let n = normalise(&Cli::command(), line, &env).unwrap();
        assert_eq!(n.args[1..], ["--predict=8", "--conversation", "--show-timings", "--chat-template-file=x"]);
        let env = |name: &str| match name {
            "PP_ARG_RAW" => Some(OsString::from("1")),
            "PP_ARG_NO_SAVE" => Some("off".into()),
            "PP_ARG_TOP_P" => Some("0.5".into()),
            _ => None,
        };
        assert_eq!(
            normalise(&Cli::command(), vec!["pp-run".into()], &env).unwrap().args,
            ["pp-run", "--raw", "--top-p=0.5"]
        );
    }

    #[test]
    fn a_configuration_comes_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let run = |text: &str, line: &[&str]| {
            fs::write(&path, text).unwrap();
            let args = ["pp-run", "--config", path.to_str().unwrap()].iter().chain(line).map(OsString::from).collect();
            let env = |name: &str| (name == "PP_ARG_TOP_K").then(|| OsString::from("7"));
            normalise(&Cli::command(), args, &env)
                .map(|n| n.args[2..].iter().map(|a| a.to_str().unwrap().to_owned()).collect::<Vec<_>>())
        };
        let text =
            "temp = 0.3\ntop_k = 5\nthreads = 2\nraw = true\nno-save = false\nstop = ['a', 'b']\nmarkdown = false\n";
        let mut got = run(text, &["--threads", "1"]).unwrap();
        got.sort();
        assert_eq!(got, ["--markdown=off", "--raw", "--stop=a", "--stop=b", "--temp=0.3", "--threads=1", "--top-k=7"]);
        for (text, want) in [
            ("tempp = 1", "did you mean 'temp'?"),
            ("temp = [1]", "one value"),
            ("raw = 3", "true or false"),
            ("a = 1\nb = = 2", "line 2"),
            ("config = 'x'", "unknown setting"),
        ] {
            let e = run(text, &[]).unwrap_err();
            assert!(e.kind().exit_code() == 65 && e.to_string().contains(want), "{text}: {e}");
        }
    }
}
