//! From what llama.cpp's users type to what clap reads.
//!
//! clap knows `-c` and `--ctx-size`; llama.cpp's users also type `-ngl 99`, `--top_k 40`, and flags that mean nothing here.
//! The walk knows which flags take a value, so that a value that looks like a flag (`-p "-ngl"`) stays a value.

mod config;
mod flags;
mod names;

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Command;

use crate::error::{Error, Result, nearest};
use crate::system::places::{self, Env};
use flags::{Flag, Flags, letters, settled, unknown_flag};
use names::{ENVIRONMENT, IGNORED, NOT_YET, SHORT};

/// An argument list for clap, and what was noticed while it was made.
#[derive(Debug)]
pub struct Normalised {
    /// Arguments, the program's name first.
    pub args: Vec<OsString>,
    /// Notes for the user, one line each.
    pub warnings: Vec<String>,
    /// Long names of the flags of the command line itself.
    pub given: Vec<String>,
    /// Long names of flags that come from elsewhere, and from where: a variable, or a key of the configuration.
    pub sources: Vec<[String; 2]>,
}

/// Rewrites `args` (the program's name first) for `cli`.
pub fn normalise(cli: &Command, args: Vec<OsString>, env: Env) -> Result<Normalised> {
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_else(|| "pp-run".into());
    let mut rest: Vec<OsString> = args.collect();
    if let Some(name) = called_as(&program) {
        rest.insert(0, name.into());
    }
    let mut out = vec![program];
    let command = subcommand(cli, &mut out, &mut rest)?;
    let flags = flags::flags(command);
    let strict = rest.iter().any(|a| a == "--strict-utf8");
    let mut walk = Walk {
        flags: &flags,
        strict,
        out,
        words: Vec::new(),
        warnings: Vec::new(),
        given: Vec::new(),
        sources: Vec::new(),
    };
    walk.arguments(rest)?;
    if std::ptr::eq(command, cli) {
        walk.prompt_of_words()?;
    } else {
        walk.out.append(&mut walk.words);
    }
    let given = walk.given.clone();
    walk.environment(env)?;
    // The configuration is for answers and chats only: measurements must not depend on what somebody once wrote into a file.
    if std::ptr::eq(command, cli) {
        let named = walk.out.iter().rev().find_map(|a| a.to_str()?.strip_prefix("--config=").map(PathBuf::from));
        let must_exist = named.is_some();
        if let Some(path) = named.or_else(|| places::config(env)) {
            for (arg, source) in config::read(&path, must_exist, cli, &flags, &walk.given)? {
                walk.out.push(arg);
                walk.sources.push(source);
            }
        }
    }
    Ok(Normalised { args: walk.out, warnings: walk.warnings, given, sources: walk.sources })
}

/// The command that the first word names; its name moves from `rest` to `out`, and a model in its place becomes a flag.
fn subcommand<'c>(cli: &'c Command, out: &mut Vec<OsString>, rest: &mut Vec<OsString>) -> Result<&'c Command> {
    let mut command = cli;
    if let Some(word) = rest.first().and_then(|w| w.to_str()).filter(|w| !w.starts_with('-') && !w.is_empty()) {
        match cli.find_subcommand(word) {
            Some(sub) => {
                out.push(rest.remove(0));
                command = sub;
                if word_of_chats(sub, rest) {
                    let word = rest.remove(0);
                    match word.to_str() {
                        Some("show") => rest.insert(0, "--show".into()),
                        Some("delete" | "rm") => rest.insert(0, "--delete".into()),
                        _ => {}
                    }
                }
            }
            // These words name the default command, which has no name for clap.
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
            // Several words are no command but a question.
            None if word.contains(char::is_whitespace) => {}
            None => return Err(unknown_command(cli, word)),
        }
    }
    // A file where a command could be is the model to run.
    if out.len() == 1 && rest.first().is_some_and(is_model) {
        rest.insert(0, "--model".into());
    }
    Ok(command)
}

/// A flag that was found in a word, and its value if the same word holds that too.
type Found<'f> = (&'f Flag, Option<String>);

/// The list for clap while it grows: the command line adds to it first, then the environment, then the configuration.
struct Walk<'f> {
    flags: &'f Flags,
    /// Prompts must be UTF-8.
    strict: bool,
    out: Vec<OsString>,
    /// Words that are no flags and no values of flags
    words: Vec<OsString>,
    warnings: Vec<String>,
    /// Long names of the flags so far
    given: Vec<String>,
    sources: Vec<[String; 2]>,
}

impl<'f> Walk<'f> {
    /// Takes in the arguments of the command line.
    fn arguments(&mut self, rest: Vec<OsString>) -> Result<()> {
        let mut rest = rest.into_iter().peekable();
        while let Some(arg) = rest.next() {
            let Some(text) = arg.to_str().filter(|t| t.len() > 1 && t.starts_with('-')) else {
                self.words.push(arg);
                continue;
            };
            if text == "--" {
                self.words.extend(rest.by_ref());
                break;
            }
            let (name, value) = match text.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value)),
                _ => (text, None),
            };
            let name = self.long_name(name);
            if let ("--model-draft", Some(draft)) = (name.as_str(), self.flags.get("--draft")) {
                let file = value.map(Into::into).or_else(|| rest.next()).unwrap_or_default();
                self.flag(draft, Some(format!("model:{}", file.to_string_lossy())), &mut rest)?;
                continue;
            }
            if let Some((_, takes_value)) = IGNORED.iter().find(|(n, _)| *n == name && !self.flags.contains_key(&name))
            {
                if *takes_value && value.is_none() {
                    rest.next();
                }
                self.warnings.push(format!("{text} has no effect in pp-run"));
                continue;
            }
            for (flag, value) in self.find(&name, value, text)? {
                self.flag(flag, value, &mut rest)?;
            }
        }
        Ok(())
    }

    /// Words without a flag: `pp-run MODEL "a question"`.
    fn prompt_of_words(&mut self) -> Result<()> {
        let mut words = std::mem::take(&mut self.words);
        if !self.given.iter().any(|g| g == "model") && words.first().is_some_and(is_model) {
            let mut arg = OsString::from("--model=");
            arg.push(words.remove(0));
            self.out.push(arg);
            self.given.push("model".to_owned());
        }
        let Some(first) = words.first() else { return Ok(()) };
        // `-` is stdin in the place of any file.
        let is_stdin = words.len() == 1 && first == "-";
        let others = ["prompt", "continue", "file"];
        // A question may come below a file's text.
        let others = if is_stdin { &others[..] } else { &others[..2] };
        if let Some(other) = self.given.iter().find(|g| others.contains(&g.as_str())) {
            let word = first.to_string_lossy();
            return Err(Error::usage(format!(
                "'{word}' is no flag and no value of one, and --{other} is there already"
            )));
        }
        let (long, value) = match words.as_slice() {
            [one] if is_stdin => ("file", one.clone()),
            words => ("prompt", prompt(words.join(" ".as_ref()), self.strict, "the prompt", &mut self.warnings)?),
        };
        let mut arg = OsString::from(format!("--{long}="));
        arg.push(value);
        self.out.push(arg);
        self.given.push(long.to_owned());
        Ok(())
    }

    /// The name of a flag as this command knows it: with two dashes if it has several letters.
    fn long_name(&self, typed: &str) -> String {
        let long = SHORT.iter().find(|(short, _)| *short == typed).map(|(_, long)| *long);
        match (long, typed.strip_prefix("--")) {
            // If the command has a short flag of its own that is spelt so, that one is meant.
            (Some(_), _) if self.flags.contains_key(typed) => typed.to_owned(),
            (Some(long), _) => long.to_owned(),
            (None, Some(long)) => format!("--{}", long.replace('_', "-")),
            (None, None) => typed.to_owned(),
        }
    }

    /// The flags of a word: one, or several letters, the last of which may have its value behind it. There are none if the word is one that
    /// clap itself answers, such as `--help`.
    fn find(&mut self, name: &str, value: Option<&str>, typed: &str) -> Result<Vec<Found<'f>>> {
        if let Some(flag) = self.flags.get(name) {
            return Ok(vec![(flag, value.map(str::to_owned))]);
        }
        let is_it = |n: &str| n.strip_suffix('*').map_or(n == name, |family| name.starts_with(family));
        if let Some((_, what)) = NOT_YET.iter().find(|(n, _)| is_it(n)) {
            return Err(Error::usage(format!("{typed}: pp-run does not have {what} yet")));
        }
        if ["-h", "--help", "-V", "--version", "--usage"].contains(&name) {
            self.out.push(if name == "--usage" { "--help" } else { typed }.into());
            return Ok(Vec::new());
        }
        letters(name, self.flags).ok_or_else(|| unknown_flag(name, typed, self.flags))
    }

    /// Adds a flag, with its value from the same word or from the `rest`.
    fn flag(
        &mut self,
        flag: &Flag,
        value: Option<String>,
        rest: &mut std::iter::Peekable<std::vec::IntoIter<OsString>>,
    ) -> Result<()> {
        if self.given.contains(&flag.long) && !flag.repeatable {
            self.warnings.push(format!("--{} is given more than once: the last one counts", flag.long));
        }
        self.given.push(flag.long.clone());
        // Where a value may be left out, a next word that looks like a flag is not the value.
        let is_flag = |v: &OsString| v.to_str().is_some_and(|v| v.starts_with('-') && v.parse::<f64>().is_err());
        let value = match value {
            Some(value) => Some(value.into()),
            None if flag.many_values => None,
            None if flag.optional_value => rest.next_if(|v| !is_flag(v)),
            None if flag.takes_value => rest.next(),
            None => None,
        };
        let name = format!("--{}", flag.long);
        let mut arg = OsString::from(&name);
        if let Some(value) = value {
            arg.push("=");
            arg.push(match PROMPTS.contains(&flag.long.as_str()) {
                true => prompt(value, self.strict, &name, &mut self.warnings)?,
                false => value,
            });
        }
        self.out.push(arg);
        Ok(())
    }

    /// Adds the flags that variables of the environment give and the command line does not.
    fn environment(&mut self, env: Env) -> Result<()> {
        let mut longs: Vec<&str> = self.flags.values().map(|f| f.long.as_str()).filter(|l| !l.is_empty()).collect();
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
            if let Some(other) = settled(&self.given, long) {
                self.warnings.push(format!("--{other} replaces {name}"));
                continue;
            }
            self.given.push(long.to_owned());
            self.sources.push([long.to_owned(), name.clone()]);
            if self.flags[&format!("--{long}")].takes_value {
                let mut arg = OsString::from(format!("--{long}="));
                arg.push(value);
                self.out.push(arg);
            } else if switch(&value.to_string_lossy(), &name)? {
                self.out.push(format!("--{long}").into());
            }
        }
        Ok(())
    }
}

/// `on` or `off` of a flag without a value.
fn switch(value: &str, name: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" | "yes" => Ok(true),
        "0" | "false" | "off" | "no" => Ok(false),
        _ => Err(Error::usage(format!("{name}: '{value}' is not one of: true, false"))),
    }
}

/// Flags whose value is a text for the model.
const PROMPTS: [&str; 2] = ["prompt", "system-prompt"];

/// A text for the model. A shell may hand over any bytes: what is not UTF-8 is replaced, or with `strict` refused.
fn prompt(value: OsString, strict: bool, flag: &str, warnings: &mut Vec<String>) -> Result<OsString> {
    if let Some(text) = value.to_str() {
        // `-p "$(cat file)"` brings a byte order mark along.
        return Ok(text.strip_prefix('\u{feff}').map_or(value.clone(), Into::into));
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

/// Whether a word is a model: `FILE.gguf`, one of ollama's blobs (`sha256-` and 64 digits), or any file that begins as models do.
fn is_model(arg: &OsString) -> bool {
    let path = Path::new(arg);
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let is_blob =
        name.strip_prefix("sha256-").is_some_and(|h| h.len() == 64 && h.chars().all(|c| c.is_ascii_hexdigit()));
    let begins_so = || {
        let mut magic = [0; 4];
        path.is_file() && File::open(path).and_then(|mut f| f.read_exact(&mut magic)).is_ok() && magic == *b"GGUF"
    };
    !arg.as_encoded_bytes().starts_with(b"-") && (name.to_lowercase().ends_with(".gguf") || is_blob || begins_so())
}

/// Whether a word after `chats` says what to do with them, as other programs have it: `chats show NAME`.
fn word_of_chats(command: &Command, rest: &[OsString]) -> bool {
    command.get_name() == "chats" && rest.first().is_some_and(|w| CHATS.iter().any(|known| w == known))
}

/// Words that name the flags of `chats`, or nothing that it does not do anyway.
const CHATS: [&str; 5] = ["show", "delete", "rm", "list", "ls"];

fn unknown_command(cli: &Command, word: &str) -> Error {
    let names = cli.get_subcommands().map(|s| s.get_name()).chain(["run", "chat"]);
    let hint = nearest(word, names).map_or_else(|| "see pp-run --help".to_owned(), |n| format!("did you mean '{n}'?"));
    Error::usage(format!("unknown command '{word}': {hint}"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;
    use crate::error::Kind;

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
            (&["--", "-ngl"], &["--prompt=-ngl"]),
            (&["a.gguf", "why?"], &["--model=a.gguf", "--prompt=why?"]),
            (&["-n", "8", "a.gguf", "why", "not?"], &["--predict=8", "--model=a.gguf", "--prompt=why not?"]),
            (&["-m", "a.gguf", "b.gguf"], &["--model=a.gguf", "--prompt=b.gguf"]),
            (&["run", "a.GGUF", "-"], &["--model=a.GGUF", "--file=-"]),
            (&["why is it?"], &["--prompt=why is it?"]),
            (&["chats", "show", "a"], &["chats", "--show=a"]),
            (&["chats", "rm", "a", "b"], &["chats", "--delete", "a", "b"]),
            (&["chats", "ls"], &["chats"]),
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
            ("--lora-init-without-apply", "does not have adapters yet"),
            ("--mmproj", "does not have images yet"),
            ("--port", "does not have a server yet"),
            ("--zebra", "see --help"),
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
            std::fs::write(&path, text).unwrap();
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
            assert!(e.kind() == Kind::Malformed && e.to_string().contains(want), "{text}: {e}");
        }
    }
}
